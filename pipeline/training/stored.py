"""Conversations about videos whose caches a store holds: no pixels are touched, so only a reader can learn."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from vococache.errors import ContextLimitError, InputError
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, encode_turns, fit
from vococache.pipeline.training.media import NOTHING, room, text_length
from vococache.pipeline.training.report import LeftOutRow, MediaReport, record
from vococache.workers.reason import ReasonStage


class StoredExamples(Dataset[Example]):
    """Rows with the caches of their videos, found in the store by file stem, read and checked as they are needed.

    Rows without a video or whose video the store has not completed are left out, appended to `report` and counted in
    `left_out`. Raises `InputError` where no row is left, `StoreMismatchError` where another compressor made the store.
    What is longer than `max_length` tokens, or does not fit the model, is cut, and where nothing to learn is left, no
    loss comes from it: both are found when the row is read, and go into the report.
    """

    def __init__(
        self,
        stage: ReasonStage,
        conversations: Sequence[Conversation],
        report: Path,
        *,
        max_length: int | None = None,
    ) -> None:
        self.stage = stage
        self.conversations = conversations
        self.max_length = max_length
        known = {info.id for info in stage.store.list() if info.status == "complete"}
        self.report = report
        self.rows: list[tuple[str, int]] = []
        missing = []
        for number, row in enumerate(conversations):
            video = row.media[0].stem if row.kind == "video" else ""
            if video in known:
                self.rows.append((video, number))
            else:
                reason = "no complete video of that name in the store"
                missing.append(LeftOutRow(number, row.id, str(row.media[0]) if row.media else "", "missing", reason))
        record(report, missing)
        self.left_out = MediaReport.of(missing)
        if not self.rows:
            raise InputError(
                f"store {stage.store.url} has none of the videos of {len(conversations)} rows: {self.left_out}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> list[int]:
        """Letters of each row's text."""
        return [text_length(self.conversations[number]) for _, number in self.rows]

    def __getitem__(self, index: int) -> Example:
        video, number = self.rows[index]
        row = self.conversations[number]
        model, span = self.stage.model, self.stage.select(video, None, None)
        text = encode_turns(model.tokenizer, model.config.prompt, row.turns)
        try:
            cached = (span.stop - span.start) * self.stage.store.header.tokens
            whole, text = text, fit(text, room(model.config.max_positions, cached, self.max_length))
        except ContextLimitError as error:
            record(self.report, [LeftOutRow(number, row.id, str(row.media[0]), "too long", str(error))])
            return NOTHING
        if text is not whole:
            reason = f"{len(whole.ids) - len(text.ids)} of {len(whole.ids)} tokens"
            record(self.report, [LeftOutRow(number, row.id, str(row.media[0]), "cut", reason)])
        return Example([text], cache=self.stage.read(span).data.numpy())
