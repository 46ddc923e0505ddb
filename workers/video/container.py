"""A video file as both decoders see it: one stream, its packets, their times, and pieces of it.

Everything on which the decoders must agree is decided here: which stream, when it starts and ends, which packets
are shown. Runs in the decoder child; free of torch.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition

from vococache.errors import VideoError
from vococache.workers.video.clock import Clock, Timeline
from vococache.workers.video.damage import Damage, Sample, check_damage
from vococache.workers.video.formats import DEMUXERS, boxes, what_it_is

# A piece is what decord is given at once (see docs/design/0003-decoding.md): whole groups of pictures.
PIECE_PACKETS = 240
PIECE_BYTES = 256 << 20
HEAD_PACKETS = 32  # looked at before the first time is given
PEEKED_PACKETS = 400  # looked at to tell a film from a still picture, where there are several streams
RETRIES = 10_000  # of a read that gave nothing: each passes over some 64 KiB without a packet

HEADED = ("h264", "hevc", "mpeg1video", "mpeg2video")  # have their parameters in the stream, in some containers
TS_DISCONT = 0x0200  # FFmpeg's mark of containers whose clock may jump: made for broadcast
# Ticks after which a container's clock begins again. FLV has 32 bits, of which some writers use 31.
MODULUS = {"mpegts": 1 << 33, "mpeg": 1 << 33, "flv": 1 << 31, "live_flv": 1 << 31}


@dataclass
class Piece:
    """Consecutive groups of pictures, decodable on their own.

    `packets` in decoding order with their times; frames from `until` on are shown by the next piece, frames before
    `floor` not at all.
    """

    packets: list[tuple[int, Any]]
    until: int | None
    floor: int


class Video:
    """The video stream of a file that a player would show, opened with PyAV. Raises `VideoError` with a short reason.

    `beat` is called for every packet read: a sign of life on long stretches without a chosen frame.
    """

    def __init__(self, path: str, *, max_pixels: int, beat: Callable[[], None] = lambda: None) -> None:
        check_file(path)
        self._path = path
        self._beat = beat
        self._container = self._open()
        if "mp4" in self._container.format.name and (what := what_it_is(path)):
            raise VideoError(what)  # FFmpeg takes what is left of an index for the whole
        self.stream = self._shown_stream()
        self.context = self.stream.codec_context
        if _pixels(self.context) > max_pixels:
            size = f"{self.context.width} x {self.context.height}"
            raise VideoError(f"frames of {size} pixels are larger than the limit of {max_pixels} pixels")
        self.context.options = {"max_pixels": str(max_pixels)}
        self.context.copy_opaque = True  # a frame carries its packet's time
        self._last: tuple[int, int] = (-(1 << 62), 0)  # time of the packet shown last, and for how long it is shown
        name = self._container.format.name
        self._is_avi = name == "avi"  # counts packets and keeps no presentation times
        # Does the container say for how long each frame is shown? Otherwise FFmpeg guesses.
        self._keeps_durations = "mp4" in name or "matroska" in name
        self._is_fragmented = "mp4" in name and any(kind == b"moof" for kind, _ in boxes(path))
        self._may_jump = bool(self._container.format.flags & TS_DISCONT)
        # A loss in what is made for broadcast is a loss; a file that has an index is whole, or it is broken.
        self.is_broadcast = self._may_jump or self._is_fragmented
        # These tell of damage by nothing but the decoder's errors, which it would conceal.
        self.is_strict = name == "mpeg" or self._is_fragmented
        if self.is_strict:
            self.context.options |= {"err_detect": "explode"}
        self.damage = Damage(self.context)
        self._timeline: Timeline | None = None
        # Are the times right, but not which frame has which? Then they go to the frames in their order.
        self.is_unordered = False
        self._head: bytes | None = None  # parameters of the codec, of the first keyframe that has them
        self.clock = Clock(self.stream.time_base, self.stream.average_rate)
        self._check_whole()

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def claimed_duration(self) -> float | None:
        """Seconds, as the container claims; None where it does not say."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        if not self._container.duration:
            return None
        late = float((self.stream.start_time or 0) * self.stream.time_base) if self._counts_from_0() else 0.0
        return max(0.0, float(self._container.duration / av.time_base) - late)

    @property
    def has_index(self) -> bool:
        """Does the file list all its frames with their times, so that its claims can be believed?"""
        return "mp4" in self._container.format.name and not self._is_fragmented

    @property
    def discontinuities(self) -> int:
        """How often the clock jumped so far, and parts were joined."""
        return self._timeline.joins if self._timeline is not None else 0

    def samples(self) -> Iterator[Sample]:
        """Packets from the first keyframe on, in decoding order, with their times.

        A broken one raises `VideoError`; of what is made for broadcast it is left out, with what needs it.
        """
        samples = self._timed(self._demuxed())
        return self.damage.mended(samples) if self.is_broadcast else samples

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last; known when the packets have been read."""
        if self.clock.start is None:
            raise VideoError("no frames")
        return self.clock.end(*self._last)

    def findings(self, max_damage: float) -> dict[str, Any]:
        """What is to be told of a video that has been read: its damage and discontinuities, where it has any.

        Raises `VideoError` where more than the share `max_damage` of it is lost.
        """
        found: dict[str, Any] = {}
        if self.damage.packets:
            seconds = float(self.damage.ticks * self.stream.time_base)
            check_damage(seconds, self.duration(), max_damage)
            found["damage"] = {"packets": self.damage.packets, "seconds": round(seconds, 3)}
        if self.discontinuities:
            found["discontinuities"] = self.discontinuities
        return found

    def pieces(self) -> Iterator[Piece]:
        """The stream in pieces for decord. Raises `VideoError` where it cannot be cut."""
        piece: list[tuple[int, Any]] = []
        tail: list[tuple[int, Any]] = []  # the next keyframe, and frames after it that are shown before it
        size, floor = 0, 0
        was_shown = was_left_out = False
        if self._container.format.name == "mpeg":
            raise VideoError("left to pyav: a program stream, whose damage is seen in decoding alone")
        for sample in self.samples():
            was_left_out = was_left_out or (was_shown and sample.packet.is_discard)
            was_shown = was_shown or not sample.packet.is_discard
            if was_left_out and not sample.packet.is_discard:
                raise VideoError("left to pyav: some of its frames are not to be shown")
            if self.damage.packets:
                raise VideoError("left to pyav: it has broken packets")
            if self._timeline is not None and self._timeline.stutters:
                raise VideoError("left to pyav: its clock does not rise from packet to packet")
            packet = sample.packet
            if sample.is_key and self._has_other_head(packet):
                raise VideoError("left to pyav: its size, shape or coding changes within the stream")
            size += packet.size
            if size > PIECE_BYTES:
                raise VideoError(f"more than {PIECE_BYTES >> 20} MiB between keyframes")
            if sample.begins and piece:
                if tail:
                    yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
                    piece, tail = tail[:1], []
                yield Piece(piece, sample.time, floor)
                piece, size = [], packet.size
            floor = sample.floor
            if tail and sample.time < tail[0][0]:
                tail.append((sample.time, packet))
                continue
            if tail:
                yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
                piece, tail, size = tail[:1], [], tail[0][1].size + packet.size
            if sample.is_key and len(piece) >= PIECE_PACKETS:
                tail = [(sample.time, packet)]
            else:
                piece.append((sample.time, packet))
        if tail:
            yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
            piece = tail[:1]
        if piece:
            yield Piece(piece, None, floor)

    def _has_other_head(self, packet: Any) -> bool:
        """Does a keyframe come with other parameters of the codec than those that the stream began with?"""
        if packet.has_sidedata("new_extradata"):
            return bool(bytes(packet.get_sidedata("new_extradata")) != self.context.extradata)
        if self.context.name not in HEADED or (self.context.extradata or b"")[:1] == b"\1":
            return False  # not in its packets
        extractor = BitStreamFilterContext("extract_extradata", self.stream)
        found = [p for p in extractor.filter(av.Packet(bytes(packet))) if p.has_sidedata("new_extradata")]
        head = bytes(found[0].get_sidedata("new_extradata")) if found else None
        self._head = self._head or head
        return head not in (None, self._head)

    def _open(self) -> Any:
        # Only local files, and none that name others, let alone the network. The clock is unwound by us,
        # who know a recording that begins again from a clock that does.
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(DEMUXERS), "correct_ts_overflow": "0"}
        try:
            return av.open(f"file:{self._path}", options=options, metadata_errors="replace")
        except (av.InvalidDataError, av.ArgumentError, av.EOFError) as error:
            raise VideoError(what_it_is(self._path) or _reason(error)) from None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(_reason(error)) from None

    def _demuxed(self) -> Iterator[Any]:
        """The stream's packets from the first keyframe on. A broken one raises `VideoError`, but of a broadcast."""
        started = False
        for _ in range(RETRIES):
            try:
                for packet in self._container.demux(self.stream):
                    self._beat()
                    if packet.size == 0:
                        continue
                    if packet.is_corrupt and not self.is_broadcast:
                        raise VideoError(f"a broken packet at byte {packet.pos}")
                    started = started or packet.is_keyframe
                    if started:
                        yield packet
                return
            except av.error.BlockingIOError:  # a stretch without a packet
                self._beat()
            except av.FFmpegError as error:
                raise VideoError(_reason(error)) from None

    def _timed(self, packets: Iterator[Any]) -> Iterator[Sample]:
        """Packets as samples: each with its time on one clock that rises."""
        head = list(islice(packets, HEAD_PACKETS))
        if not head:
            return
        timeline = self._timeline = self._make_timeline(head)
        packets = chain(head, packets)
        floor: int | None = None
        for packet in packets:
            is_key = bool(packet.is_keyframe)
            pts, dts = packet.pts, packet.dts
            if self._is_avi:  # places of packets; what FFmpeg guesses of their times is out of order
                pts, packet.duration = None, 0
            elif self.is_unordered and timeline.keeps_dts and dts is not None:
                pts = None
            time, begins = timeline.place(pts, dts, packet.duration or 0, is_key)
            if floor is None or begins:
                floor = time
            if time >= self._last[0] and not packet.is_discard:
                self._last = (time, packet.duration or 0 if self._keeps_durations else 0)
            yield Sample(packet, time, timeline.end, is_key, begins, floor)

    def _make_timeline(self, head: list[Any]) -> Timeline:
        """The rule for this container, after a look at its first packets."""
        name, base = self._container.format.name, self.stream.time_base
        usual = max(1, round(1 / (self.stream.average_rate or Fraction(25)) / base))
        claimed = None
        if self._container.duration and not self.is_broadcast and "mp4" not in name:
            claimed = round(Fraction(self._container.duration, av.time_base) / base)
            start = self.stream.start_time or 0
            claimed += start if claimed < start else 0  # most writers count from 0, wherever the stream starts
        # Of containers without decoding times FFmpeg guesses some.
        keeps_dts = "matroska" not in name and not any(p.dts is None and p.pts is not None for p in head)
        timed = [p for p in head if p.pts is not None]
        if not keeps_dts and timed and head[0].pts is None:
            # Before zero there is no time in Matroska. These are in the order of decoding.
            first = min(p.pts for p in timed)
            untimed = [p for p in head if p.pts is None]
            for place, packet in enumerate(untimed):
                packet.pts = first - (len(untimed) - place) * (packet.duration or usual)
        self.is_unordered = self._is_avi or self._has_unordered(head, len(timed), keeps_dts)
        return Timeline(base, usual, MODULUS.get(name, 0), claimed, keeps_dts, self._may_jump, self._keeps_durations)

    def _has_unordered(self, head: list[Any], timed: int, keeps_dts: bool) -> bool:
        """Do packets say when frames are shown, but not which one, as far as the first of them tell?"""
        if timed == 0 or (timed < len(head) and not keeps_dts):
            return True
        if any(p.pts is None and p.dts is not None for p in head):
            return True
        if self.context.reorder_depth == 0:
            return False
        # The order of decoding was taken for the order in which frames are shown.
        if keeps_dts:
            return all(p.pts == p.dts for p in head)
        return all(before.pts < after.pts for before, after in pairwise(head))

    def _counts_from_0(self) -> bool:
        """Is a file's duration its last moment, even if its video starts later?"""
        return "matroska" in self._container.format.name

    def _shown_stream(self) -> Any:
        """What a player shows: a film before a still picture, the default before others, then the most pixels and bits.

        Never cover art or thumbnails.
        """
        hidden = Disposition.attached_pic | Disposition.timed_thumbnails
        streams = [s for s in self._container.streams.video if not s.disposition & hidden]
        if not streams:
            raise VideoError("no video stream")
        streams = [s for s in streams if s.codec_context is not None]
        if not streams:
            raise VideoError("no decoder for the codec of its video stream")
        if len(streams) == 1:
            return streams[0]
        packets = self._peek(streams)

        def rank(stream: Any) -> tuple[bool, bool, int, int]:
            context = stream.codec_context
            is_film = packets[stream.index] > 1 and not stream.disposition & Disposition.still_image
            is_default = bool(stream.disposition & Disposition.default)
            return is_film, is_default, _pixels(context), context.bit_rate or 0

        best = max(streams, key=rank).index
        self._container.close()  # its start has been read
        self._container = self._open()
        return self._container.streams[best]

    def _peek(self, streams: list[Any]) -> Counter[int]:
        """How many packets each stream has near the start."""
        packets: Counter[int] = Counter()
        try:
            for packet in islice(self._container.demux(streams), PEEKED_PACKETS):
                packets[packet.stream.index] += packet.size > 0
        except av.FFmpegError:
            pass  # told when it is read in earnest
        return packets

    def _check_whole(self) -> None:
        """Refuse a file whose end is missing: its frames would simply stop."""
        size = Path(self._path).stat().st_size
        with Path(self._path).open("rb") as file:
            claimed = claimed_size(file.read(64))
        entries = self.stream.index_entries
        if entries is not None and len(entries) and not self._is_fragmented:
            claimed = max(claimed, entries[-1].pos + entries[-1].size)
        if claimed > size:
            raise VideoError(f"the file is cut off: it has {size} of {claimed} bytes")


def measure(path: str, *, max_pixels: int, beat: Callable[[], None] = lambda: None) -> float:
    """The real duration in seconds, from every packet's time: what the container claims may be wrong."""
    with Video(path, max_pixels=max_pixels, beat=beat) as video:
        times = [s.time for s in video.samples() if s.time >= s.floor and not s.packet.is_discard]
        for time in sorted(times):
            video.clock.tick(time)
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
    if isinstance(error, av.error.EOFError):
        return "it ends before its first packet"
    if isinstance(error, av.error.BlockingIOError):
        return "no packet was found in it"
    if isinstance(error, av.FFmpegError):
        return f"it cannot be read: {error.strerror}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
