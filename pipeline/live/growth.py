"""A source's parts in the store: begun, grown chunk by chunk, completed, dropped when they are old."""

import hashlib
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import StoreMismatchError
from vococache.pipeline.live.clock import hour_of
from vococache.pipeline.live.parts import names_of, newest_first
from vococache.pipeline.live.sources import WatchSource
from vococache.storage import Intent, Store, claims, maintenance, whole
from vococache.storage.claims import Claim
from vococache.storage.whole import WholeSegment
from vococache.workers.video.live import Resume

Times = npt.NDArray[np.float64]  # [segments, frames], seconds from a part's first frame


@dataclass(kw_only=True, slots=True)
class GrowingPart:
    """A part that is being written. `started`: moment of its first frame, seconds since the epoch.

    `number`: that frame's place among all of its connection, and `inode` of the file, by which a watch goes on with a
    file. `whole`: so many of its newest segments are kept whole. `gap`: seconds between the part before and this one;
    `after`: what came between them.
    """

    video: str
    live: str
    source: str
    started: float
    fps: float
    chunk_segments: int
    whole: int = 0
    number: int = 0
    inode: int = 0
    gap: float = 0.0
    after: str = "start"
    thinned: int = 1  # one frame of so many was kept, at most
    chunks: int = 0  # that can be read
    is_given: bool = False  # has the compressor got any of it?
    is_lost: bool = False  # somebody removed it, or made another video of that name
    _recorded: int = 1  # of `thinned`

    @property
    def intent(self) -> Intent:
        """What its chunks are made of: this source, from this moment on."""
        digest = hashlib.sha256(f"{self.live} {self.started!r}".encode()).hexdigest()
        return Intent(
            source=self.source, content_hash=digest, size=0, mtime_ns=round(self.started * 1e9),
            sampling={"fps": float(self.fps)}, decoder="pyav", chunk_segments=self.chunk_segments,
        )  # fmt: skip

    @property
    def metadata(self) -> dict[str, Any]:
        """What its row says."""
        found: dict[str, Any] = {"live": self.live, "started": self.started, "after": self.after, "gap": self.gap}
        found |= {"number": self.number, "inode": self.inode} if self.inode else {}
        found |= {whole.METADATA: self.whole} if self.whole else {}
        return found | ({"thinned": self.thinned} if self.thinned > 1 else {})

    @property
    def hour(self) -> int:
        """Parts turn over with the hour."""
        return hour_of(self.started)

    def duration(self, times: Times) -> float:
        """Seconds up to the end of the last of `times`."""
        return float(times[-1, -1]) + 1 / self.fps


def begin(store: Store, part: GrowingPart, claim: Claim) -> str | None:
    """Announce a part; who has taken its source over, in which case nothing is announced.

    We look after it is announced: whoever takes the source over later finds the part, and ends it.
    """
    store.begin(part.video, part.intent)
    other = claims.taken_by(store, part.live, claim)
    if other is not None:
        store.abandon(part.video, part.intent.token)
    return other


def write(
    store: Store,
    part: GrowingPart,
    kv: npt.NDArray[Any],
    times: Times,
    entries: Mapping[int, npt.NDArray[Any]] | None = None,
) -> list[WholeSegment]:
    """Store the next chunk of a part, which can be read from then on; one that is not full ends it.

    `entries`: of the chunk's segments that are kept whole, by their place in it, as `whole.put` takes them; these are
    there before the chunk can be read, and returned.

    May be called again after a `StoreError`. Raises `StoreMismatchError` where others removed or ended the part.
    """
    token = part.intent.token
    receipt = store.write_chunk(part.video, token, part.chunks, kv)
    if receipt is None:
        raise StoreMismatchError(f"video {part.video!r} in {store.url} was removed, or has ended")
    kept = []
    for place, each in (entries or {}).items():
        kept.append(WholeSegment(part.video, token, part.chunks * part.chunk_segments + place))
        whole.put(store, *kept[-1], each)
    ends = len(times) < part.chunk_segments
    store.append(part.video, token, receipt, times, part.duration(times), part.metadata, ends=ends)
    if part.chunks and part.thinned != part._recorded:
        store.record_metadata(part.video, part.metadata)
    part._recorded = part.thinned
    part.chunks += 1
    return kept


def finish(store: Store, part: GrowingPart) -> None:
    """Complete a part, if there is anything in it."""
    if part.chunks:
        store.complete_grown(part.video, part.intent.token)


def take_over(store: Store, live: str) -> tuple[Claim, list[str]]:
    """Make a source ours, and complete what another watch of it left growing, or still does; the parts' names."""
    claim = claims.take(store, live, f"host {socket.gethostname()}, process {os.getpid()}")
    return claim, [name for name in names_of(store, live) if _ended(store, name)]


def _ended(store: Store, name: str) -> bool:
    """End a part that somebody has begun; False where there is none that can be read."""
    while (info := store.find(name)) is not None and info.status in ("growing", "partial"):
        intent = next((intent for intent, _ in store.intents(name)), None)
        if intent is None or intent.size or info.begun:  # no part, or one that is being removed or made anew
            return False
        with suppress(StoreMismatchError):  # it changed meanwhile
            if info.status == "growing":
                store.complete_grown(name, intent.token)
                return True
            if store.abandon(name, intent.token):
                return False
    return False


def drop_old(store: Store, live: str, keep: float) -> list[str]:
    """Remove the parts of a source that ended more than `keep` seconds before its newest frame; their names."""
    edge: float | None = None
    old = []
    for part in newest_first(store, live):
        edge = part.end if edge is None else edge
        if part.end < edge - keep and part.info.status == "complete":
            old.append(part.video)
    for name in old:
        maintenance.remove(store, name)
    return old


def where_it_stopped(store: Store, source: WatchSource) -> tuple[float, Resume | None]:
    """The end of what is stored of a source, and, of a file that is still the same, where to go on."""
    newest = next(newest_first(store, source.id), None)
    if newest is None:
        return 0.0, None
    about = newest.info.metadata or {}
    if not source.is_paced or source.source == "-" or about.get("inode") != inode_of(source):
        return newest.end, None
    last = newest.start + float(store.timestamps(newest.video)[-1, -1])
    return newest.end, Resume(int(about["number"]), newest.start, last)


def inode_of(source: WatchSource) -> int:
    """What tells a file from others; 0 of what is none, or not there."""
    try:
        return Path(source.source).stat().st_ino if source.is_paced and source.source != "-" else 0
    except OSError:
        return 0
