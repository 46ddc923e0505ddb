"""Conversations about videos whose caches a store holds: no pixels are touched, so only a reader can learn."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from vococache.errors import InputError
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, encode_turns
from vococache.pipeline.training.media import LeftOut, MediaReport
from vococache.workers.reason import ReasonStage


class StoredExamples(Dataset[Example]):
    """Rows with the caches of their videos, found in the store by file stem, read and checked as they are needed.

    Rows without a video or whose video the store has not completed are left out, appended to `report` and counted in
    `left_out`. Raises `InputError` where no row is left, `StoreMismatchError` where another compressor made the store.
    """

    def __init__(self, stage: ReasonStage, conversations: Sequence[Conversation], report: Path) -> None:
        self.stage = stage
        known = {info.id for info in stage.store.list() if info.status == "complete"}
        self.rows: list[tuple[str, Conversation]] = []
        missing = []
        for number, row in enumerate(conversations):
            video = row.medium.stem if row.kind == "video" and row.medium is not None else ""
            if video in known:
                self.rows.append((video, row))
            else:
                reason = "no complete video of that name in the store"
                missing.append(LeftOut(number, row.id, str(row.medium or ""), "missing", reason))
        with report.open("ab", buffering=0) as file:
            for item in missing:
                file.write(item.to_line())
        self.left_out = MediaReport.of(missing)
        if not self.rows:
            raise InputError(
                f"store {stage.store.url} has none of the videos of {len(conversations)} rows: {self.left_out}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        video, row = self.rows[index]
        cache = self.stage.read(self.stage.select(video, None, None))
        text = encode_turns(self.stage.model.tokenizer, self.stage.model.config.prompt, row.turns)
        return Example([text], cache=cache.data.numpy())
