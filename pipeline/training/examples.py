"""Examples: frames (or a cache) and the texts that are read behind them; batches of examples.

Letters: S segments of all rows, F frames of a segment, B rows, L length of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vococache.errors import ContextLimitError
from vococache.model.config import PromptPieces
from vococache.model.voco import IGNORED_LABEL
from vococache.workers.reason import prompt_text

Turn = tuple[str, str]  # question, answer


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids behind the last VoCo token, and labels: the ids of answers, -100 elsewhere."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Example:
    """One row: uint8 frames [S, F, H, W, 3] (or a cache in the canonical layout), and texts that share it.

    The texts do not see one another. Without `frames` and `cache` the row is text alone.
    """

    texts: list[Text]
    frames: np.ndarray | None = None
    cache: np.ndarray | None = None


def encode_turns(tokenizer: Any, prompt: PromptPieces, turns: Sequence[Turn], *, alone: bool = False) -> Text:
    """A conversation as ids; every answer, and the stop token behind it, is labelled.

    The ids before an answer are those that `ask` encodes, so training and asking see the same. `alone`: without a
    cache in front, so that the text begins with BOS, as the decoder knows it, and not with a newline.
    """

    def extended(ids: list[int], text: str, addition: str) -> list[int]:
        # In one piece: a tokenizer may split a text differently where it stands alone. But what `ask` fed is fixed
        # before the answer comes: where the two would merge, the addition is encoded alone.
        whole = list(tokenizer.encode(text, add_special_tokens=False))
        return whole if whole[: len(ids)] == ids else ids + list(tokenizer.encode(addition, add_special_tokens=False))

    bos = [] if prompt.bos_id is None else [prompt.bos_id]
    start, stop = bos if alone else list(prompt.text_newline_ids), list(prompt.stop_ids[:1])
    ids: list[int] = []
    labels: list[int] = []
    for index, (question, answer) in enumerate(turns):
        template = prompt.template if index == 0 else prompt.followup
        text = prompt_text(prompt, question, turns[:index])
        reply = f"{prompt.before_answer}{answer}" if answer else ""
        asked = extended(ids, text, template.replace("{question}", question))
        ids = extended(asked, text + reply, reply)
        # The stop is predicted behind each answer, whatever the follow-up starts with.
        labels += [IGNORED_LABEL] * (len(start) + len(asked) - len(labels)) + ids[len(asked) :] + stop
    return Text(start + ids + stop, labels)


def fit(text: Text, room: int) -> Text:
    """As much of a text as `room` tokens hold. Raises `ContextLimitError` where no answer is among them."""
    if len(text.ids) <= room:
        return text
    cut = Text(text.ids[: max(0, room)], text.labels[: max(0, room)])
    if all(label == IGNORED_LABEL for label in cut.labels[1:]):
        raise ContextLimitError(f"there is room for {room} of its {len(text.ids)} tokens, before any answer")
    return cut


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch: what `Objective.forward` takes, padded on the right; the texts of an example share its row."""
    rows = [_packed(example.texts) for example in examples]
    length = max(len(ids) for ids, _, _ in rows)

    def padded(column: int, filler: int) -> Tensor:
        return torch.tensor([row[column] + [filler] * (length - len(row[column])) for row in rows])

    batch: dict[str, Any] = {
        "input_ids": padded(0, 0),
        "attention_mask": padded(1, 0),
        "labels": padded(2, IGNORED_LABEL),
    }
    media = [example.frames if example.cache is None else example.cache for example in examples]
    batch["segments"] = [0 if medium is None else len(medium) for medium in media]
    present = [torch.from_numpy(medium) for medium in media if medium is not None]
    name = "frames" if all(example.cache is None for example in examples) else "cache"
    batch[name] = torch.cat(present) if present else torch.zeros(0, 1, 1, 1, 3, dtype=torch.uint8)
    return batch


def _packed(texts: Sequence[Text]) -> tuple[list[int], list[int], list[int]]:
    """Ids, text numbers from 1, and labels of one row."""
    ids = [token for text in texts for token in text.ids]
    numbers = [number for number, text in enumerate(texts, 1) for _ in text.ids]
    return ids, numbers, [label for text in texts for label in text.labels]
