"""Questions over precomputed caches: no video is opened, no pixel touched."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vococache.errors import InputError
from vococache.workers.spans import SegmentSpan

if TYPE_CHECKING:
    from vococache.workers.reason import Context, ReasonStage

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AskAnswer:
    """One answer: which segments it was read from, and seconds of load, prefill and decode.

    Several questions are answered in one pass, so its seconds are those of the pass.
    """

    question: str
    answer: str
    videos: list[str]
    segments: list[SegmentSpan]
    timings: dict[str, float]
    clock: tuple[str, str] | None = None  # of a live source: when its first and last frame were, in local time

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `clock` only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "clock" or value is not None}


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
    videos: str | Sequence[str],
    questions: str | Sequence[str],
    *,
    start: float | str | None = None,
    end: float | str | None = None,
    last: float | None = None,
    tokens: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> list[AskAnswer]:
    """Answer `questions` about `videos` from a store, all in one pass over the same cached segments.

    `videos`: ids as `voco ls` tells them, the paths of files that were ingested, or ids of live sources.
    `store`: a path or URL, or `open_reader`'s result, which keeps the model loaded. Several videos are read one
    after the other as one context. `start`, `end`: seconds, of each video; of a live source moments, as "17:05".
    `last`: only the last so many seconds of what is stored. `tokens`: read only the first so many VoCo tokens of each
    segment. `temperature` 0 is greedy. `model`, `dtype`, `device`: as in `open_reader`.

    Raises `InputError` for an empty question or window, `ContextLimitError` where cache and question are too
    long, `VideoNotFoundError` (which names the nearest ids) and `CorruptionError` where stored bytes changed.
    """
    from vococache.model.generate import GenerationOptions
    from vococache.pipeline.live.parts import clock_of
    from vococache.workers.reason import question_ids

    asked = [questions] if isinstance(questions, str) else list(questions)
    named = [videos] if isinstance(videos, str) else list(videos)
    if not asked or not named:
        raise InputError("expected at least one video and one question")
    check_window(start, end)
    named = [video_id(text) for text in named]
    if isinstance(store, str | os.PathLike):
        stage = open_reader(store, model=model, dtype=dtype, device=device)
    else:
        stage = store
    sampling = GenerationOptions(temperature=temperature, top_p=top_p, seed=seed)
    room = max(len(question_ids(stage.model, question)) for question in asked) + max_new_tokens
    context = _load(stage, named, start, end, last, tokens, room)
    answers = stage.answer(context, asked, max_new_tokens=max_new_tokens, sampling=sampling)
    clock = clock_of(stage.store, context.spans)
    return [
        AskAnswer(
            question=answer.question,
            answer=answer.answer,
            videos=named,
            segments=context.spans,
            timings={
                "load": context.load_seconds,
                "prefill": answer.prefill_seconds,
                "decode": answer.decode_seconds,
            },
            clock=clock,
        )
        for answer in answers
    ]


def chat(
    stage: "ReasonStage",
    videos: Sequence[str],
    questions: Iterator[str],
    *,
    start: float | str | None = None,
    end: float | str | None = None,
    last: float | None = None,
    tokens: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Answers to `questions` as they come: one conversation over one cache that is loaded and placed once."""
    check_window(start, end)
    context = _load(stage, [video_id(text) for text in videos], start, end, last, tokens, max_new_tokens)
    from vococache.model.generate import GenerationOptions

    sampling = GenerationOptions(temperature=temperature, top_p=top_p, seed=seed)
    history: list[tuple[str, str]] = []
    for question in questions:
        (answer,) = stage.answer(context, [question], max_new_tokens=max_new_tokens, sampling=sampling, history=history)
        history.append((question, answer.answer))
        yield answer.answer


def _load(
    stage: "ReasonStage", videos: Sequence[str], start: float | str | None, end: float | str | None,
    last: float | None, tokens: int | None, room: int,
) -> "Context":  # fmt: skip
    """The segments that are asked about, placed for reading; refused before they are read where they leave no room."""
    from vococache.pipeline.live.parts import spans_of

    started = time.perf_counter()
    k = stage.check_tokens(tokens)
    spans = [span for video in videos for span in spans_of(stage, video, start, end, last)]
    stage.check_room(spans, k, room)
    context = stage.place(spans, k)
    context.load_seconds = time.perf_counter() - started
    return context


def video_id(text: str) -> str:
    """The id in a store that `text` stands for: an id, or the path of a file that was ingested."""
    from vococache.storage import safe_key

    return safe_key(PurePath(text).stem) if "/" in text else text


def check_window(start: float | str | None, end: float | str | None) -> None:
    """Refuse a window that ends before it starts, before anything is loaded; one of moments is looked at later."""
    if isinstance(start, float | int) and isinstance(end, float | int) and start > end:
        raise InputError(f"the window starts at {start:g} s, after its end at {end:g} s")
