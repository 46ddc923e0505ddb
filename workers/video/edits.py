"""Edit lists of MP4 and MOV that are more than one part at its own speed: FFmpeg does not follow these exactly.

It starts parts of B-frames some frames late, plays what is to be empty, and knows no speeds. Runs in the decoder child;
free of torch.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile
from typing import Any

from vococache.errors import VideoError
from vococache.workers.video.damage import Sample
from vococache.workers.video.formats import content, inside

MAX_EDITS = 10_000


@dataclass(frozen=True, slots=True)
class Edit:
    """A part of a film: for how many seconds, from which moment of the track on (None: nothing is shown), how fast."""

    seconds: Fraction
    start: Fraction | None
    rate: Fraction


def composed(path: str, track: int) -> list[Edit]:
    """The edits of a track where they are more than a delay and one part at its own speed; otherwise none."""
    edits = list(dropwhile(lambda edit: edit.start is None, _edits(path, track)))
    if len(edits) < 2 and all(edit.rate == 1 for edit in edits):
        return []
    while edits[-1].start is None:
        edits.pop()
    return edits


def samples(edits: list[Edit], base: Fraction, packets_from: Callable[[int], Iterator[Any]]) -> Iterator[Sample]:
    """The packets of each part in turn, with their times in ticks of `base` seconds; others have one before its floor.

    `packets_from` gives a track's packets from the last keyframe on that is shown at a moment, or before it.
    """
    began = Fraction(0)
    for edit in edits:
        if edit.start is not None and edit.seconds > 0:
            start = round(edit.start / base)
            end = start + max(1, round(edit.seconds * edit.rate / base))
            yield from _part(packets_from(start), start, end, round(began / base), edit.rate)
        began += edit.seconds


def _part(packets: Iterator[Any], start: int, end: int, began: int, rate: Fraction) -> Iterator[Sample]:
    head = []  # with the one that is on display at the start
    for packet in packets:
        head.append(packet)
        if packet.dts > start:
            break
    first = max((packet.pts for packet in head if packet.pts <= start), default=start)
    begins = True
    for packet in chain(head, packets):
        if packet.dts >= end:
            return
        time = began - 1
        if first <= packet.pts < end:
            time = began + (round((packet.pts - start) / rate) if packet.pts > start else 0)
        yield Sample(packet, time, time, bool(packet.is_keyframe), begins, began, [])
        begins = False


def _edits(path: str, track: int) -> list[Edit]:
    scale = _scale(path, next(inside(path, [b"moov", b"mvhd"]), (0, 0)))
    for trak in inside(path, [b"moov", b"trak"]):
        head = content(path, next(inside(path, [b"tkhd"], *trak), (0, 0)), 24)
        if track == int.from_bytes(head[20:24] if head[:1] == b"\1" else head[12:16], "big"):
            own_scale = _scale(path, next(inside(path, [b"mdia", b"mdhd"], *trak), (0, 0)))
            table = next(inside(path, [b"edts", b"elst"], *trak), (0, 0))
            return _parsed(content(path, table, 8 + 20 * MAX_EDITS), scale, own_scale)
    return []


def _parsed(table: bytes, scale: int, own_scale: int) -> list[Edit]:
    """The entries of an `elst` box, whose durations are the film's and whose times are the track's."""
    if len(table) < 8 or not scale or not own_scale:
        return []
    count = int.from_bytes(table[4:8], "big")
    if count > MAX_EDITS:
        raise VideoError(f"its edit list has {count} parts, expected at most {MAX_EDITS}")
    entry = struct.Struct(">Qqi" if table[0] else ">Iii")
    whole = table[8 : 8 + entry.size * min(count, (len(table) - 8) // entry.size)]
    edits = [
        Edit(Fraction(length, scale), None if start < 0 else Fraction(start, own_scale), Fraction(rate, 1 << 16))
        for length, start, rate in entry.iter_unpack(whole)
    ]
    if any(edit.rate < 0 for edit in edits):
        raise VideoError("its edit list runs backwards, which is not known here")
    return edits


def _scale(path: str, box: tuple[int, int]) -> int:
    """Ticks a second, of an `mvhd` or `mdhd` box."""
    head = content(path, box, 24)
    return int.from_bytes(head[20:24] if head[:1] == b"\1" else head[12:16], "big")
