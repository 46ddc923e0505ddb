"""The driver's half of ingest: receipts come in, in any order; a video is completed when all of it is there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, StoreError, StoreMismatchError
from vococache.storage import ChunkReceipt, Store, VideoInfo
from vococache.workers.rows import End, Row


@dataclass(slots=True)
class _OpenVideo:
    """What has come in of one video so far; keys are (attempt, chunk index)."""

    receipts: dict[tuple[int, int], ChunkReceipt | None] = field(default_factory=dict)
    timestamps: dict[tuple[int, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    end: Row | None = None


class Collector:
    """Completes or fails videos in a store as their rows come in. Rows may come twice: Ray retries.

    `metadata`: what a manifest says of videos, by id.
    """

    def __init__(self, store: Store, metadata: Mapping[str, dict[str, Any]] | None = None) -> None:
        self._store = store
        self._metadata = metadata or {}
        self._open: dict[str, _OpenVideo] = {}
        self.settled: set[str] = set()  # videos that are complete or failed; all others are to be run again
        self.open_segments = 0  # stored, of videos that are not complete yet
        self.seconds: dict[str, Counter[str]] = {}  # what each stage spent on each video so far

    def add(self, row: Row) -> VideoInfo | None:
        """Take in a row; the video's info when the row settles it as complete or failed."""
        if row.video in self.settled:
            return None
        self.seconds.setdefault(row.video, Counter()).update(row.seconds)
        if row.error is not None:
            return self._settle(row.video, self._failed(row.video, row.error, row.end))
        video = self._open.setdefault(row.video, _OpenVideo())
        if row.end is not None:
            video.end = row
        if row.timestamps is not None:
            if row.receipt is not None and (row.attempt, row.index) not in video.receipts:
                self.open_segments += len(row.timestamps)
            video.receipts[row.attempt, row.index] = row.receipt
            video.timestamps[row.attempt, row.index] = row.timestamps
        if video.end is None or video.end.end is None:
            return None
        keys = [(video.end.attempt, index) for index in range(video.end.end.chunks)]
        if not video.receipts.keys() >= set(keys):
            return None
        return self._complete(row.video, video, video.end, video.end.end, keys)

    def _complete(
        self, name: str, video: _OpenVideo, row: Row, end: End, keys: Sequence[tuple[int, int]]
    ) -> VideoInfo | None:
        receipts = [receipt for key in keys if (receipt := video.receipts.get(key)) is not None]
        if len(receipts) == len(keys):
            times = np.concatenate([video.timestamps[key] for key in keys])
            try:
                metadata = self._metadata.get(name)
                info = self._store.complete(name, row.intent, receipts, times, end.duration, end.findings, metadata)
                return self._settle(name, info)
            except (CorruptionError, StoreMismatchError):
                pass  # another run removed a chunk, or began the video anew
        self._forget(name)
        return None

    def _failed(self, name: str, reason: str, end: End | None) -> VideoInfo:
        """Record a failure. But a complete video goes only with a content that is known to be another."""
        try:
            known = self._store.info(name)
        except StoreError:
            known = None
        same = known is not None and (end is None or end.content_hash in (None, known.content_hash))
        if known is not None and same and known.status in ("complete", "growing"):
            return replace(known, status="failed", reason=f"{reason} (the cache that the store holds is kept)")
        origin = end or known  # a chunk that fails comes without an end, after its video's intent
        if origin is None:
            return self._store.fail(name, reason)
        return self._store.fail(name, reason, source=origin.source, size=origin.size, mtime_ns=origin.mtime_ns)

    def _settle(self, name: str, info: VideoInfo) -> VideoInfo:
        self._forget(name)
        self.settled.add(name)
        return info

    def _forget(self, name: str) -> None:
        video = self._open.pop(name, _OpenVideo())
        self.open_segments -= sum(len(video.timestamps[key]) for key, receipt in video.receipts.items() if receipt)
