"""Placed caches that stay in memory between questions: the least recently asked go first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vococache.storage import VideoInfo
from vococache.workers.evidence import Grounds
from vococache.workers.reason import Context
from vococache.workers.spans import Piece


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a stored video: seconds from `start` to `end`, None for its own ends. Or its `last` seconds.

    Of a live source, or one of its parts, `start` and `end` are moments of the clock, as texts.
    """

    video: str
    start: float | str | None = None
    end: float | str | None = None
    last: float | None = None


Key = tuple[Piece, ...]  # all that is read, in its order


class Kept(NamedTuple):
    """A placed cache, what evidence is looked for in, if anything, and the rows of its videos when it was placed."""

    infos: tuple[VideoInfo, ...]
    context: Context
    grounds: Grounds | None

    @property
    def bytes(self) -> int:
        """Bytes that it holds."""
        return self.context.placed.bytes + (0 if self.grounds is None else self.grounds.bytes)


class PlacedContexts:
    """At most `limit` bytes of contexts. Not safe for threads: the one that answers has it to itself."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes of what is kept now."""
        return sum(kept.bytes for kept in self._kept.values())

    def get(self, key: Key, infos: Sequence[VideoInfo]) -> Kept | None:
        """What is kept of `key`, if its videos' rows are still `infos`: one that was made again is another video."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.infos != tuple(infos):
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, infos: Sequence[VideoInfo], context: Context, grounds: Grounds | None = None) -> Kept:
        """Keep a context; `shrink` before and after the pass that it is for."""
        self._kept[key] = kept = Kept(tuple(infos), context, grounds)
        self._kept.move_to_end(key)
        return kept

    def shrink(self) -> None:
        """Drop the least recently asked until the limit is kept. A pass leaves room for texts behind a cache."""
        total = self.bytes
        while total > self.limit:
            _, kept = self._kept.popitem(last=False)
            total -= kept.bytes
