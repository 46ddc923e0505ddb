"""What a transport stream lost, by its own count: each packet of a stream says the last four bits of its number.

FFmpeg counts too, but from the packets after those that it probed, and its flags may stand at the next picture.
Runs in the decoder child; free of torch.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vococache.workers.video.system_clock import SystemClock

SYNC = 0x47
PACKET_BYTES = 188
# A packet in a file may have a time before it (M2TS), or a checksum behind it.
RAW_BYTES = (188, 192, 204)
BLOCK_PACKETS, PIECE_PACKETS = 1 << 16, 64
PROBED_PACKETS = 16
MAX_FULL = 0.1  # of all units: as many end with a packet by chance, and some more
# Flags in the head of a packet, as it is numbered from 0.
BROKEN, STARTS, HAS_FIELD, HAS_PAYLOAD, JUMPS, HAS_CLOCK = 0x80, 0x40, 0x20, 0x10, 0x80, 0x10

PES_BYTES = 14  # of a unit's head, up to the end of its time
HAS_PTS = 0x80

Rows = npt.NDArray[np.uint8]  # [packets, bytes of each]
Pids = npt.NDArray[np.int32]  # [packets]
Ticks = npt.NDArray[np.int64]  # [some packets]


@dataclass
class Losses:
    """Places in the file, as FFmpeg has them, of units (PES) of the video that lack something.

    `broken`: which lack a part of themselves. `before_loss`: which are whole, but something is missing behind them.
    `in_doubt`: which may lack their end, if something is missing behind them.
    `headless`: does the stream begin within a unit?
    `clocks`: the programs' own, and those of the other streams, by the number of the stream that carries it.
    """

    broken: list[int] = field(default_factory=list)
    before_loss: list[int] = field(default_factory=list)
    in_doubt: list[int] = field(default_factory=list)
    headless: bool = False
    clocks: dict[str, SystemClock] = field(default_factory=dict)

    def is_broken(self, start: int, end: int | None) -> bool:
        """Does a unit lack a part that begins at `start` or behind it, but before `end`?"""
        return _has_any(self.broken, start, end)

    def is_before_loss(self, start: int, end: int | None) -> bool:
        """Is something missing behind such a unit?"""
        return _has_any(self.before_loss, start, end)

    def is_in_doubt(self, start: int, end: int | None) -> bool:
        """May such a unit lack its end?"""
        return _has_any(self.in_doubt, start, end)


def _has_any(places: list[int], start: int, end: int | None) -> bool:
    at = bisect_left(places, start)
    return at < len(places) and (end is None or places[at] < max(end, start + 1))


def find_losses(path: str, pid: int, beat: Callable[[], None] = lambda: None) -> Losses:
    """Read the heads of all packets of a file and look for gaps in the count of those of one stream."""
    losses = Losses()
    unit: int | None = None  # where the current one starts
    units_found = 0
    count, is_full = -1, False  # of the stream's last packet: its number, and has it no stuffing, as the last of a unit
    for at, raw, rows in _blocks(path):
        beat()
        pids = (rows[:, 1] & 0x1F).astype(np.int32) << 8 | rows[:, 2]
        for carrier, values in (*_program_clocks(rows, pids), *_stream_clocks(rows, pids, pid)):
            losses.clocks.setdefault(carrier, SystemClock()).add(values)
        found = np.flatnonzero((pids == pid) & (rows[:, 3] & HAS_PAYLOAD > 0))
        if not len(found):
            continue
        heads = rows[found, :6]
        counts = heads[:, 3] & 0x0F
        starts = heads[:, 1] & STARTS > 0
        fields = (heads[:, 3] & HAS_FIELD > 0) & (heads[:, 4] > 0)
        expected = np.concatenate([[count if count >= 0 else int(counts[0]) - 1], counts[:-1]]) + 1 & 0x0F
        gaps = (counts != expected) & ~(fields & (heads[:, 5] & JUMPS > 0))
        full = ~_stuffed(rows, found)
        if count < 0:
            losses.headless, is_full = not starts[0], not starts[0]
        full_before = np.concatenate([[is_full], full[:-1]])
        units_found += int(starts.sum())
        units = np.maximum.accumulate(np.where(starts, np.arange(len(found)), -1))
        for place in np.flatnonzero(gaps | (starts == full_before) | (heads[:, 1] & BROKEN > 0)):
            before = _place(at, raw, found, units[place - 1], unit) if place else unit
            now = _place(at, raw, found, units[place], unit)
            if starts[place] == full_before[place]:  # a unit that goes on behind its end, or ends before it
                _add(losses.in_doubt, before)
            if starts[place] and gaps[place]:
                _add(losses.before_loss, before)
            if heads[place, 1] & BROKEN or not starts[place]:
                _add(losses.broken, now)
        unit = _place(at, raw, found, units[-1], unit)
        count, is_full = int(counts[-1]), bool(full[-1])
    if is_full:
        _add(losses.in_doubt, unit)
    if len(losses.in_doubt) > units_found * MAX_FULL + 1:
        losses.in_doubt.clear()  # a stream whose units are made to end with a packet
    elif is_full:
        _add(losses.before_loss, unit)
    return losses


def _program_clocks(rows: Rows, pids: Pids) -> Iterator[tuple[str, Ticks]]:
    """The clocks (PCR) that packets carry: of which stream, and their values."""
    has_clock = (rows[:, 3] & HAS_FIELD > 0) & (rows[:, 4] >= 7) & (rows[:, 5] & HAS_CLOCK > 0)
    for pid in np.unique(pids[has_clock]):
        heads = rows[has_clock & (pids == pid), 6:11].astype(np.int64)
        yield f"PCR {pid}", heads @ [1 << 25, 1 << 17, 1 << 9, 1 << 1, 0] + (heads[:, 4] >> 7)


def _stream_clocks(rows: Rows, pids: Pids, video: int) -> Iterator[tuple[str, Ticks]]:
    """The same of the times (PTS) of units of other streams than the video."""
    found = np.flatnonzero((rows[:, 1] & STARTS > 0) & (rows[:, 3] & HAS_PAYLOAD > 0) & (pids != video))
    starts = 4 + np.where(rows[found, 3] & HAS_FIELD > 0, rows[found, 4].astype(np.intp) + 1, 0)
    found, starts = found[starts <= PACKET_BYTES - PES_BYTES], starts[starts <= PACKET_BYTES - PES_BYTES]
    heads = rows[found[:, None], starts[:, None] + np.arange(PES_BYTES)].astype(np.int64)
    is_timed = (heads[:, :3] == (0, 0, 1)).all(axis=1) & (heads[:, 7] & HAS_PTS > 0)
    found, heads = found[is_timed], heads[is_timed, 9:]
    values = (heads >> [1, 0, 1, 0, 1] & [7, 255, 127, 255, 127]) @ [1 << 30, 1 << 22, 1 << 15, 1 << 7, 1]
    for pid in np.unique(pids[found]):
        yield f"PTS {pid}", values[pids[found] == pid]


def _place(at: int, raw: int, found: npt.NDArray[np.intp], row: int, carried: int | None) -> int | None:
    """Where FFmpeg says that a unit starts whose first packet is `found[row]`, or else was in an earlier block."""
    return at + raw * int(found[row]) + PACKET_BYTES - raw if row >= 0 else carried


def _add(places: list[int], place: int | None) -> None:
    if place is not None and place not in places[-2:]:
        insort(places, place)


def _stuffed(rows: Rows, found: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which packets have stuffing? The last one of a unit nearly always has, for the next unit has its own."""
    size = rows[found, 4].astype(np.intp)
    last = rows[found, np.minimum(4 + size, PACKET_BYTES - 1)]
    ends = (size == 0) | (last == 0xFF) | ((size == 1) & (last == 0))
    return np.asarray((rows[found, 3] & HAS_FIELD > 0) & ends)


