"""Answers that a model in training writes, against those of the data: exact match, as `voco eval` counts it."""

from collections.abc import Iterator, Sequence

import torch

from vococache.model.cache import VoCoCache
from vococache.model.generate import GenerationOptions, generate
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.evaluation.metrics import exact_match
from vococache.pipeline.training.examples import Example, Text
from vococache.workers.reason import answer_text

EXAMPLES = 64  # of the evaluation data, evenly spread: each takes a pass a token


def questions(text: Text) -> Iterator[tuple[list[int], list[int]]]:
    """What stands before each answer of a text, and the answer: a run of labels, its stop token included."""
    labelled = [label != IGNORED_LABEL for label in text.labels] + [False]
    starts = [at for at in range(1, len(text.ids)) if labelled[at] and not labelled[at - 1]]
    for start in starts:
        yield text.ids[:start], text.labels[start : labelled.index(False, start)]


@torch.no_grad()
def exact_match_share(model: VoCoModel, rows: Sequence[Example]) -> float:
    """The share of the answers of some rows, evenly spread, that the model writes as they are, greedily.

    Whoever shards the model: every process must call it, with the same rows.
    """
    right = asked = 0
    for number in sorted({index * len(rows) // EXAMPLES for index in range(EXAMPLES)}):
        example = rows[number]
        posed = [pair for text in example.texts for pair in questions(text)]
        if not posed:  # a row that turned out useless
            continue
        if example.frames is not None:
            cache = model.compress(model.pixel_values(example.frames))
        else:
            cache = model.empty_cache() if example.cache is None else VoCoCache(torch.from_numpy(example.cache))
        texts = [torch.tensor(before) for before, _ in posed]
        placed = model.place(cache)
        room = model.config.max_positions - placed.prefix - max(map(len, texts))
        longest = min(room, max(len(answer) for _, answer in posed))
        written = generate(model, placed, texts, longest, GenerationOptions()).ids
        for ids, (_, answer) in zip(written, posed, strict=True):
            right += exact_match(answer_text(model, ids), answer_text(model, answer))
        asked += len(posed)
    return right / asked if asked else 0.0
