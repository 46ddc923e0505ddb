"""The parts of a live source in a store: `ID.2026-11-26T17`; `ID.2026-11-26T17.05.30` where one began within an hour.

An id is one name in a folder, hence the dot; hours are UTC. Which source a part belongs to, and when its first frame
was, is said by its metadata. Free of torch.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vococache.errors import InputError, VideoNotFoundError
from vococache.pipeline.live.clock import moment, name_of, place_in_hour, shown
from vococache.storage.reading import READABLE

if TYPE_CHECKING:
    from vococache.storage import StoreReader, VideoInfo
    from vococache.workers.reason import ReasonStage
    from vococache.workers.spans import SegmentSpan

_HOUR = re.compile(r"\.\d{4}-\d\d-\d\dT\d\d(\.\d\d)*")
ROUNDING_SECONDS = 1e-4  # of moments, which are floats of the epoch


@dataclass(frozen=True, slots=True)
class LivePart:
    """A stored part. Seconds since the epoch: `start` of its first frame, `end` of its last so far."""

    video: str
    start: float
    end: float
    info: "VideoInfo"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockWindow:
    """A stretch of a live source: from `start` to `end` (seconds since the epoch), or the `last` seconds."""

    start: float | None = None
    end: float | None = None
    last: float | None = None


def part_id(live: str, begins: float, is_taken: Callable[[str], bool]) -> str:
    """A name for the part of a source that begins at this moment."""
    name = f"{live}.{name_of(begins)}"
    if not is_taken(name):
        return name
    name += f".{place_in_hour(begins)}"
    number, candidate = 1, name
    while is_taken(candidate):
        number += 1
        candidate = f"{name}.{number:02}"
    return candidate


def part_of(info: "VideoInfo | None", live: str) -> LivePart | None:
    """A store's row as a part of a source; None where it is none that can be read."""
    about = (info.metadata if info is not None else None) or {}
    start = about.get("started")
    if info is None or info.status not in READABLE or about.get("live") != live or not isinstance(start, int | float):
        return None
    return LivePart(info.id, float(start), float(start) + (info.duration or 0.0), info)


def names_of(store: "StoreReader", live: str) -> list[str]:
    """The names that parts of a source may have, by time."""
    return [name for name in store.ids() if name.startswith(f"{live}.") and _HOUR.fullmatch(name, len(live))]


def newest_first(store: "StoreReader", live: str) -> Iterator[LivePart]:
    """The parts of a source; each document is read when its turn comes."""
    for name in reversed(names_of(store, live)):
        if (part := part_of(store.find(name), live)) is not None:
            yield part


def newest_part(store: "StoreReader", video: str) -> LivePart | None:
    """The newest part of the live source of this id; None where it is a video's, or nobody's."""
    return next(newest_first(store, video), None) if store.find(video) is None else None


def within(store: "StoreReader", live: str, window: ClockWindow) -> list[LivePart]:
    """The parts of a source that reach into a window, oldest first, and the window's own edge in the last of them.

    Raises `VideoNotFoundError` where the source has no part, `InputError` where none reaches into the window.
    """
    parts = newest_first(store, live)
    newest = next(parts, None)
    if newest is None:
        raise VideoNotFoundError(f"no live source {live!r} in {store.url}: `voco ls {store.url}` lists what is there")
    start, end = bounds(newest, window)
    found, oldest = [newest] if newest.start <= end else [], newest
    for part in parts:
        if oldest.start <= start:
            break
        oldest = part
        if part.start <= end:
            found.append(part)
    found = [part for part in found if part.end >= start]
    if not found:
        raise InputError(f"live source {live!r} has nothing in that window: it ends {shown(newest.end)}")
    return found[::-1]


def bounds(newest: LivePart, window: ClockWindow) -> tuple[float, float]:
    """First and last moment of a window. The last seconds are counted from the newest frame on."""
    if window.last is not None:
        return newest.end - window.last, float("inf")
    return (
        float("-inf") if window.start is None else window.start,
        float("inf") if window.end is None else window.end,
    )


def select_spans(stage: "ReasonStage", live: str, window: ClockWindow) -> "list[SegmentSpan]":
    """The segments of a window, part by part. Raises as `within`."""
    parts = within(stage.store, live, window)
    start, end = bounds(parts[-1], window)
    found = []
    for part in parts:
        try:
            first, final = start - part.start - ROUNDING_SECONDS, end - part.start + ROUNDING_SECONDS
            found.append(stage.select(part.video, first, final))
        except InputError:  # the window touches a part between two of its frames
            continue
    if not found:
        raise InputError(f"live source {live!r} has no frame in that window")
    return found


def spans_of(
    stage: "ReasonStage", video: str, start: float | str | None, end: float | str | None, last: float | None
) -> "list[SegmentSpan]":
    """The segments that are meant by a video, or a live source, and a window of it.

    `start`, `end`: seconds; of a live source, or one of its parts, moments, as "17:05". `last`: the last so many
    seconds. Raises `InputError` for a window of another kind, or an empty one.
    """
    if last is not None and not (start is None and end is None):
        raise InputError("expected --last or --start and --end, found both")
    newest = newest_part(stage.store, video)
    if newest is not None:
        window = ClockWindow(start=_moment(start, newest.end), end=_moment(end, newest.end), last=last)
        if window.start is not None and window.end is not None and window.start > window.end:
            raise InputError(f"the window starts at {start}, after its end at {end}")
        return select_spans(stage, video, window)
    if last is not None:
        return [stage.select(video, max(0.0, (stage.store.info(video).duration or 0.0) - last), None)]
    if isinstance(start, str) or isinstance(end, str):
        info = stage.store.info(video)
        part = part_of(info, str((info.metadata or {}).get("live")))
        if part is None:
            raise InputError(f"video {video!r} has no clock: expected --start and --end in seconds")
        first, final = _moment(start, part.end), _moment(end, part.end)
        start, end = (None if each is None else each - part.start for each in (first, final))
    return [stage.select(video, start, end)]


def clock_of(store: "StoreReader", spans: "Sequence[SegmentSpan]") -> tuple[str, str] | None:
    """When the first and last frame of spans were, as people write it; None of other videos than parts."""
    first, last = spans[0], spans[-1]
    begun, ended = ((store.info(span.video).metadata or {}).get("started") for span in (first, last))
    if not isinstance(begun, float) or not isinstance(ended, float):
        return None
    return shown(begun + first.start_time), shown(ended + last.end_time)


def _moment(text: float | str | None, near: float) -> float | None:
    if isinstance(text, float | int):
        raise InputError(f"{text:g}: of a live source expected a time such as 17:05, or --last 60s")
    return None if text is None else moment(text, near)


def edge_of(store: "StoreReader", video: str) -> tuple[str, int]:
    """What changes when more of a live source, or of a video, can be asked about."""
    part = newest_part(store, video)
    info = store.info(video) if part is None else part.info
    return info.id, info.segments
