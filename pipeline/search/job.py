"""Search: which seconds of which videos show what a text says."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vococache.errors import InputError
from vococache.pipeline.ask import check_window, open_reader, scope_of, video_id
from vococache.pipeline.selection import meets

if TYPE_CHECKING:
    from vococache.workers.finding import Window
    from vococache.workers.reason import ReasonStage

READ = 200  # windows that are read, of those that the index puts first


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundWindow:
    """Seconds `start` to `end` of a video. `score`: how likely they show what was searched, as the model reads them.

    Where nothing was read, the score is the index's: higher is better, and it says no more.
    """

    video: str
    start: float
    end: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Windows, best first; seconds of both steps; how many segments were looked at, and how many windows were read."""

    windows: list[FoundWindow]
    timings: dict[str, float]
    segments: int
    read: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def search(
    store: "str | os.PathLike[str] | ReasonStage",
    text: str,
    *,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> list[FoundWindow]:
    """The windows of a store that show what `text` says, best first, neighbours merged.

    `text`: a description, or a question that is answered yes where it is true. `store`, `model`, `dtype`, `device`: as
    in `vococache.ask`. `options`: those of `vococache.pipeline.search.job.find`: which videos, what part, how many.

    Raises `InputError` for an empty text, `VideoNotFoundError`, `StoreError` where the store has no index,
    `CorruptionError` where stored bytes changed.
    """
    if isinstance(store, str | os.PathLike):
        store = open_reader(store, model=model, dtype=dtype, device=device)
    return find(store, text, **options).windows


def find(
    stage: "ReasonStage",
    text: str,
    *,
    videos: Sequence[str] | None = None,
    where: Mapping[str, str] | None = None,
    start: float | str | None = None,
    end: float | str | None = None,
    last: float | None = None,
    top: int = 10,
    read: bool = True,
) -> SearchResult:
    """`search` with a loaded model, and what it took.

    `videos`: ids, or paths of files that were ingested, or ids of live sources; by default all. `start`, `end`, `last`:
    only this part of each, as for `ask`. `where`: only videos of which a manifest says this. `top`: at most this many
    windows. `read`: rank those that the index puts first by reading them.
    """
    from vococache.workers import finding

    if top < 1:
        raise InputError(f"expected at least one window, asked for {top}")
    question = finding.as_question(stage.model, text)
    check_window(start, end)
    named = None if videos is None else list(dict.fromkeys(map(video_id, videos)))
    bounds: Mapping[str, tuple[int, int]] = {}
    if named is not None or not start is end is last is None:
        bounds = scope_of(stage, named, start, end, last).bounds
        named = [*bounds]
    wanted = (lambda info: meets(info.metadata, where)) if where else None
    scores = finding.score_segments(stage, question, wanted=wanted, videos=named)
    started = time.perf_counter()
    if bounds:
        scores = replace(scores, videos={video: own[slice(*bounds[video])] for video, own in scores.videos.items()})
    length = finding.readable_segments(stage, question)
    found = finding.best_windows(scores, length, max(READ, top) if read else top)
    windows = [_from_start(window, bounds) for window in found]
    chosen = time.perf_counter()
    if read:
        windows = merged(finding.read_windows(stage, windows, question), length // 2)
    told = [_in_seconds(stage, window, read) for window in windows[:top]]
    timings = {"index": scores.seconds + chosen - started, "read": time.perf_counter() - chosen}
    return SearchResult(windows=told, timings=timings, segments=scores.segments, read=len(windows) if read else 0)


def _from_start(window: "Window", bounds: Mapping[str, tuple[int, int]]) -> "Window":
    """A window of the part of its video that was looked at, as one of the whole video."""
    first, _ = bounds.get(window.video, (0, 0))
    return replace(window, start=first + window.start, stop=first + window.stop)


def merged(windows: Sequence["Window"], gap: int) -> list["Window"]:
    """Windows, best first; neighbours that are rather true than not (odds above 0), at most `gap` apart, are one."""
    in_order = sorted(windows, key=lambda window: (window.video, window.start))
    return sorted(_joined(in_order, gap), key=lambda window: -window.score)


def _joined(windows: Sequence["Window"], gap: int) -> Iterator["Window"]:
    from vococache.workers.finding import Window

    last: Window | None = None
    for window in windows:
        if last is not None:
            near = window.video == last.video and window.start - last.stop <= gap
            if near and min(window.score, last.score) > 0:
                window = Window(last.video, last.start, window.stop, max(last.score, window.score))
            else:
                yield last
        last = window
    if last is not None:
        yield last


def _in_seconds(stage: "ReasonStage", window: "Window", read: bool) -> FoundWindow:
    """A window's seconds: from its first frame to the one behind it, or the video's end."""
    from vococache.workers.evidence import segment_end

    times = stage.store.timestamps(window.video)
    end = float(times[window.stop, 0]) if window.stop < len(times) else segment_end(stage, window.video, times)
    score = float(1 / (1 + np.exp(-window.score))) if read else window.score
    return FoundWindow(video=window.video, start=float(times[window.start, 0]), end=end, score=score)
