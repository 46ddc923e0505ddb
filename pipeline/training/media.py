"""Conversations as training examples, their images and videos decoded as they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from vococache.errors import ContextLimitError, InputError, VideoError
from vococache.model.config import VoCoConfig
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, Text, encode_turns
from vococache.pipeline.training.report import Cause, LeftOut, MediaReport, record
from vococache.workers.media import MediaReader
from vococache.workers.sampling import Sampling

# Stands for a row that turned out useless: no frames and no labels, so that no loss comes from it.
NOTHING = Example([Text([0], [IGNORED_LABEL])])


def check_length(config: VoCoConfig, cached: int, text: Text) -> None:
    """Raise `ContextLimitError` for a text behind so many cached entries that the model has no positions for."""
    if cached + len(text.ids) > config.max_positions:
        raise ContextLimitError(
            f"a cache of {cached} tokens and a text of {len(text.ids)} need {cached + len(text.ids)} positions,"
            f" the model has {config.max_positions}"
        )


class ConversationExamples(Dataset[Example]):
    """Conversations with their frames, decoded as they are needed; `sampling` and `max_frames` as for `MediaReader`.

    `report`: the file to which rows that cannot be trained on are appended. Call `check_media` before training.
    """

    def __init__(
        self,
        model: VoCoModel,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        report: Path,
        *,
        max_frames: int | None = None,
    ) -> None:
        self.config, self.tokenizer, self.entries = model.config, model.tokenizer, model.segment_entries
        self.conversations = conversations
        self.media = MediaReader(model.config, sampling, max_frames=max_frames)
        self.report = report
        self._rows = list(range(len(conversations)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """A row; `NOTHING` for one that cannot be trained on."""
        row = self.conversations[self._rows[index]]
        text = encode_turns(self.tokenizer, self.config.prompt, row.turns, alone=not row.media)
        try:
            frames = self._frames(row)
            check_length(self.config, 0 if frames is None else len(frames) * self.entries, text)
        except (VideoError, ContextLimitError) as error:
            cause: Cause = "broken" if isinstance(error, VideoError) else "too long"
            record(self.report, [self._left_out(self._rows[index], cause, str(error))])
            return NOTHING
        return Example([text], frames=frames)

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
                found.append(LeftOut(number, row.id, str(gone[0]), "missing", "no such file"))
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

    def _left_out(self, number: int, cause: Cause, reason: str) -> LeftOut:
        row = self.conversations[number]
        return LeftOut(number, row.id, str(row.media[0]) if row.media else "", cause, reason)
