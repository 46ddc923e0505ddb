"""The clock of a live stream: presentation times as moments of the day, and where a new part begins.

Runs in the decoder child; free of torch.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from vococache.workers.video.clock import MAX_STEP_SECONDS

# How far two moments may lie apart by the stream's clock and by ours, and still be called the same: what networks do.
TOLERANCE_SECONDS = 5.0
USUAL_STEPS = 3  # times the step before, of sources that show a picture seldom
MODULUS = {"mpegts": 1 << 33, "hls": 1 << 33, "mpeg": 1 << 33, "flv": 1 << 31, "live_flv": 1 << 31}  # ticks

Begins = Literal["start", "gap", "jump", "reconnect"]


@dataclass
class LiveClock:
    """Gives each shown frame its moment, in seconds since the epoch, and says what begins with it.

    The first frame's is when it arrived; from there on the stream's own clock counts. Where that leaps, the moment is
    the one of arrival again ("jump"), unless as much time did pass ("gap"). Moments never run back.
    """

    floor: float = 0.0  # nothing is earlier: what was kept before
    _anchor: float = 0.0  # the moment of the stream's time 0
    _ticks: int | None = None  # unwound, of the frame before
    _moment: float = 0.0
    _arrived: float = 0.0
    _steps: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=2))  # seconds from frame to frame
    _modulus: int = 0
    _base: Fraction = Fraction(1)
    _joining: Begins | None = "start"
    _goes_on: bool = False

    def connect(self, format_name: str, base: Fraction) -> None:
        """Another connection: its clock is another one, unless `overlaps` is called before its first frame."""
        self._modulus, self._base = MODULUS.get(format_name, 0), base
        self._joining = "start" if self._ticks is None else "reconnect"
        self._goes_on = False

    def overlaps(self) -> None:
        """The connection repeats what came before, so its clock is the same."""
        self._goes_on = self._ticks is not None

    def set(self, pts: int, moment: float) -> None:
        """The next frame, of time `pts`, is of that moment."""
        self._anchor, self._ticks, self._joining = moment - float(pts * self._base), pts, None
        self._moment = moment

    def place(self, pts: int, arrived: float) -> tuple[float, Begins | None]:
        """The moment of the next frame in the order of showing, and what begins with it."""
        begins, self._joining = self._joining, None
        if self._ticks is None or (begins is not None and not self._goes_on):
            ticks = pts
            self._anchor = max(arrived, self.floor, self._moment) - float(ticks * self._base)
        else:
            step, usual = self._nearest(pts - self._ticks), min(self._steps)
            ticks = self._ticks + step
            seconds, passed = float(step * self._base), arrived - self._arrived
            if begins is None and (step < 0 or seconds > max(MAX_STEP_SECONDS, USUAL_STEPS * usual)):
                begins = "gap" if step > 0 and abs(passed - seconds) < TOLERANCE_SECONDS else "jump"
                if begins == "jump":
                    self._anchor = max(arrived, self._moment + usual) - float(ticks * self._base)
            self._steps.append(abs(seconds))
        self._ticks, self._arrived = ticks, arrived
        self._moment = self._anchor + float(ticks * self._base)
        return self._moment, begins

    def _nearest(self, step: int) -> int:
        """A step of a clock that begins again after `_modulus` ticks."""
        half = self._modulus // 2
        return (step + half) % self._modulus - half if self._modulus else step


@dataclass
class Grid:
    """Which frames of a stream are taken: the first at or after each i / `fps` seconds from its first, each once."""

    fps: float
    _start: float = 0.0
    _next: int = 0

    def begin(self, moment: float) -> None:
        """Count from here."""
        self._start, self._next = moment, 0

    def takes(self, moment: float) -> bool:
        """Is this frame wanted? Moments rise."""
        place = (moment - self._start) * self.fps + 1e-4  # moments are floats of the epoch
        if place < self._next:
            return False
        self._next = math.floor(place) + 1
        return True
