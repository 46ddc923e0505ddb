"""The clocks of a video: the rule by which packets get times that rise, and the times at which frames are shown.

Both decoders see the times that are made here. Runs in the decoder child; free of torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappush, heappushpop
from itertools import chain, pairwise
from typing import Any

from vococache.errors import VideoError

# Where a clock runs on by more than this, or back, two recordings were joined: as FFmpeg's own tool has it.
MAX_STEP_SECONDS = 10
# FFmpeg's own tool forgives so much of a step back, but we do not at a keyframe, which may begin another recording.
JITTER_SECONDS = Fraction(1, 10)
# Of Matroska, which keeps no decoding times: as many frames may be decoded before one that is shown before them.
MAX_REORDERED = 16
# Packets of a program stream between two that say when they are decoded.
MAX_UNTIMED = 1000
# What no honest clock passes: how long one picture is shown, and how long each is shown on average.
MAX_STILL_SECONDS = 3600
MAX_MEAN_SECONDS = 600


@dataclass
class Clock:
    """Presentation times in seconds from the first frame shown, of a stream that counts in `base` seconds."""

    base: Fraction
    rate: Fraction | None
    start: int | None = None
    last: int = 0
    shown: int = 0
    gaps: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._second = max(1, int(1 / self.base))  # in ticks

    def tick(self, pts: int) -> float:
        """Note that the frame of `pts` is shown, in presentation order; its time. Raises `VideoError` as `_check`."""
        if self.start is None:
            self.start = pts
        elif pts > self.last:
            self._check(pts)
            self.gaps[pts - self.last] += 1
        self.last = pts
        self.shown += 1
        return self.time(pts)

    def time(self, pts: int) -> float:
        """Seconds from the start."""
        return float((pts - (self.start or 0)) * self.base)

    def end(self, last: int, shown_for: int) -> float:
        """The duration, of a video whose last packet is of time `last`, whether it gave a picture or not.

        Where it is unknown for how long it is shown: for the median distance of frames.
        """
        end = max(self.last, last) + (shown_for if shown_for > 0 else self._usual_gap())
        self._check(end)
        return self.time(end)

    def _check(self, pts: int) -> None:
        """Raises `VideoError` where the clock has run on out of proportion to the frames."""
        if pts - self.last > MAX_STILL_SECONDS * self._second:
            still = float((pts - self.last) * self.base)
            raise VideoError(
                f"its clock is wrong: a picture is shown for {still:.0f} s, expected at most {MAX_STILL_SECONDS}"
            )
        longest = MAX_STILL_SECONDS + MAX_MEAN_SECONDS * (self.shown or 1)
        if pts - (self.start or 0) > longest * self._second:
            raise VideoError(
                f"its clock is wrong: {self.shown} pictures last {self.time(pts):.0f} s, expected at most {longest}"
            )

    def _usual_gap(self) -> int:
        seen = 0
        for gap, count in sorted(self.gaps.items()):
            seen += count
            if 2 * seen >= self.gaps.total():
                return gap
        return max(1, round(1 / (self.rate or Fraction(25)) / self.base))


@dataclass
class Timeline:
    """Times that rise, of packets in decoding order, from whatever clock a container keeps; in ticks of `base` seconds.

    A discontinuity joins the parts end to end, and is counted: a step back, or one forwards by more than 10 s for which
    nothing accounts: the packet before (by how long it is shown), the container (by how long it says that it is), or a
    broadcast's own clock, which runs through.

    `has_index`: does the container list all packets? Then it has one clock, and no discontinuity. `modulus`: ticks
    after which the container's clock begins again, 0 if never. `claimed_end`: the last moment of which the container
    knows; infinite where it says nothing but is believed. `ran`: ticks that a broadcast's clock ran, without a leap.
    `keeps_dts`: has the container decoding times? They rise, whatever the order in which frames are shown. `may_jump`:
    is it one whose clock begins anew within a file? `keeps_durations`: otherwise a packet's is a guess, worth less than
    the distance from the packet before.
    """

    base: Fraction
    usual: int  # ticks from frame to frame, where packets do not say
    modulus: int
    claimed_end: float
    ran: Callable[[], int]
    has_index: bool
    keeps_dts: bool
    may_jump: bool
    keeps_durations: bool
    joins: int = 0
    stutters: bool = False  # was a decoding time not later than the one before?
    end: int = 0  # of what has been placed
    _last: int | None = None  # the container's time of the last packet, decoding or else presentation
    _top: int = 0  # the latest presentation time of this part
    _length: int = 0
    _was_key: bool = True
    _offset: int = 0
    _latest: list[int] = field(default_factory=list)  # without decoding times: a heap of the latest so many times

    def __post_init__(self) -> None:
        self._longest, self._jitter = round(MAX_STEP_SECONDS / self.base), round(JITTER_SECONDS / self.base)

    def place(self, pts: int | None, dts: int | None, duration: int, is_key: bool) -> tuple[int, bool]:
        """The time of the next packet, and whether it begins another recording. One without a time is shown last."""
        duration = duration if duration > 0 else self.usual
        raw = dts if self.keeps_dts and dts is not None else pts
        if self._last is None:
            self._last = raw or 0
            self._top = self.end = self._last if raw is None or pts is None else pts
        raw = self._last + (self._length if raw is None else self._nearest(raw - self._last))
        shift = 0 if pts is None or dts is None or not self.keeps_dts else self._nearest(pts - dts)
        if self.may_jump and abs(shift) > self._longest and abs(shift) > self.ran():  # one is another recording's
            shift = self.end - self._offset - raw
            self.stutters = True
        # Frames that are decoded before a keyframe are shown before it. Where all are keyframes, two may share a time.
        stands = self.keeps_dts and raw <= self._last and not self._was_key
        joined = is_key and (raw + shift < self._top or (stands and raw + shift == self._top))
        joined = (joined or self._is_back(raw) or self._is_far(raw)) and not self.has_index
        self._was_key = is_key
        if joined:
            self.joins += 1
            self._latest.clear()
            next_one = self._last + self._offset + self._length
            self._offset = (self.end - shift if is_key or not self.keeps_dts else next_one) - raw
        elif self.keeps_dts and self._length and raw <= self._last:
            self.stutters = True
        if not self.keeps_dts:
            (heappushpop if len(self._latest) > MAX_REORDERED else heappush)(self._latest, raw)
        time = raw + shift + self._offset
        if not self.keeps_durations and not joined and raw > self._last:
            duration = min(raw - self._last, 2 * self._length or duration)  # after a still it is no measure
        self.end = max(self.end, time + duration)
        self._top = raw + shift if joined else max(self._top, raw + shift)
        self._last = raw if self.keeps_dts else self._top
        self._length = duration
        return time, joined and is_key

    def _nearest(self, step: int) -> int:
        """A step of a clock that begins again after `modulus` ticks."""
        half = self.modulus // 2
        return (step + half) % self.modulus - half if self.modulus else step

    def _is_back(self, raw: int) -> bool:
        assert self._last is not None
        if self.keeps_dts:
            return raw < self._last - self._jitter
        return len(self._latest) > MAX_REORDERED and raw < self._latest[0]

    def _is_far(self, raw: int) -> bool:
        assert self._last is not None
        gap = raw - self._last - self._length - self._longest
        return gap > 0 and raw > self.claimed_end + self._longest and gap > self.ran()


def spread(packets: Iterable[Any], base: Fraction) -> Iterator[Any]:
    """Packets of a program stream, which says when few of them are decoded: the others are spread evenly between those.

    These have decoding times alone. FFmpeg assumes 25 packets a second instead.
    """
    usual, longest = round(Fraction(1, 25) / base), round(Fraction(1, 2) / base)
    start: int | None = None
    held: list[Any] = []  # from one that has a time on
    is_measured = False
    for packet, following in pairwise(chain(packets, [None])):
        # A picture that begins where a unit of the stream ends is given the next one's time, too.
        has_own = packet.pos is not None and (following is None or following.pos != packet.pos)
        time = packet.dts if has_own else None
        if time is None and len(held) < MAX_UNTIMED:
            held.append(packet)
            continue
        if time is None:
            time = (start or 0) + len(held) * usual
        if start is not None:
            step = (time - start) // len(held)
            if 0 < step <= (2 * usual if is_measured else longest):  # else the clock jumped in between
                usual, is_measured = step, True
        yield from _stamped(held, time - len(held) * usual if start is None else start, usual)
        start, held = time, [packet]
    yield from _stamped(held, start or 0, usual)


def _stamped(packets: list[Any], start: int, step: int) -> Iterator[Any]:
    for place, packet in enumerate(packets):
        if place > 0:
            packet.pts = None
        packet.dts = start + place * step
        yield packet


def unstretched(packets: Iterable[Any]) -> Iterator[Any]:
    """The same of MPEG-1 and 2, of which FFmpeg knows when they are shown.

    But it takes what is shown last for shown until the next recording's first packet is decoded, however much later.
    """
    held: list[Any] = []  # from one on that is shown after those that follow it
    for packet in packets:
        if held and packet.pts != packet.dts:
            first, last = held[0], held[-1]
            if first.pos is None and None not in (first.pts, last.dts, packet.dts) and first.pts == packet.dts:
                end = last.dts + last.duration
                first.pts = end if packet.dts > end + last.duration else first.pts
        if packet.pts != packet.dts or len(held) > MAX_REORDERED:
            yield from held
            held = []
        held.append(packet)
    yield from held
