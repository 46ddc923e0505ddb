"""One source: its frames become chunks of parts, over all connections, for whoever compresses them."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from vococache.errors import StoreError, VideoError
from vococache.model.images import FrameGeometry
from vococache.pipeline.live.clock import hour_of, name_of
from vococache.pipeline.live.growth import GrowingPart, Times, inode_of
from vococache.pipeline.live.parts import part_id
from vococache.pipeline.live.sources import WatchSource
from vococache.storage import Store
from vococache.storage.claims import Claim
from vococache.workers.video.live import LiveFrame, Resume
from vococache.workers.video.live_process import LiveDecoder
from vococache.workers.video.process import Limits

# Of a source that goes on without us so much may wait, and four chunks in any case; beyond it is thinned.
WAITING_SECONDS, MOST_WAITING = 20.0, 4
BACKOFF_SECONDS = (0.5, 30.0)  # between connections: at first, and at most
STORE_WAIT_SECONDS = 5.0  # before a store that failed is tried again
QUIET_SECONDS = 10.0  # without a frame, after which what is there is closed
RELAX_LOAD = 0.4  # below so much of the compressor's time, a thinned source gets twice the frames again
RELAX_SECONDS = 30.0
LATE = 2  # times the latency: a chunk that has waited for longer is closed before it is full

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames that are compressed together; `count`: its place among all that came of its source, kept or not."""

    count: int
    frames: list[LiveFrame]


@dataclass(kw_only=True, slots=True)
class Chunk:
    """Segments of a part. `ends`: the part ends with it; then there may be none. `stride`: of so many one was kept."""

    part: GrowingPart
    segments: list[Segment]
    stride: int = 1
    ends: bool = False

    @property
    def frames(self) -> Frames:
        """[S, F, H, W, 3]; of no segment, an empty array."""
        pictures = [np.stack([frame.pixels for frame in segment.frames]) for segment in self.segments]
        return np.stack(pictures) if pictures else np.empty((0, 0, 0, 0, 3), np.uint8)

    @property
    def times(self) -> Times:
        """[S, F], seconds from the part's first frame, to the microsecond."""
        moments = [[frame.moment for frame in segment.frames] for segment in self.segments]
        return np.round(np.array(moments, np.float64) - self.part.started, 6) + 0.0

    @property
    def arrived(self) -> list[float]:
        """When each segment's last frame did, in seconds since the epoch."""
        return [segment.frames[-1].arrived for segment in self.segments]


@dataclass(kw_only=True)
class Plan:
    """What feeds need to know of the store and the job."""

    store: Store
    geometry: FrameGeometry
    frames_per_segment: int
    latency: float
    fps: float
    limits: Limits
    tell: Callable[[str, str], None]  # a source's id and a line for people
    load: Callable[[], float]  # share of the compressor's time that is taken
    changed: threading.Condition
    stop: threading.Event


