"""A video file as both decoders see it: one stream, its packets, their times, and pieces of it.

Everything on which the decoders must agree is decided here: which stream, when it starts and ends, which packets
are shown. Runs in the decoder child; free of torch.
"""

import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.stream import Disposition

from vococache.errors import VideoError

# A piece is what decord is given at once (see docs/design/0003-decoding.md): whole groups of pictures.
PIECE_PACKETS = 240
PIECE_BYTES = 256 << 20


@dataclass
class Clock:
    """Presentation times in seconds from the first frame shown, of a stream that counts in `base` seconds."""

    base: Fraction
    rate: Fraction | None
    start: int | None = None
    last: int = 0
    gaps: Counter[int] = field(default_factory=Counter)

    def tick(self, pts: int) -> float:
        """Note that the frame of `pts` is shown, in presentation order; its time."""
        if self.start is None:
            self.start = pts
        elif pts > self.last:
            self.gaps[pts - self.last] += 1
        self.last = pts
        return self.time(pts)

    def time(self, pts: int) -> float:
        """Seconds from the start."""
        return float((pts - (self.start or 0)) * self.base)

    def end(self, shown_for: int) -> float:
        """The duration; where it is unknown for how long the last frame is shown, the median distance of frames."""
        return self.time(self.last + (shown_for if shown_for > 0 else self._usual_gap()))

    def _usual_gap(self) -> int:
        seen = 0
        for gap, count in sorted(self.gaps.items()):
            seen += count
            if 2 * seen >= self.gaps.total():
                return gap
        return max(1, round(1 / (self.rate or Fraction(25)) / self.base))


@dataclass
class Piece:
    """Consecutive groups of pictures, decodable on their own.

    `packets` in decoding order with their times; frames from `until` on are shown by the next piece.
    """

    packets: list[tuple[int, Any]]
    until: int | None