def _blocks(path: str) -> Iterator[tuple[int, int, Rows]]:
    """Packets that follow each other: (place in the file, distance from packet to packet, the packets)."""
    with Path(path).open("rb") as file:
        data = file.read(PROBED_PACKETS * max(RAW_BYTES))
        raw = max(RAW_BYTES, key=lambda size: max(_synced(data, first, size) for first in range(size)))
        at, length = 0, BLOCK_PACKETS
        while True:
            file.seek(at)
            data = file.read(raw * length + PACKET_BYTES)
            if len(data) < PACKET_BYTES:
                return
            number = (len(data) - PACKET_BYTES) // raw + 1
            syncs = np.frombuffer(data, np.uint8)[: (number - 1) * raw + 1 : raw]
            lost = np.flatnonzero(syncs != SYNC)
            number = int(lost[0]) if len(lost) else number
            # Of a file that is all in pieces, not each piece costs as much as a block.
            length = min(BLOCK_PACKETS, 2 * length if number > length else PIECE_PACKETS)
            if number:
                # The last of the file may lack what stands behind a packet.
                rows = np.frombuffer(data.ljust(number * raw, b"\0"), np.uint8, number * raw).reshape(number, raw)
                yield at, raw, rows
                at += number * raw
                continue
            at += _next_sync(data, raw)


def _synced(data: bytes, first: int, raw: int) -> int:
    """How many packets of `raw` bytes follow each other from `first` on."""
    places = range(first, len(data), raw)
    return next((n for n, place in enumerate(places) if data[place] != SYNC), len(places))


def _next_sync(data: bytes, raw: int) -> int:
    """Where packets begin again: where two follow each other."""
    at = data.find(SYNC, 1)
    while at >= 0 and at + raw < len(data) and data[at + raw] != SYNC:
        at = data.find(SYNC, at + 1)
    return at if at >= 0 else max(1, len(data) - PACKET_BYTES)
