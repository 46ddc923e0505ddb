"""Which frames of a video are kept: chosen by presentation time, while the video streams by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vococache.errors import InputError

MAX_FPS = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """Either `fps`: the frame on display at i / fps seconds for i = 0, 1, 2, ...; or `num_frames` evenly spread ones.

    Raises `InputError` on values that choose nothing.
    """

    fps: float | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.fps is None and self.num_frames is None:
            object.__setattr__(self, "fps", 1.0)
        if self.fps is not None and self.num_frames is not None:
            raise InputError("expected one of fps and num_frames, found both")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise InputError(f"expected fps above 0 and at most {MAX_FPS:g}, found {self.fps:g}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"expected num_frames of 1 or more, found {self.num_frames}")

    @classmethod
    def chosen(
        cls, fps: float | None, num_frames: int | None, made_for: Mapping[str, float] | None = None
    ) -> "FrameSampling":
        """What was asked for, else what the model was `made_for`, else one frame a second."""
        if fps is None and num_frames is None and made_for is not None:
            return cls.from_dict(dict(made_for))
        return cls(fps=fps, num_frames=num_frames)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: the one setting that is in force."""
        return {"fps": float(self.fps)} if self.fps is not None else {"num_frames": self.num_frames}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FrameSampling":
        """The inverse of `to_dict`."""
        return cls(**data)

    def expected_frames(self, duration: float | None) -> int | None:
        """How many frames a video of `duration` seconds gives; None where that is unknown."""
        if self.num_frames is not None:
            return self.num_frames
        assert self.fps is not None
        return None if duration is None else max(1, math.ceil(duration * self.fps))


class Targets:
    """The moments at which `sampling` looks, used up in time order as the frames stream by.

    A frame is taken as often as moments fall into its display time, so that nothing needs an index of the
    file. `num_frames` is spread over the real `duration` in seconds, which must then be known.
    """

    def __init__(self, sampling: FrameSampling, duration: float | None = None) -> None:
        assert sampling.num_frames is None or duration is not None
        self._sampling = sampling
        self._duration = duration or 0.0
        self._next = 0

    def take(self, until: float) -> int:
        """How many moments lie before `until` seconds, apart from those already taken."""
        first = self._next
        while self._moment() < until:
            self._next += 1
        return self._next - first

    def _moment(self) -> float:
        if self._sampling.fps is not None:
            return self._next / self._sampling.fps
        assert self._sampling.num_frames is not None
        if self._next >= self._sampling.num_frames:
            return math.inf
        return (self._next + 0.5) * self._duration / self._sampling.num_frames
