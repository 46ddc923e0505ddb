"""Which part of a stored video was read. Free of torch: whoever asks a service needs no more."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSpan:
    """Segments `start` to `stop` (exclusive) of one video, and the times of their first and last frames."""

    video: str
    start: int
    stop: int
    start_time: float
    end_time: float
