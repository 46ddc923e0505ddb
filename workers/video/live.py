"""The chosen frames of a live stream, as they come. Runs in the decoder child; free of torch."""

import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av

from vococache.errors import VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.video.live_clock import Begins, Grid, LiveClock
from vococache.workers.video.live_input import SILENCE_SECONDS, Input, open_input, reason_of
from vococache.workers.video.picture import Presentation, rgb, view_of

REPEATED_SECONDS = 60.0  # of what came last: so much of it a new connection may repeat
SEAM_PACKETS = 2  # at most, from one that is flagged to the keyframe that tells that nothing is missing
TIMED_LATE = ("rtsp", "sdp", "rtp")  # their first pictures come before it is known when they are shown
USUAL_RATE, MOST_RATE = 25, 240  # frames a second, of what does not say, or claims nonsense
ARRIVAL_BASE = Fraction(1, 1_000_000)  # seconds, of times that are those of arrival
RETRIES = 10_000  # of a read that gave nothing


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A frame that is kept. Seconds since the epoch: its `moment`, and when it `arrived`.

    `number`: its place among all that this connection showed. `begins`: why it does not follow the one before.
    """

    moment: float
    arrived: float
    number: int
    begins: Begins | None
    pixels: Frame


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a file's frames were kept up to: frame `number` was of `moment`, and all up to `until` are there."""

    number: int
    moment: float
    until: float


@dataclass
class LiveStream:
    """One source over all its connections. Raises `VideoError` where one cannot be made, or breaks."""

    source: str
    fps: float
    geometry: FrameGeometry
    max_pixels: int
    beat: Callable[[], None]
    pipe: int | None = None
    is_over: bool = False  # has the source itself ended?
    _clock: LiveClock = field(init=False)
    _grid: Grid = field(init=False)
    _seen: OrderedDict[tuple[int, int], float] = field(default_factory=OrderedDict)  # packets, and when they came

    def __post_init__(self) -> None:
        self._clock, self._grid = LiveClock(), Grid(self.fps)

    def connect(self, floor: float, resume: Resume | None = None) -> Iterator[LiveFrame]:
        """The frames of one connection, until it ends. `floor`: none is of an earlier moment."""
        self._clock.floor = floor
        opened = open_input(self.source, self.beat, pipe=self.pipe, again=bool(self._seen))
        try:
            yield from self._frames(opened, resume)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(reason_of(error)) from None
        finally:
            self.is_over = opened.is_over
            with suppress(av.FFmpegError, VideoError):
                opened.container.close()

    def _frames(self, opened: Input, resume: Resume | None) -> Iterator[LiveFrame]:
        stream = _video(opened.container)
        context = stream.codec_context
        if context.width * context.height > self.max_pixels:
            raise VideoError(f"frames of {context.width} x {context.height} pixels, more than {self.max_pixels}")
        context.options = {"max_pixels": str(self.max_pixels), "err_detect": "explode"}  # else torn pictures are shown
        context.thread_count = 1  # a thread more is a frame of delay, and many sources share the cores
        context.copy_opaque = True
        base = stream.time_base if opened.has_times else ARRIVAL_BASE
        self._clock.connect(opened.container.format.name, base)
        view, shape, last = Presentation(), None, 0
        usual = max(1, round(1 / min(stream.average_rate or USUAL_RATE, MOST_RATE) / base))
        is_timed = opened.container.format.name not in TIMED_LATE
        for number, (frame, arrived, repeated) in enumerate(self._decoded(opened, stream)):
            is_timed = is_timed or frame.pts is not None
            if not is_timed:
                continue
            pts = last = last + usual if frame.pts is None else frame.pts
            if not opened.has_times:
                pts = round(arrived / ARRIVAL_BASE)
            if repeated:
                self._clock.overlaps()
                continue
            begins: Begins | None
            if resume is not None and number <= resume.number:
                if number == resume.number:
                    self._clock.set(pts, resume.moment)
                    self._grid.begin(resume.moment)
                    self._grid.takes(resume.moment)
                continue
            if number == 0 and opened.span:  # of a file: its last frame is as old as its last change
                arrived = opened.changed - opened.span
            moment, begins = self._clock.place(pts, arrived)
            if begins is not None:
                self._grid.begin(moment)
            if not self._grid.takes(moment) or (resume is not None and moment <= resume.until):
                continue
            if resume is not None:
                begins, resume = "reconnect", None
            now = frame.width, frame.height, frame.rotation
            if now != shape:
                shape, view = now, view_of(stream, frame, context.sample_aspect_ratio)
            yield LiveFrame(moment, arrived, number, begins, self.geometry.apply(view.apply(rgb(frame))))

    def _decoded(self, opened: Input, stream: Any) -> Iterator[tuple[Any, float, bool]]:
        """Frames as they are shown, when their packets arrived, and whether a connection before had them."""
        context, is_lost, overlaps = stream.codec_context, True, bool(self._seen)
        for packet, is_behind_loss in _weighed(self._packets(opened, stream)):
            is_lost = is_lost or is_behind_loss
            if packet is not None:
                if is_lost and not packet.is_keyframe:
                    continue  # nothing can be shown up to the next keyframe
                if is_lost:
                    with suppress(av.FFmpegError):
                        context.flush_buffers()
                is_lost = False
                overlaps = opened.has_times and self._remember(packet) and overlaps
                packet.opaque = time.time(), overlaps
            try:
                for frame in context.decode(packet):
                    if not frame.is_corrupt:
                        yield frame, *(frame.opaque or (time.time(), False))
            except av.FFmpegError:
                is_lost = True

    def _packets(self, opened: Input, stream: Any) -> Iterator[Any]:
        """The stream's packets, and None behind the last one."""
        heard = time.monotonic()
        for _ in range(RETRIES):
            try:
                for packet in opened.container.demux():
                    self.beat()
                    if packet.stream.index == stream.index and packet.size:
                        heard = time.monotonic()
                        yield packet
                    elif time.monotonic() - heard > SILENCE_SECONDS:
                        raise VideoError(f"no picture came for {SILENCE_SECONDS:g} s")
                break
            except av.error.BlockingIOError:
                self.beat()
            except IndexError:  # a stream that was not there at the start: of another programme
                continue
        yield None

    def _remember(self, packet: Any) -> bool:
        """Did this packet come before?"""
        if packet.pts is None:
            return False
        key = packet.pts, zlib.crc32(packet)
        known, now = key in self._seen, time.monotonic()
        self._seen.setdefault(key, now)
        while next(iter(self._seen.values())) < now - REPEATED_SECONDS:
            self._seen.popitem(last=False)
        return known


def _weighed(packets: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Packets, and whether something is missing before each; None is the end.

    Where a count breaks off, FFmpeg flags the packet before the one at which it does, as parsers lag behind. Right
    before a keyframe this is no damage, but the seam of two segments, each with a count of its own.
    """
    held: list[Any] = []
    is_behind_loss = False
    for packet in packets:
        if packet is not None and not packet.is_keyframe and (held or packet.is_corrupt):
            held.append(packet)
            if len(held) > SEAM_PACKETS:
                held, is_behind_loss = [], True
            continue
        yield from ((each, is_behind_loss) for each in held)
        held = []
        yield packet, is_behind_loss
        is_behind_loss = False


def _video(container: Any) -> Any:
    """The stream of the most pixels."""
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not streams:
        raise VideoError("no video stream that can be decoded")
    return max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
