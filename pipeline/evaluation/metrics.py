"""What an answer is worth, without any network: exact match after normalisation, and WUPS.

Normalisation is that of the VQA evaluation (Antol et al., 2015): case, articles, punctuation and number words do not
count. Every question of a data set is in the denominator, whatever became of its answer.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

from vococache.errors import InputError

Similarity = Callable[[str, str], float]  # of two words or phrases, 0 to 1
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {name: str(number) for number, name in enumerate(NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def normalise(text: str) -> str:
    """Case folded; punctuation, articles and further spaces gone; number words up to ten as digits."""
    words = []
    for word in unicodedata.normalize("NFKC", text).casefold().replace("'", "").split():
        # Inside a number, points and colons mean something, and commas only part its thousands.
        bare = word.strip('.,:;!?"()')
        parts = [bare.replace(",", "")] if _NUMBER.fullmatch(bare) else re.split(r"[^\w]+|_", word)
        words += [_DIGITS.get(part, part) for part in parts if part and part not in _ARTICLES]
    return " ".join(words)


def exact_match(prediction: str, truth: str) -> bool:
    """Are they the same, normalised? Whole answers: "no" is not found in "snow"."""
    return bool(prediction) and normalise(prediction) == normalise(truth)


def wups(prediction: str, truth: str, similarity: Similarity, threshold: float) -> float:
    """The Wu-Palmer set score of two answers, items separated by commas (Malinowski and Fritz, 2014, section 4).

    The lower of two products: over the items of one answer, of the best similarity to an item of the other. A
    similarity below `threshold` counts a tenth.
    """
    ours, theirs = ({item for part in text.split(",") if (item := normalise(part))} for text in (prediction, truth))
    if not ours or not theirs:
        return 0.0

    def score(a: str, b: str) -> float:
        alike = 1.0 if a == b else similarity(a, b)
        return alike if alike >= threshold else 0.1 * alike

    return min(
        prod(max(score(a, t) for t in theirs) for a in ours),
        prod(max(score(a, t) for a in ours) for t in theirs),
    )


def wordnet_similarity() -> Similarity:
    """The best Wu-Palmer similarity of two nouns' meanings in nltk's WordNet. Raises `InputError` without it."""
    try:
        from nltk.corpus import wordnet
    except ImportError:
        raise InputError(
            "WUPS needs nltk: pip install 'vococache[eval]', then python -m nltk.downloader wordnet"
        ) from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise InputError("WUPS needs nltk's WordNet data: python -m nltk.downloader wordnet") from None

    @cache
    def meanings(words: str) -> tuple[Any, ...]:
        return tuple(wordnet.synsets(words.replace(" ", "_"), pos="n"))

    @cache
    def similarity(a: str, b: str) -> float:
        return max((x.wup_similarity(y) or 0.0 for x in meanings(a) for y in meanings(b)), default=0.0)

    return similarity
