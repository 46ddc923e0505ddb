"""Does a broadcast's clock run through, from its start to its end? Then it is one recording, however long a still.

Runs in the decoder child; free of torch.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TICKS = 90_000  # a second
MODULUS = 1 << 33
MAX_STEP = 10 * TICKS  # a longer one is no clock that runs on
PACK = b"\0\0\1\xba"
PACK_BYTES = 10  # up to the end of its clock
BLOCK_BYTES = 8 << 20


@dataclass
class SystemClock:
    """How long a clock ran, in ticks, and how often it stepped back or leapt."""

    ran: int = 0
    leaps: int = 0
    _last: int | None = None

    def add(self, ticks: npt.NDArray[np.int64]) -> None:
        """Take note of the next values, in the order in which they stand in the file."""
        steps = np.diff(ticks, prepend=ticks[:1] if self._last is None else self._last) % MODULUS
        leaps = steps > MAX_STEP
        self.ran += int(steps[~leaps].sum())
        self.leaps += int(leaps.sum())
        self._last = int(ticks[-1])


def ran_through(clocks: Iterable[SystemClock]) -> int:
    """Ticks that a program ran, if the clock that runs longest never leapt; otherwise 0."""
    longest = max(clocks, key=lambda clock: clock.ran, default=SystemClock())
    return 0 if longest.leaps else longest.ran


def of_program_stream(path: str, beat: Callable[[], None]) -> SystemClock:
    """The clock of a program stream, which stands in the head of each pack."""
    clock = SystemClock()
    for data in _overlapping(path):
        beat()
        found, place = [], data.find(PACK)
        while 0 <= place < len(data) - PACK_BYTES:
            found.append(_scr(data[place + 4 : place + PACK_BYTES]))
            place = data.find(PACK, place + PACK_BYTES)
        if found:
            clock.add(np.array(found, np.int64))
    return clock


def _overlapping(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while len(data := file.read(BLOCK_BYTES)) > PACK_BYTES:
            yield data
            file.seek(-PACK_BYTES, os.SEEK_CUR)


def _scr(head: bytes) -> int:
    """The 33 bits of a pack's clock, with marks between them; in MPEG-1 they end two bits later."""
    bits = int.from_bytes(head, "big") >> (11 if head[0] & 0xC0 == 0x40 else 9)
    return (bits >> 32 & 7) << 30 | (bits >> 16 & 0x7FFF) << 15 | bits & 0x7FFF
