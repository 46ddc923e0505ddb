"""Questions over precomputed caches: no video is opened, no pixel touched."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vococache.errors import InputError
from vococache.workers.spans import Evidence, SegmentSpan, Skeleton

if TYPE_CHECKING:
    from vococache.model.generate import GenerationOptions
    from vococache.workers.focus import Scope
    from vococache.workers.reason import Context, ReasonStage

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AskAnswer:
    """One answer: which segments it was read from, what it rests on, and seconds of load, prefill and decode.

    Several questions are answered in one pass, so its seconds are those of the pass. Where the videos were too long to
    be read whole, `segments` are the windows that were read, chosen in `find` seconds, and `skeleton` says what was
    read of the rest. `evidence`: the spans that the answer rests on, best first. `whole_segments`: how many of the last
    were read whole, as a watch keeps the newest.
    """

    question: str
    answer: str
    videos: list[str]
    segments: list[SegmentSpan]
    timings: dict[str, float]
    clock: tuple[str, str] | None = None  # of a live source: when its first and last frame were, in local time
    evidence: list[Evidence] = field(default_factory=list)
    skeleton: Skeleton | None = None
    whole_segments: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `clock`, `skeleton` and `whole_segments` only where there are any."""
        left_out = {name for name in ("clock", "skeleton", "whole_segments") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What of videos is read for a question, and how it is answered. Raises `InputError` for what cannot be meant.

    `start`, `end`: seconds, of each video; of a live source moments, as "17:05". `last`: only the last so many seconds
    of what is stored. `tokens`: read only the first so many VoCo tokens of each segment. `temperature` 0 is greedy.

    Where all of that does not fit the model's context, each question is answered from the windows that it is about, or
    that show what is to be found (`find`, a text as for `vococache.search`; then also where all fits), and a skeleton
    of the rest. `whole`: refuse instead.
    """

    start: float | str | None = None
    end: float | str | None = None
    last: float | None = None
    find: str | None = None
    whole: bool = False
    tokens: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.whole and self.find is not None:
            raise InputError("to find something is to read in part: expected find or whole, found both")
        check_window(self.start, self.end)

    @property
    def sampling(self) -> "GenerationOptions":
        """How tokens are drawn."""
        from vococache.model.generate import GenerationOptions

        return GenerationOptions(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


def open_reader(
    store: str | os.PathLike[str], *, model: str | None = None, dtype: str | None = None, device: str | None = None
) -> "ReasonStage":
    """The temporal stage over the store at `store`: with the model that made it, or another reader of its caches.

    Raises `StoreError` where there is no such store, `ModelError` where the model cannot be loaded,
    `StoreMismatchError` where the caches were made by another compressor.
    """
    from vococache.storage import open_store
    from vococache.workers.reason import ReasonStage

    return ReasonStage.of(open_store(store), model, dtype=dtype, device=device)


def notes(stage: "ReasonStage", videos: Sequence[str]) -> list[str]:
    """What whoever asks about stored `videos` should know: the model's own note, and sampling it was not made for."""
    config = stage.model.config
    found = [str(config.extra["note"])] if config.extra.get("note") else []
    from vococache.pipeline.live.parts import newest_part

    for video in map(video_id, videos):
        part = newest_part(stage.store, video)
        sampling = (part.info if part is not None else stage.store.info(video)).sampling
        if config.sampling is not None and sampling is not None and sampling != config.sampling:
            found.append(
                f"video {video!r} was sampled with {_readable(sampling)}, the model was made for"
                f" {_readable(config.sampling)}"
            )
    return found


def _readable(sampling: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sampling.items() if value is not None)


def ask(
    store: "str | os.PathLike[str] | ReasonStage",
    videos: str | Sequence[str] | None,
    questions: str | Sequence[str],
    *,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> list[AskAnswer]:
    """Answer `questions` about `videos` from a store, all in one pass over the same cached segments.

    `videos`: ids as `voco ls` tells them, the paths of files that were ingested, or ids of live sources; None for all
    of the store. `store`: a path or URL, or `open_reader`'s result, which keeps the model loaded. Several videos are
    read one after the other as one context. `model`, `dtype`, `device`: as in `open_reader`. `options`: the fields of
    `vococache.pipeline.ask.ReadOptions`: window, tokens, what to find, how to answer.

    Raises `InputError` for an empty question or window, `ContextLimitError` where cache and question are too
    long and may not be read in part, `VideoNotFoundError` (which names the nearest ids) and `CorruptionError` where
    stored bytes changed.
    """
    from vococache.pipeline.live.parts import clock_of
    from vococache.workers.evidence import evidence_of, grounds
    from vococache.workers.reason import question_ids

    asked = [questions] if isinstance(questions, str) else list(questions)
    if not asked or (videos is not None and not videos):
        raise InputError("expected at least one video and one question")
    read = ReadOptions(**options)
    if isinstance(store, str | os.PathLike):
        stage = open_reader(store, model=model, dtype=dtype, device=device)
    else:
        stage = store
    named = None if videos is None else [video_id(text) for text in ([videos] if isinstance(videos, str) else videos)]
    scope = scope_of(stage, named, read.start, read.end, read.last)
    # What is found for a question is for that alone; else all of them go through the model together.
    room = room_for(stage, asked, read.max_new_tokens)
    together = read.find is not None or fits(
        stage, scope.segments, stage.check_tokens(read.tokens), room, whole=read.whole
    )
    groups = [asked] if together else [[question] for question in asked]
    told = []
    for questions in groups:
        context = load(stage, scope, questions, read)
        answers = stage.answer(context, questions, max_new_tokens=read.max_new_tokens, sampling=read.sampling)
        texts = [question_ids(stage.model, question) for question in questions]
        rests = evidence_of(stage, [grounds(stage, context.pieces)] * len(texts), texts)
        clock = clock_of(stage.store, context.spans)
        found = {"find": context.find_seconds} if context.skeleton is not None else {}
        told += [
            AskAnswer(
                question=answer.question,
                answer=answer.answer,
                videos=named or [*dict.fromkeys(span.video for span in context.spans)],
                segments=context.spans,
                timings={
                    **found,
                    "load": context.load_seconds,
                    "prefill": answer.prefill_seconds,
                    "decode": answer.decode_seconds,
                },
                clock=clock,
                evidence=evidence,
                skeleton=context.skeleton,
                whole_segments=context.whole_segments,
            )
            for answer, evidence in zip(answers, rests, strict=True)
        ]
    return told


def scope_of(
    stage: "ReasonStage",
    videos: Sequence[str] | None,
    start: float | str | None,
    end: float | str | None,
    last: float | None,
) -> "Scope":
    """What is asked about: ids, or None for all of a store, and a window as for `ask`.

    Raises `InputError` where a store holds nothing to read, or for an empty window.
    """
    from vococache.pipeline.live.parts import spans_of
    from vococache.storage.reading import READABLE
    from vococache.workers.focus import Scope

    if videos is None:
        listed = [info for info in stage.store.list() if info.status in READABLE]
        if not listed:
            raise InputError(f"store {stage.store.url} holds no complete video")
        if start is end is last is None:  # one listing instead of a look at each
            return Scope({info.id: (0, info.segments) for info in listed})
        videos = [info.id for info in listed]
    spans = [span for video in videos for span in spans_of(stage, video, start, end, last)]
    return Scope.of(spans)


def fits(stage: "ReasonStage", segments: int, tokens: int, room: int, *, whole: bool) -> bool:
    """Are all of so many segments read, with a text of `room` positions? So too where no index says what matters.

    `whole`: yes, whatever comes of it.
    """
    return whole or segments * tokens + room <= stage.limit or stage.store.header.index is None


def room_for(
    stage: "ReasonStage", questions: Sequence[str], max_new_tokens: int, history: Sequence[tuple[str, str]] = ()
) -> int:
    """Positions that the longest of these questions and its answer take."""
    from vococache.workers.reason import question_ids

    return max(len(question_ids(stage.model, question, history)) for question in questions) + max_new_tokens


def load(
    stage: "ReasonStage",
    scope: "Scope",
    questions: Sequence[str],
    read: ReadOptions,
    history: Sequence[tuple[str, str]] = (),
) -> "Context":
    """A scope's segments for questions: all of them where they fit, else what matters to the first question."""
    from vococache.workers.focus import focus, load_focus

    room = room_for(stage, questions, read.max_new_tokens, history)
    if read.find is None and fits(stage, scope.segments, stage.check_tokens(read.tokens), room, whole=read.whole):
        spans = scope.spans or [stage.span(video, *bound) for video, bound in scope.bounds.items()]
        return stage.load_spans(spans, tokens=read.tokens, room=room)
    return load_focus(stage, focus(stage, scope, questions[0], tokens=read.tokens, room=room, find=read.find))


def chat(stage: "ReasonStage", videos: Sequence[str] | None, questions: Iterator[str], **options: Any) -> Iterator[str]:
    """Answers to `questions` as they come: one conversation, over one cache that is loaded and placed once.

    Where that does not fit the context, each question has what matters to it; where it does not fit any more, as the
    conversation has grown, fewer segments are read whole. Arguments as for `ask`.
    """
    read = ReadOptions(**options)
    named = None if videos is None else [video_id(text) for text in videos]
    scope = scope_of(stage, named, read.start, read.end, read.last)
    history: list[tuple[str, str]] = []
    context: Context | None = None

    def room(question: str) -> int:
        return room_for(stage, [question], read.max_new_tokens, history)

    for question in questions:
        is_short = context is not None and context.whole_segments and context.positions + room(question) > stage.limit
        if context is None or is_short or (context.skeleton is not None and read.find is None):
            context = load(stage, scope, [question], read, history)
        (answer,) = stage.answer(
            context, [question], max_new_tokens=read.max_new_tokens, sampling=read.sampling, history=history
        )
        history.append((question, answer.answer))
        yield answer.answer


def video_id(text: str) -> str:
    """The id in a store that `text` stands for: an id, or the path of a file that was ingested."""
    from vococache.storage import safe_key

    return safe_key(PurePath(text).stem) if "/" in text else text


def check_window(start: float | str | None, end: float | str | None) -> None:
    """Refuse a window that ends before it starts, before anything is loaded; one of moments is looked at later."""
    if isinstance(start, float | int) and isinstance(end, float | int) and start > end:
        raise InputError(f"the window starts at {start:g} s, after its end at {end:g} s")
