"""Which part of stored videos was read, and what an answer rests on. Free of torch: clients need no more."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSpan:
    """Segments `start` to `stop` (exclusive) of one video, and the times of their first and last frames."""

    video: str
    start: int
    stop: int
    start_time: float
    end_time: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Segments of a video, by their numbers in order, that are read with so many `tokens` each."""

    video: str
    numbers: Sequence[int]
    tokens: int

    @property
    def positions(self) -> int:
        """Positions that they take."""
        return len(self.numbers) * self.tokens


def count_whole(pieces: Sequence[Piece], tokens: int) -> int:
    """How many segments are read whole: with more than the `tokens` that the caches have of each."""
    return sum(len(piece.numbers) for piece in pieces if piece.tokens > tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """What was read of a long video's rest: `segments` in all, every n-th (`every`), with `tokens` each."""

    every: int
    tokens: int
    segments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Seconds `start` to `end` of a video that an answer rests on.

    `score`: 1 of the best segment read, 0 of the worst.
    """

    video: str
    start: float
    end: float
    score: float
