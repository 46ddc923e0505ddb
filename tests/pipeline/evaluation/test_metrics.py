"""Normalisation, exact match and WUPS, against values computed by hand."""

from pathlib import Path
from typing import Any

import pytest
from nltk.corpus.reader import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from vococache.errors import InputError
from vococache.pipeline.evaluation import metrics
from vococache.pipeline.evaluation.metrics import exact_match, normalise, wups


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog.", "dog"),
        ("  the  red,ball ", "red ball"),
        ("Two", "2"),
        ("none", "0"),
        ("10:30", "10:30"),
        ("3.5.", "3.5"),
        ('"2"', "2"),
        ("(5)", "5"),
        ("2,000 people", "2000 people"),
        ("t-shirt", "t shirt"),
        ("don't", "dont"),
        ("ÉCOLE", "école"),
        ("ﬁve", "5"),
        ("left_hand", "left hand"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected, "once more changes nothing"


def test_exact_match_is_of_whole_answers() -> None:
    """A peer's evaluator found "no" inside other words."""
    assert exact_match("No.", "no")
    assert not exact_match("snow", "no")
    assert not exact_match("no dog", "no")
    assert not exact_match("", "")
    assert not exact_match("", "the"), "no answer is never right"


ALIKE = {frozenset(("dog", "cat")): 0.86, frozenset(("dog", "car")): 0.4}


def similarity(a: str, b: str) -> float:
    return ALIKE.get(frozenset((a, b)), 0.0)


@pytest.mark.parametrize(
    ("prediction", "truth", "threshold", "expected"),
    [
        ("dog", "a dog", 0.9, 1.0),
        ("dog", "cat", 0.0, 0.86),
        ("dog", "cat", 0.86, 0.86),  # as alike as the threshold asks
        ("dog", "cat", 0.9, 0.086),
        ("dog", "car", 0.9, 0.04),
        ("dog", "moon", 0.0, 0.0),
        ("dog, cat", "dog", 0.0, 0.86),  # one direction is 1, the other 1 x 0.86
        ("dog", "dog, car", 0.0, 0.4),
        ("cat, dog", "dog, cat", 0.9, 1.0),
        ("", "dog", 0.0, 0.0),
    ],
)
def test_wups(prediction: str, truth: str, threshold: float, expected: float) -> None:
    """The lower product of best similarities; below the threshold they count a tenth (Malinowski and Fritz, 2014)."""
    assert wups(prediction, truth, similarity, threshold) == pytest.approx(expected)


NOUNS = {"entity": None, "animal": "entity", "dog": "animal", "cat": "animal", "tool": "entity"}


def write_wordnet(folder: Path) -> None:
    """A WordNet of five nouns, in the files' own format: fixed byte offsets, hypernym pointers `@`."""
    width = 160
    offsets = {word: index * width for index, word in enumerate(NOUNS)}
    lines = []
    for word, above in NOUNS.items():
        pointers = [] if above is None else [f"@ {offsets[above]:08d} n 0000"]
        below = [child for child, parent in NOUNS.items() if parent == word]
        pointers += [f"~ {offsets[child]:08d} n 0000" for child in below]
        line = f"{offsets[word]:08d} 03 n 01 {word} 0 {len(pointers):03d} {' '.join(pointers)} | a {word}"
        lines.append(line.ljust(width - 1) + "\n")
    (folder / "data.noun").write_text("".join(lines))
    index = [f"{word} n 1 1 @ 1 0 {offsets[word]:08d}  \n" for word in sorted(NOUNS)]
    (folder / "index.noun").write_text("".join(index))
    for part in ("adj", "adv", "verb"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("")
        (folder / f"{part}.exc").write_text("")
    for name in ("noun.exc", "index.sense", "cntlist.rev"):
        (folder / name).write_text("")
    names = ("adj.all", "adj.pert", "adv.all", "noun.Tops")
    (folder / "lexnames").write_text("".join(f"{number:02d}\t{name}\t1\n" for number, name in enumerate(names)))


def test_similarity_in_a_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wu and Palmer: 2 depth(common) / (depth(a) + depth(b)), the root's depth being 1."""
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    write_wordnet(folder)
    wordnet = use_data(monkeypatch, [str(tmp_path)])
    similar = metrics.wordnet_similarity()
    assert similar("dog", "cat") == pytest.approx(2 * 2 / (3 + 3))
    assert similar("dog", "tool") == pytest.approx(2 * 1 / (3 + 2))
    assert similar("dog", "nothing known") == 0.0
    assert wups("dog", "cat", similar, 0.9) == pytest.approx(0.1 * 2 / 3)
    for file in wordnet._data_file_map.values():
        file.close()


def test_without_its_data_wups_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    use_data(monkeypatch, [])
    with pytest.raises(InputError, match=r"python -m nltk\.downloader wordnet"):
        metrics.wordnet_similarity()


def use_data(monkeypatch: pytest.MonkeyPatch, folders: list[str]) -> Any:
    """nltk's WordNet, not loaded yet, from these folders."""
    monkeypatch.setattr("nltk.data.path", folders)
    languages = LazyCorpusLoader("omw-1.4", WordNetCorpusReader)  # never needed, but nltk warns without
    wordnet = LazyCorpusLoader("wordnet", WordNetCorpusReader, languages)
    monkeypatch.setattr("nltk.corpus.wordnet", wordnet)
    return wordnet
