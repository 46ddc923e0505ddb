"""Conversations as training examples, their images and videos decoded as they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from vococache.errors import ContextLimitError, InputError, VideoError
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, Text, encode_turns, fit
from vococache.pipeline.training.report import Cause, LeftOutRow, MediaReport, record
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import MediaReader

# Stands for a row that turned out useless: no frames and no labels, so that no loss comes from it.
NOTHING = Example([Text([0], [IGNORED_LABEL])])


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
        sampling: FrameSampling,
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
        text = encode_turns(self.tokenizer, self.config.prompt, row.turns, alone=not row.media)
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
            elif gone := [path for path in row.media if not path.exists()]:
                found.append(LeftOutRow(number, row.id, str(gone[0]), "missing", "no such file"))
        record(self.report, found)
        left = {item.row for item in found}
        self._rows = [number for number in self._rows if number not in left]
        report = MediaReport.of(found)
        if not self._rows:
            raise InputError(f"none of {len(self.conversations)} rows can be trained on: {report}")
        return report

    def close(self) -> None:
        """End this process's decoder child now; otherwise it ends with this object or its process."""
        self.media.close()

    def _frames(self, row: Conversation) -> np.ndarray | None:
        """uint8 [S, F, H, W, 3], None for text."""
        if row.kind == "text":
            return None
        if row.kind == "image":
            return np.concatenate([self.media.image(path) for path in row.media])
        return self.media.video(row.media[0]) if len(row.media) == 1 else self.media.pictures(row.media)

    def _left_out(self, number: int, cause: Cause, reason: str) -> LeftOutRow:
        row = self.conversations[number]
        return LeftOutRow(number, row.id, str(row.media[0]) if row.media else "", cause, reason)
