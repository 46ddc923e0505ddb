"""Conversations as training examples, and the report of those that cannot be trained on.

A row is never replaced by another: the loss is over what the data hold, and what they lack has a name.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from vococache.errors import ContextLimitError, InputError, VideoError
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, Text, encode_turns, fit
from vococache.workers.media import MediaReader
from vococache.workers.sampling import Sampling

Cause = Literal["empty", "missing", "broken", "too long", "cut"]
# Stands for a row that turned out useless: no frames and no labels, so that no loss comes from it.
NOTHING = Example([Text([0], [IGNORED_LABEL])])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not trained on, or, where it is "cut", not to its end.

    `row`: its place among the conversations; `medium`: its file, "" where text.
    """

    row: int
    id: str
    medium: str
    cause: Cause
    reason: str

    def to_line(self) -> bytes:
        """A line of JSON, shorter than 4096 bytes: several processes may append such lines to one file."""
        short = asdict(self) | {"id": self.id[:100], "medium": self.medium[-300:], "reason": self.reason[:200]}
        return json.dumps(short, ensure_ascii=False).encode(errors="replace") + b"\n"


@dataclass(frozen=True, slots=True)
class MediaReport:
    """What was left out, by cause: how many rows, and the reason for each file (each id, where the row is text)."""

    counts: dict[str, int]
    names: dict[str, dict[str, str]]

    @classmethod
    def of(cls, left_out: Iterable[LeftOut]) -> "MediaReport":
        """Each row counts once, whichever process met it in whichever epoch."""
        rows = {(item.cause, item.row): item for item in left_out}.values()
        names: dict[str, dict[str, str]] = {}
        for item in rows:
            names.setdefault(item.cause, {})[item.medium or item.id] = item.reason
        return cls(dict(Counter(item.cause for item in rows)), names)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {cause} ({', '.join(list(self.names[cause])[:3])}{', ...' if len(self.names[cause]) > 3 else ''})"
            for cause, count in self.counts.items()
        )


def read_report(path: Path) -> MediaReport:
    """All that was appended to a `report.jsonl`, also by earlier runs in the same folder; nothing if it is absent."""
    if not path.exists():
        return MediaReport({}, {})
    return MediaReport.of(LeftOut(**json.loads(line)) for line in path.read_bytes().splitlines())


def record(report: Path, left_out: Iterable[LeftOut]) -> None:
    """Append rows to a report."""
    with report.open("ab", buffering=0) as file:  # unbuffered: each line is one write
        for item in left_out:
            file.write(item.to_line())


def text_length(row: Conversation) -> int:
    """Letters of all turns."""
    return sum(len(part) for turn in row.turns for part in turn)


def room(positions: int, cached: int, max_length: int | None) -> int:
    """Tokens of a text that `positions` hold behind a cache, `max_length` at most."""
    return positions - cached if max_length is None else min(positions - cached, max_length)


class ConversationExamples(Dataset[Example]):
    """Conversations with their frames, decoded as they are needed; `sampling` and `max_frames` as for `MediaReader`.

    `max_length`: at most so many tokens of a text; what is longer, or does not fit the model, is cut. `report`: the
    file to which rows that cannot be trained on, or not to their end, are appended. Call `check_media` before training.
    """

    def __init__(
        self,
        model: VoCoModel,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        report: Path,
        *,
        max_frames: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self.config, self.tokenizer, self.entries = model.config, model.tokenizer, model.segment_entries
        self.conversations = conversations
        self.media = MediaReader(model.config, sampling, max_frames=max_frames)
        self.report = report
        self.max_length = max_length
        self._rows = list(range(len(conversations)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """A row; `NOTHING` for one that cannot be trained on."""
        row = self.conversations[self._rows[index]]
        text = encode_turns(self.tokenizer, self.config.prompt, row.turns)
        try:
            frames = self._frames(row)
            cached = 0 if frames is None else len(frames) * self.entries
            whole, text = text, fit(text, room(self.config.max_positions, cached, self.max_length))
        except (VideoError, ContextLimitError) as error:
            cause: Cause = "broken" if isinstance(error, VideoError) else "too long"
            record(self.report, [self._left_out(self._rows[index], cause, str(error))])
            return NOTHING
        if text is not whole:
            reason = f"{len(whole.ids) - len(text.ids)} of {len(whole.ids)} tokens"
            record(self.report, [self._left_out(self._rows[index], "cut", reason)])
        return Example([text], frames=frames)

    def lengths(self) -> list[int]:
        """Letters of each row's text."""
        return [text_length(self.conversations[number]) for number in self._rows]

    def check_media(self) -> MediaReport:
        """Leave out the rows without their file, or with an empty question or answer; returns and records them.

        Raises `InputError` where none is left.
        """
        found = []
        for number in self._rows:
            row = self.conversations[number]
            if not all(question and answer for question, answer in row.turns):
                found.append(self._left_out(number, "empty", "an empty question or answer"))
            elif row.medium is not None and not row.medium.is_file():
                found.append(self._left_out(number, "missing", "no such file"))
        record(self.report, found)
        gone = {item.row for item in found}
        self._rows = [number for number in self._rows if number not in gone]
        report = MediaReport.of(found)
        if not self._rows:
            raise InputError(f"none of {len(self.conversations)} rows can be trained on: {report}")
        return report

    def close(self) -> None:
        """End this process's decoder child now; otherwise it ends with this object or its process."""
        self.media.close()

    def _frames(self, row: Conversation) -> np.ndarray | None:
        """uint8 [S, F, H, W, 3], None for text."""
        if row.medium is None:
            return None
        return self.media.image(row.medium) if row.kind == "image" else self.media.video(row.medium)

    def _left_out(self, number: int, cause: Cause, reason: str) -> LeftOut:
        row = self.conversations[number]
        return LeftOut(number, row.id, "" if row.medium is None else str(row.medium), cause, reason)
