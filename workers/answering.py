"""The stage that answers a video's questions: what evaluation spreads over processes, one video at a time."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from vococache.errors import InputError, StoreError, VoCoError
from vococache.model.compiled import compile_layers
from vococache.model.fingerprint import model_digest
from vococache.model.hub import is_hub_id
from vococache.storage import open_store
from vococache.workers.reason import Context, ReasonStage, question_ids

AT_ONCE = 32  # questions in one pass; fixed, so that answers do not depend on anything but the video


@dataclass(frozen=True, slots=True)
class VideoQuestions:
    """A stored video's questions, in order."""

    video: str
    questions: list[str]


@dataclass(frozen=True, slots=True)
class VideoAnswer:
    """An answer and how many segments it was read from; or why there is none."""

    answer: str
    segments: int
    error: str | None = None


@dataclass(kw_only=True)
class AnswerStage:
    """Answers greedily from a store. `tokens`: read only the first so many of each segment.

    A question that cannot be answered, or a video that is damaged or not there, costs itself alone; a store out of
    reach ends the run, which goes on with the same command.
    """

    store_url: str
    model: str
    dtype: str | None
    device: str | None
    tokens: int | None
    max_new_tokens: int
    _reason: ReasonStage | None = field(default=None, init=False, repr=False)

    def setup(self) -> ReasonStage:
        """Load the model and open the store. Raises `ModelError`, `StoreError`, `InputError`."""
        if self._reason is None:
            reason = ReasonStage.of(open_store(self.store_url), self.model, dtype=self.dtype, device=self.device)
            reason.check_tokens(self.tokens)
            compile_layers(reason.model)
            self._reason = reason
        return self._reason

    def describe(self) -> dict[str, str | int | None]:
        """What its answers depend on beside the store's content, and what the model is."""
        stage = self.setup()
        config = stage.model.config
        vision, text = config.vision, config.text
        name = stage.model.name  # of one from the hub, with its commit; a folder's says nothing elsewhere
        return ({"checkpoint": name} if is_hub_id(name) and not Path(name).exists() else {}) | {
            "fingerprint": stage.store.header.fingerprint,
            "model": model_digest(stage.model),
            "prompt": config.prompt.template,
            "vision": f"{vision.model_type} {vision.num_hidden_layers} x {vision.hidden_size}",
            "language": f"{text.model_type} {text.num_hidden_layers} x {text.hidden_size}",
            "resolution": config.geometry.size,
            "tokens_a_segment": self.tokens or stage.store.header.tokens,
            "note": config.extra.get("note"),  # what its maker tells whoever asks it
        }

    def timed(self, asked: VideoQuestions) -> tuple[str, list[VideoAnswer], float]:
        """The video, the replies, and the seconds that they took."""
        started = time.perf_counter()
        replies = self.process(asked)
        return asked.video, replies, time.perf_counter() - started

    def process(self, asked: VideoQuestions) -> list[VideoAnswer]:
        """A reply to each question, in their order."""
        stage = self.setup()
        try:
            context = stage.load([asked.video], tokens=self.tokens)
        except VoCoError as error:
            if type(error) is StoreError:  # out of reach, for a while: no fault of this video
                raise
            return [VideoAnswer("", 0, f"{type(error).__name__}: {error}") for _ in asked.questions]
        replies: dict[int, VideoAnswer] = {}
        fitting = []
        for index, question in enumerate(asked.questions):
            try:
                self._check(stage, context, question)
                fitting.append(index)
            except InputError as error:
                replies[index] = VideoAnswer("", 0, f"{type(error).__name__}: {error}")
        (span,) = context.spans
        for first in range(0, len(fitting), AT_ONCE):
            group = fitting[first : first + AT_ONCE]
            answers = stage.answer(
                context, [asked.questions[index] for index in group], max_new_tokens=self.max_new_tokens
            )
            for index, answer in zip(group, answers, strict=True):
                replies[index] = VideoAnswer(answer.answer, span.stop - span.start)
        return [replies[index] for index in range(len(asked.questions))]

    def _check(self, stage: ReasonStage, context: Context, question: str) -> None:
        """Refuse a question that is empty, or too long behind these segments."""
        room = len(question_ids(stage.model, question)) + self.max_new_tokens
        stage.check_room(context.spans, context.tokens, room)
