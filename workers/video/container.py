"""A video file as both decoders see it: one stream, its packets and their times.

Everything on which the decoders must agree is decided here: which stream, when it starts and ends, which packets
are shown. Runs in the decoder child; free of torch.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from vococache.errors import VideoError
from vococache.workers.video.clock import MAX_STEP_SECONDS, Clock, Timeline, spread, unstretched
from vococache.workers.video.damage import Damage, Sample, check_damage
from vococache.workers.video.edits import composed, samples
from vococache.workers.video.formats import (
    DEMUXERS,
    MAX_SAMPLES,
    boxes,
    claimed_size,
    is_theora_head,
    is_vp8_head,
    length_without_zeros,
    most_samples,
    what_it_is,
)
from vococache.workers.video.streams import pixels, shown_stream
from vococache.workers.video.system_clock import of_program_stream, ran_through
from vococache.workers.video.transport import find_losses

HEAD_PACKETS = 32  # looked at before the first time is given
PS_HEAD_PACKETS = 256  # of program streams, in which some small ones have no time
NEVER = 1 << 62  # ticks
RETRIES = 10_000  # of a read that gave nothing: each passes over some 64 KiB without a packet

TS_DISCONT = 0x0200  # FFmpeg's mark of containers whose clock may jump: made for broadcast
# Ticks after which a container's clock begins again. FLV has 32 bits, of which some writers use 31.
MODULUS = {"mpegts": 1 << 33, "mpeg": 1 << 33, "flv": 1 << 31, "live_flv": 1 << 31}


class Video:
    """The video stream of a file that a player would show, opened with PyAV. Raises `VideoError` with a short reason.

    `beat` is called for every packet read: a sign of life on long stretches without a chosen frame.
    """

    def __init__(self, path: str, *, max_pixels: int, beat: Callable[[], None] = lambda: None) -> None:
        check_file(path)
        length, most = Path(path).stat().st_size, most_samples(path)
        if most > MAX_SAMPLES * length:  # FFmpeg would take memory for each of them
            raise VideoError(f"its index is wrong: it lists {most} samples in {length} bytes")
        self._path = path
        self._beat = beat
        self._container = self._open()
        name = self._container.format.name
        self._is_fragmented = "mp4" in name and any(kind == b"moof" for kind, _ in boxes(path))
        if "mp4" in self._container.format.name and (what := what_it_is(path)):
            raise VideoError(what)  # FFmpeg takes what is left of an index for the whole
        self.stream = self._shown_stream()
        self._edits = composed(path, self.stream.id) if self.has_index else []
        if self._edits:  # followed by us
            self._container = self._open({"ignore_editlist": "1"})
            self.stream = self._container.streams[self.stream.index]
        self.context = self.stream.codec_context
        if pixels(self.context) > max_pixels:
            size = f"{self.context.width} x {self.context.height}"
            raise VideoError(f"frames of {size} pixels are larger than the limit of {max_pixels} pixels")
        self.context.options = {"max_pixels": str(max_pixels)}
        self.context.copy_opaque = True  # a frame carries its packet's time
        self._first = 0  # time of the first keyframe, whether it is shown or lost
        self._last: tuple[int, int] = (-NEVER, 0)  # time of the packet shown last, and for how long it is shown
        self._is_avi = name == "avi"  # counts packets and keeps no presentation times
        # Does the container say for how long each frame is shown? Otherwise FFmpeg guesses.
        self._keeps_durations = "mp4" in name or "matroska" in name
        self._may_jump = bool(self._container.format.flags & TS_DISCONT)
        # A loss in what is made for broadcast is a loss; a file that has an index is whole, or it is broken.
        self.is_broadcast = self._may_jump or self._is_fragmented or "flv" in name
        # These tell of damage by nothing but the decoder's errors, which it would conceal.
        self.is_strict = name == "mpeg" or self._is_fragmented
        if self.is_strict:
            self.context.options |= {"err_detect": "explode"}
        self.damage = Damage(self.context)
        self._timeline: Timeline | None = None
        self._unit = -1  # of a transport stream: where the one starts that was read last
        self._ran_through: int | None = None
        self._begins_anew = False  # did packets that are no pictures stand before the last one?
        # Are the times right, but not which frame has which? Then they go to the frames in their order.
        self.is_unordered = False
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
        if self._edits:
            return float(sum(edit.seconds for edit in self._edits))
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        if not self._container.duration:
            return None
        late = float((self.stream.start_time or 0) * self.stream.time_base) if self._counts_from_0() else 0.0
        return max(0.0, float(self._container.duration / av.time_base) - late)

    @property
    def has_index(self) -> bool:
        """Does the file list all its frames with their times?"""
        return "mp4" in self._container.format.name and not self._is_fragmented

    @property
    def listed_duration(self) -> float | None:
        """Seconds, where the file lists all its frames, and these come to what it claims."""
        entries = self.stream.index_entries if self.has_index and not self.is_composed else None
        if not entries:
            return None
        places = range(len(entries))
        first = next((entries[n].timestamp for n in places if not entries[n].is_discard), 0)
        last = next((entries[n].timestamp for n in reversed(places) if not entries[n].is_discard), 0)
        claimed = self.claimed_duration
        is_so = claimed is not None and abs(claimed - float((last - first) * self.stream.time_base)) < 1
        return claimed if is_so else None

    @property
    def is_composed(self) -> bool:
        """Is it shown in parts, as an edit list says?"""
        return len(self._edits) > 0

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return str(self._container.format.name)

    @property
    def stutters(self) -> bool:
        """Was a decoding time not later than the one before, so far?"""
        return self._timeline is not None and self._timeline.stutters

    @property
    def discontinuities(self) -> int:
        """How often the clock jumped so far, and parts were joined."""
        return self._timeline.joins if self._timeline is not None else 0

    def samples(self) -> Iterator[Sample]:
        """Packets from the first keyframe on, in decoding order, with their times.

        A broken one raises `VideoError`; of what is made for broadcast it is left out, with what needs it.
        """
        if self.format_name == "mpegts":
            self.damage.losses = find_losses(self._path, self.stream.id, self._beat)
        if self._edits:
            return self._composed()
        samples = self._timed(self._demuxed())
        return self.damage.mended(samples) if self.is_broadcast else samples

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last; known when the packets have been read."""
        if self.clock.start is None:
            raise VideoError("no frames")
        last, shown_for = self._last
        end = (self.stream.start_time or 0) + (self.stream.duration or 0)
        if self._edits:
            end = round(sum(edit.seconds for edit in self._edits) / self.stream.time_base)
        if self.has_index and last < end:  # an edit list may end before the last picture does
            shown_for = min(shown_for, end - last)
        return self.clock.end(last, shown_for)

    def findings(self, max_damage: float) -> dict[str, Any]:
        """What is to be told of a video that has been read: its damage and discontinuities, where it has any.

        Raises `VideoError` where more than the share `max_damage` of it is lost.
        """
        found: dict[str, Any] = {}
        if self.damage.packets:
            base = self.stream.time_base
            lost_before = max(0, (self.clock.start or 0) - self._first)
            check_damage(float(self.damage.ticks * base), self.duration() + float(lost_before * base), max_damage)
            seconds = float((self.damage.ticks + self.damage.skipped) * base)
            found["damage"] = {"packets": self.damage.packets, "seconds": round(seconds, 3)}
        if self.discontinuities:
            found["discontinuities"] = self.discontinuities
        return found

    def _open(self, options: dict[str, str] | None = None, length: int | None = None) -> Any:
        """The file, or its first `length` bytes."""
        # The clock is unwound by us, who know a recording that begins again from a clock that does.
        try:
            return open_local(self._path, {"correct_ts_overflow": "0"} | (options or {}), length)
        except (av.InvalidDataError, av.ArgumentError, av.EOFError) as error:
            raise VideoError(what_it_is(self._path) or _reason(error)) from None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(_reason(error)) from None

    def _composed(self) -> Iterator[Sample]:
        """The packets of the parts of an edit list, in turn."""
        for sample in samples(self._edits, self.stream.time_base, self._packets_from):
            self._beat()
            if sample.time >= max(sample.floor, self._last[0]):
                self._last = (sample.time, NEVER)
            yield sample

    def _packets_from(self, moment: int) -> Iterator[Any]:
        """The packets from the last keyframe on that is shown at a moment or before it; the first, if there is none."""
        place, before = moment, None
        while True:
            self._container.seek(place, stream=self.stream)
            packets = (packet for packet in self._read() if packet.size)
            first = next(packets, None)
            if first is None:
                return
            if first.is_corrupt:
                raise VideoError(f"a broken packet at byte {first.pos}")
            if first.pts <= moment or first.dts == before:
                break
            place, before = first.dts - 1, first.dts
        yield from chain([first], packets)

    def _demuxed(self) -> Iterator[Any]:
        """The stream's packets from the first keyframe on. A broken one raises `VideoError`, but of a broadcast."""
        skipped: list[int] = []  # times before the first keyframe
        heads: list[Any] = []
        started = False
        for packet in self._read():
            self._beat()
            if packet.size == 0 or self._is_rest(packet):
                continue
            if self.format_name == "ogg":
                start = bytes(memoryview(packet)[:7])
                if is_theora_head(start):
                    heads.append(packet)
                if is_theora_head(start) or is_vp8_head(start):
                    continue
                packet.opaque, heads = heads, []
            if packet.is_discard and self._is_fragmented:
                packet = _kept(packet)  # flagged where the clock steps back, as if it were shown twice
            if packet.is_corrupt and not self.is_broadcast:
                raise VideoError(f"a broken packet at byte {packet.pos}")
            if not started and packet.is_keyframe:
                started = True
                self._tell_skipped(skipped, packet)
            if started:
                yield packet
            elif (time := _time(packet)) is not None:
                skipped.append(time)

    def _read(self) -> Iterator[Any]:
        """Whatever packets the stream has. Some demuxers take zeros behind the last one for damage."""
        count = skip = 0
        is_broken = is_trimmed = False
        for _ in range(RETRIES):
            try:
                for packet in self._container.demux(self._container.streams[self.stream.index]):
                    if skip:
                        skip -= 1
                        continue
                    count, is_broken = count + 1, bool(packet.is_corrupt)
                    yield packet
                return
            except IndexError:
                return  # at the end PyAV looks for streams that were not there at the start
            except av.error.BlockingIOError:  # a stretch without a packet
                self._beat()
            except av.InvalidDataError as error:
                if is_broken and self.is_broadcast:
                    return  # cut off within its last packet
                length = length_without_zeros(self._path)
                if is_trimmed or length is None:
                    raise VideoError(_reason(error)) from None
                self._container, is_trimmed, skip = self._open(length=length), True, count
            except av.FFmpegError as error:
                raise VideoError(_reason(error)) from None

    def _is_rest(self, packet: Any) -> bool:
        """Is it what FFmpeg makes of the rest of a unit that lacks a part? Only its first picture has a time."""
        losses, before = self.damage.losses, self._unit
        if packet.pos is None or packet.pos == before:
            return losses is not None and losses.is_broken(before, before + 1)
        self._unit = packet.pos
        return False

    def _tell_skipped(self, skipped: list[int], first: Any) -> None:
        """Of a broadcast that begins between two keyframes, or within a picture: that something is missing there."""
        is_headless = self.damage.losses is not None and self.damage.losses.headless
        if self.is_broadcast and (skipped or is_headless):
            now = _time(first)
            longest = round(MAX_STEP_SECONDS / self.stream.time_base)
            ticks = 0 if now is None or not skipped else now - skipped[0]
            self.damage.skip(ticks if 0 < ticks < longest else 0)

    def _timed(self, packets: Iterator[Any]) -> Iterator[Sample]:
        """Packets as samples: each with its time on one clock that rises."""
        looked_at = HEAD_PACKETS
        if self.format_name == "mpeg":
            is_mpeg2 = self.context.codec.canonical_name in ("mpeg1video", "mpeg2video")
            packets = unstretched(packets) if is_mpeg2 else spread(packets, self.stream.time_base)
            looked_at = PS_HEAD_PACKETS
        head = list(islice(packets, looked_at))
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
            self._begins_anew = bool(packet.opaque)
            time, begins = timeline.place(pts, dts, packet.duration or 0, is_key)
            if floor is None:
                self._first = time
            if floor is None or begins:
                floor = time
            if time >= self._last[0] and not packet.is_discard:
                self._last = (time, packet.duration or 0 if self._keeps_durations else 0)
            yield Sample(packet, time, timeline.end, is_key, begins, floor, packet.opaque or [])

    def _make_timeline(self, head: list[Any]) -> Timeline:
        """The rule for this container, after a look at its first packets."""
        name, base = self._container.format.name, self.stream.time_base
        usual = max(1, round(1 / (self.stream.average_rate or Fraction(25)) / base))
        claimed = math.inf  # recorders of screens write WebM without a word on its length, with stills of minutes
        if self._may_jump or self._is_fragmented:
            claimed = -math.inf
        elif self._container.duration:
            claimed = round(Fraction(self._container.duration, av.time_base) / base)
            start = self.stream.start_time or 0
            claimed += start if claimed < start else 0  # most writers count from 0, wherever the stream starts
        # Of containers without decoding times FFmpeg guesses some.
        keeps_dts = not {"matroska", "asf"} & {*name.split(",")} and not any(
            p.dts is None and p.pts is not None for p in head
        )
        timed = [p for p in head if p.pts is not None]
        if not keeps_dts and timed and head[0].pts is None:
            # Before zero there is no time in Matroska. These are in the order of decoding.
            first = min(p.pts for p in timed)
            untimed = [p for p in head if p.pts is None]
            for place, packet in enumerate(untimed):
                packet.pts = first - (len(untimed) - place) * (packet.duration or usual)
        self.is_unordered = self._is_avi or self._has_unordered(head, len(timed), keeps_dts)
        return Timeline(
            base=base,
            usual=usual,
            modulus=MODULUS.get(name, 0),
            claimed_end=claimed,
            ran=self._ran,
            has_index=self.has_index,
            keeps_dts=keeps_dts,
            may_jump=self._may_jump,
            keeps_durations=self._keeps_durations,
        )

    def _ran(self) -> int:
        """Ticks that a broadcast's clock ran without a leap: so long may a picture stand still.

        Of Ogg: any time, but where another recording begins, which has packets of its own for that.
        """
        if self.format_name == "ogg":
            return 0 if self._begins_anew else NEVER
        if self._ran_through is None:
            clocks = [of_program_stream(self._path, self._beat)] if self.format_name == "mpeg" else []
            self._ran_through = ran_through(self.damage.losses.clocks.values() if self.damage.losses else clocks)
        return self._ran_through

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
        index, is_read = shown_stream(self._container)
        if is_read:
            self._container.close()
            self._container = self._open()
        return self._container.streams[index]

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


def open_local(path: str, options: dict[str, str], length: int | None = None) -> Any:
    """A file, or its first `length` bytes, by PyAV: a local one that names no others, let alone the network.

    Raises what PyAV raises.
    """
    protocols, name = "file", f"file:{path}"
    if length is not None:
        protocols, name = "file,subfile", f"subfile,,start,0,end,{length},,:{name}"
    whitelist = {"protocol_whitelist": protocols, "format_whitelist": ",".join(DEMUXERS)}
    return av.open(name, options=whitelist | options, metadata_errors="replace")


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


def _kept(packet: Any) -> Any:
    """A packet that the decoder does not leave out."""
    kept = av.Packet(bytes(packet))
    kept.pts, kept.dts, kept.duration, kept.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    kept.is_keyframe, kept.stream = packet.is_keyframe, packet.stream
    return kept


def _time(packet: Any) -> int | None:
    """When a packet is decoded, or else shown, by the container's clock."""
    return packet.pts if packet.dts is None else packet.dts  # type: ignore[no-any-return]


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