@dataclass(kw_only=True)
class Feed:
    """Reads one source in a thread of its own."""

    source: WatchSource
    plan: Plan
    claim: Claim
    pipe: int | None = None
    edge: float = 0.0  # the end of what was kept, seconds since the epoch
    resume: Resume | None = None
    waiting: deque[Chunk] = field(default_factory=deque)
    stride: int = 1  # of the segments, every so manieth is kept
    connections: int = 0
    frames: int = 0
    is_done: bool = False
    taken_by: str | None = None  # another watch
    error: BaseException | None = None
    _part: GrowingPart | None = None
    _group: list[LiveFrame] = field(default_factory=list)
    _segments: list[Segment] = field(default_factory=list)
    _count: int = 0  # of segments that came
    _pace: int | None = None  # segments of a chunk, where a source shows fewer than it should
    _heard: float = field(default_factory=time.monotonic)
    _set: float = 0.0  # when the stride was
    _trouble: str = ""
    _names: set[str] = field(default_factory=set)  # of the parts of this hour, which may not be stored yet

    @property
    def fps(self) -> float:
        return self.source.fps or self.plan.fps

    @property
    def chunk_segments(self) -> int:
        """Segments of a chunk: as many as come within the latency, at least one."""
        fitting = int(self.plan.latency * self.fps / self.plan.frames_per_segment + 1e-6)
        return max(1, min(fitting, self.plan.store.header.chunk_segments, self._pace or fitting))

    def is_ending(self) -> bool:
        """Is nothing more to be read?"""
        return self.taken_by is not None or self.plan.stop.is_set()

    def leave(self, other: str) -> None:
        """End, as another watch has the source now."""
        self.taken_by = other
        self.plan.tell(self.source.id, f"another watch ({other}) has taken it over: this one leaves it")

    def run(self) -> None:
        """Read until the source is over, or the job."""
        try:
            self._run()
        except Exception as error:  # ends the job, which says so
            self.error = error
        finally:
            with self.plan.changed:
                self.is_done = True
                self.plan.changed.notify_all()

    def _run(self) -> None:
        wait, stop = BACKOFF_SECONDS[0], self.plan.stop
        limits = self.plan.limits
        with LiveDecoder(self.source.source, self.fps, self.plan.geometry, limits=limits, pipe=self.pipe) as decoder:
            while not self.is_ending():
                before, trouble = self.frames, "it ended"
                try:
                    for frame in decoder.connect(floor=self.edge, resume=self.resume):
                        if self.is_ending():
                            break
                        if frame is None:
                            self._close_if_quiet()
                        else:
                            self._add(frame)
                except VideoError as error:
                    trouble = str(error)
                self._end_part()
                if decoder.is_over or self.is_ending():
                    return
                if self.frames > before:
                    wait, self.resume, self._trouble = BACKOFF_SECONDS[0], None, ""
                if not self._trouble:
                    self.plan.tell(self.source.id, f"{trouble}; connecting again until it comes back")
                self._trouble = trouble
                stop.wait(wait * random.uniform(0.8, 1.2))
                wait = min(2 * wait, BACKOFF_SECONDS[1])

    def _add(self, frame: LiveFrame) -> None:
        """A frame that is kept."""
        part, self._heard = self._part, time.monotonic()
        is_late = not frame.begins and self._is_late(frame)
        if is_late:  # as of a source that shows fewer frames than are wanted
            self._pace = max(1, len(self._segments) // LATE)
        elif frame.begins:
            self._pace = None
        if part is None or frame.begins or hour_of(frame.moment) != part.hour or part.is_lost or is_late:
            self._end_part()
            part = self._begin(frame, part)
        if frame.begins:
            self.connections += frame.begins in ("start", "reconnect")
            if self._trouble:
                self.plan.tell(self.source.id, f"back after {part.gap:.1f} s")
                self._trouble = ""
        self.frames += 1
        self.edge = frame.moment + 1 / self.fps
        self._group.append(frame)
        if len(self._group) == self.plan.frames_per_segment:
            self._close_segment()

    def _is_late(self, frame: LiveFrame) -> bool:
        """Has the open chunk waited for too long? One of a source that is thinned takes its time."""
        if self._part is None or self._part.chunk_segments == 1:
            return False
        first = self._segments[0].frames[0] if self._segments else self._group[0] if self._group else frame
        return frame.moment - first.moment > LATE * self.plan.latency * self.stride

    def _close_segment(self) -> None:
        group, self._group = self._group, []
        group += [group[-1]] * (self.plan.frames_per_segment - len(group))  # the last one is filled up
        if self._count % self.stride == 0:
            self._segments.append(Segment(self._count, group))
        self._count += 1
        if len(self._segments) == self.chunk_segments:
            self._hand_over(ends=False)

    def _begin(self, frame: LiveFrame, before: GrowingPart | None) -> GrowingPart:
        gap = max(0.0, frame.moment - self.edge) if self.edge else 0.0
        started = round(frame.moment, 6)
        after = "silence"
        if before is not None:
            after = "removal" if before.is_lost else "hour" if hour_of(started) != before.hour else "pace"
        hour = f"{self.source.id}.{name_of(started)}"
        self._names = {name for name in self._names if name.startswith(hour)}
        name = part_id(self.source.id, started, self._is_taken)
        self._names.add(name)
        self._part = GrowingPart(
            video=name, live=self.source.id, source=self.source.name, started=started, fps=self.fps,
            chunk_segments=self.chunk_segments, number=frame.number, inode=inode_of(self.source),
            gap=round(gap, 3) if gap > 1e-3 else 0.0, after=frame.begins or after, whole=self.source.whole,
        )  # fmt: skip
        return self._part

    def _is_taken(self, name: str) -> bool:
        """Is there such a part? A store out of reach is asked again: what it has must not be made anew."""
        while not self.is_ending():
            try:
                return name in self._names or self.plan.store.find(name) is not None
            except StoreError:
                self.plan.stop.wait(STORE_WAIT_SECONDS)
        return False

    def _close_if_quiet(self) -> None:
        """What came before a silence can be asked about, though its chunk is not full."""
        longest = max(QUIET_SECONDS, 2 * self.plan.latency, 3 / self.fps)
        if self._part is not None and time.monotonic() - self._heard > longest:
            self._end_part()

    def _end_part(self) -> None:
        part = self._part
        if part is None:
            return
        if self._group:
            self._close_segment()
        self._hand_over(ends=True)
        self._part = None

    def _hand_over(self, *, ends: bool) -> None:
        """Give the open chunk to whoever compresses; a source that does not wait for us is thinned instead."""
        assert self._part is not None
        chunk = Chunk(part=self._part, segments=self._segments, stride=self.stride, ends=ends)
        self._segments, changed = [], self.plan.changed
        with changed:
            while self.source.is_paced and self.waiting and not self.is_ending():
                changed.wait(0.5)
            if chunk.segments or self._is_known(chunk.part):
                self.waiting.append(chunk)
            most = max(MOST_WAITING, int(WAITING_SECONDS / self.plan.latency))
            if sum(bool(each.segments) for each in self.waiting) > most and not self.source.is_paced:
                self._thin()
            changed.notify_all()
        if self.stride > 1:
            self._relax()

    def _thin(self) -> None:
        """Compression cannot keep up: of what waits, and of what comes, every second segment is kept."""
        self.stride, self._set = 2 * self.stride, time.monotonic()
        chunks, self.waiting = self.waiting, deque()
        for _, group in groupby(chunks, key=lambda chunk: id(chunk.part)):
            of_part = list(group)
            kept = [each for chunk in of_part for each in chunk.segments if each.count % self.stride == 0]
            part, ends, size = of_part[0].part, of_part[-1].ends, of_part[0].part.chunk_segments
            while len(kept) >= size:
                self.waiting.append(Chunk(part=part, segments=kept[:size], stride=self.stride))
                del kept[:size]
            if not ends:
                self._segments = kept  # of the part that is open
            elif kept or self._is_known(part):
                self.waiting.append(Chunk(part=part, segments=kept, stride=self.stride, ends=True))
        self.plan.tell(self.source.id, f"compression cannot keep up: one frame of {self.stride} is kept")

    def _is_known(self, part: GrowingPart) -> bool:
        """Has anything of a part been given away, or waits? Else nobody need be told that it ended."""
        return part.is_given or any(chunk.part is part for chunk in self.waiting)

    def _relax(self) -> None:
        if time.monotonic() - self._set > RELAX_SECONDS and self.plan.load() < RELAX_LOAD:
            self.stride, self._set = self.stride // 2, time.monotonic()
            kept = "all frames are" if self.stride == 1 else f"one frame of {self.stride} is"
            self.plan.tell(self.source.id, f"compression keeps up again: {kept} kept")
