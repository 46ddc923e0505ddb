"""The parts of a live source in a store: `ID.2026-11-26T17`; `ID.2026-11-26T17.05.30` where one began within an hour.

An id is one name in a folder, hence the dot; hours are UTC. Which source a part belongs to, and when its first frame
was, is said by its metadata. Free of torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vococache.errors import InputError, VideoNotFoundError
from vococache.pipeline.live.clock import is_moment, moment, name_of, place_in_hour
from vococache.storage.reading import READABLE

if TYPE_CHECKING:
    from vococache.storage import Store, VideoInfo
    from vococache.workers.reason import ReasonStage
    from vococache.workers.spans import SegmentSpan


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


def newest_first(store: "Store", live: str) -> Iterator[LivePart]:
    """The parts of a source; each document is read when its turn comes."""
    names = [name for name in store.ids() if name.startswith(f"{live}.")]
    for name in reversed(names):
        if (part := part_of(store.find(name), live)) is not None:
            yield part


def is_live(store: "Store", video: str) -> bool:
    """Is it the id of a live source, of which parts are there, and of no video?"""
    return store.find(video) is None and next(newest_first(store, video), None) is not None


def within(store: "Store", live: str, window: ClockWindow) -> list[LivePart]:
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
        raise InputError(f"live source {live!r} has nothing in that window: it ends at {newest.end:.0f}")
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
            found.append(stage.select(part.video, start - part.start, end - part.start))
        except InputError:  # the window touches a part between two of its frames
            continue
    if not found:
        raise InputError(f"live source {live!r} has no frame in that window")
    return found


def clock_window(newest_end: float, start: str | None, end: str | None, last: float | None) -> ClockWindow:
    """A window as it is written: `start` and `end` as moments. Raises `InputError`."""
    for text in (start, end):
        if text is not None and not is_moment(text):
            raise InputError(f"{text!r}: of a live source expected a time such as 17:05, or --last 60s")
    if last is not None and (start or end):
        raise InputError("expected --last or --start and --end, found both")
    first = None if start is None else moment(start, newest_end)
    final = None if end is None else moment(end, newest_end)
    if first is not None and final is not None and first > final:
        raise InputError(f"the window starts at {start}, after its end at {end}")
    return ClockWindow(start=first, end=final, last=last)