class Video:
    """The best video stream of a file, opened with PyAV. Raises `VideoError` with a short reason.

    `beat` is called for every packet read: a sign of life on long stretches without a chosen frame.
    """

    def __init__(self, path: str, *, max_pixels: int, beat: Callable[[], None] = lambda: None) -> None:
        check_file(path)
        self._path = path
        self._beat = beat
        try:
            # Only local files: a playlist must not make us read others, let alone the network.
            self._container: Any = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError) as error:
            raise VideoError(_reason(error)) from None
        self.stream = self._best_stream()
        self.context = self.stream.codec_context
        if _pixels(self.context) > max_pixels:
            size = f"{self.context.width} x {self.context.height}"
            raise VideoError(f"frames of {size} pixels are larger than the limit of {max_pixels} pixels")
        self.context.options = {"max_pixels": str(max_pixels)}
        self._first_key: int | None = None
        self._last: tuple[int, int] = (0, 0)  # pts and duration of the packet shown last
        # AVI counts packets in decoding order and keeps no presentation times; what FFmpeg guesses is out of order
        # where there are B-frames. Packets' places are right: the next frame that is shown takes the next one.
        self._untimed: deque[int] | None = deque() if self._container.format.name == "avi" else None
        self.clock = self.new_clock()
        self._check_whole()

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def new_clock(self) -> Clock:
        """A clock that has not started."""
        return Clock(self.stream.time_base, self.stream.average_rate)

    @property
    def claimed_duration(self) -> float | None:
        """Seconds, as the container claims; None where it does not say."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        if not self._container.duration:
            return None
        late = float((self.stream.start_time or 0) * self.stream.time_base) if self._counts_from_0() else 0.0
        return max(0.0, float(self._container.duration / av.time_base) - late)

    def packets(self) -> Iterator[Any]:
        """Packets from the first keyframe on, in decoding order. A broken one raises `VideoError`."""
        try:
            for packet in self._container.demux(self.stream):
                self._beat()
                if packet.size == 0 or (self._first_key is None and not packet.is_keyframe):
                    continue
                if packet.is_corrupt:
                    raise VideoError(f"a broken packet at byte {packet.pos}")
                if self._untimed is not None:
                    packet.pts, packet.duration = packet.dts, 0
                    self._untimed.append(packet.dts)
                if self._first_key is None:
                    self._first_key = packet.pts if packet.pts is not None else packet.dts
                if packet.pts is not None and packet.pts >= self._last[0]:
                    self._last = (packet.pts, packet.duration or 0)
                yield packet
        except av.FFmpegError as error:
            raise VideoError(_reason(error)) from None

    def time_of(self, frame: Any) -> int | None:
        """The presentation time of the next decoded frame, in the stream's time base; None where there is none."""
        if self._untimed:
            return self._untimed.popleft()
        time: int | None = frame.pts if frame.pts is not None else frame.dts
        return time

    def shown(self, pts: int) -> bool:
        """Not one of the frames that would need what lies before the first keyframe?"""
        return self._first_key is None or pts >= self._first_key

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last; known when the packets have been read."""
        if self.clock.start is None:
            raise VideoError("no frames")
        return self.clock.end(self._last[1])

    def pieces(self) -> Iterator[Piece]:
        """The stream in pieces for decord. Raises `VideoError` where it cannot be cut."""
        piece: list[tuple[int, Any]] = []
        tail: list[tuple[int, Any]] = []  # the next keyframe, and frames after it that are shown before it
        size = 0
        for packet in self.packets():
            if packet.pts is None:
                raise VideoError("packets without presentation times")
            size += packet.size
            if size > PIECE_BYTES:
                raise VideoError(f"more than {PIECE_BYTES >> 20} MiB between keyframes")
            if tail and packet.pts < tail[0][0]:
                tail.append((packet.pts, packet))
                continue
            if tail:
                yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0])
                piece, tail, size = tail[:1], [], tail[0][1].size + packet.size
            if packet.is_keyframe and len(piece) >= PIECE_PACKETS:
                tail = [(packet.pts, packet)]
            else:
                piece.append((packet.pts, packet))
        if tail:
            yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0])
            piece = tail[:1]
        if piece:
            yield Piece(piece, None)

    def _counts_from_0(self) -> bool:
        """Is a file's duration its last moment, even if its video starts later?"""
        return "matroska" in self._container.format.name

    def _best_stream(self) -> Any:
        """The video stream of most pixels, then of most bits; never cover art.

        decord asks FFmpeg, whose answer changed between versions; this is what both mean by the best.
        """
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError("no video stream")
        streams = [s for s in streams if s.codec_context is not None]
        if not streams:
            raise VideoError("no decoder for the codec of its video stream")
        return max(
            streams, key=lambda s: (s.codec_context.width * s.codec_context.height, s.codec_context.bit_rate or 0)
        )

    def _check_whole(self) -> None:
        """Refuse a file whose end is missing: its frames would simply stop."""
        size = Path(self._path).stat().st_size
        with Path(self._path).open("rb") as file:
            claimed = claimed_size(file.read(64))
        entries = self.stream.index_entries
        if entries is not None and len(entries):
            claimed = max(claimed, entries[-1].pos + entries[-1].size)
        if claimed > size:
            raise VideoError(f"the file is cut off: it has {size} of {claimed} bytes")


def measure(path: str, *, max_pixels: int, beat: Callable[[], None] = lambda: None) -> float:
    """The real duration in seconds, from every packet's time: what the container claims may be wrong."""
    with Video(path, max_pixels=max_pixels, beat=beat) as video:
        times = [
            pts
            for packet in video.packets()
            if (pts := packet.pts if packet.pts is not None else packet.dts) is not None
            and not packet.is_discard
            and video.shown(pts)
        ]
        for pts in sorted(times):
            video.clock.tick(pts)
        return video.duration()


def check_file(path: str) -> None:
    """Raises `VideoError` with what is wrong with a path, if anything is."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise VideoError(_reason(error)) from None
    if stat.S_ISDIR(found.st_mode):
        raise VideoError("a directory, not a file")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise VideoError("an empty file")
    if not os.access(path, os.R_OK):
        raise VideoError("no permission to read it")


def claimed_size(head: bytes) -> int:
    """How long a Matroska or RIFF (AVI) file says that it is, in bytes; 0 where it does not say."""
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if size not in (0, 0xFFFFFFFF) else 0
    at = head.find(b"\x18\x53\x80\x67")  # the Segment element
    if head[:4] != b"\x1a\x45\xdf\xa3" or not 0 < at < len(head) - 12:
        return 0
    width = 9 - head[at + 4].bit_length()
    bits = 7 * width
    size = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << bits) - 1)
    return at + 4 + width + size if size != (1 << bits) - 1 else 0  # all ones: unknown


def _pixels(context: Any) -> int:
    return int(context.width * context.height)


def _reason(error: Exception) -> str:
    """One line for a person."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, av.InvalidDataError):
        return "not a media file, or a damaged one"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
