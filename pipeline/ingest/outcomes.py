"""The driver's half of ingest: receipts come in, in any order; a video is completed when all of it is there."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, StoreMismatchError
from vococache.storage import ChunkReceipt, Store, VideoInfo
from vococache.workers.rows import End, Row, VideoTask


@dataclass(slots=True)
class _OpenVideo:
    """What has come in of one video so far; keys are (attempt, chunk index)."""

    receipts: dict[tuple[int, int], ChunkReceipt | None] = field(default_factory=dict)
    timestamps: dict[tuple[int, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    end: Row | None = None


class Collector:
    """Completes or fails videos in a store as their rows come in. Rows may come twice: Ray retries.

    `waiting`: the tasks that are under way. What is left of them when no more rows come is to be run again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, _OpenVideo] = {}
        self.waiting: dict[str, VideoTask] = {}
        self.settled = self.failed = 0  # how many videos, and how many of them failed
        self.open_segments = 0  # stored, of videos that are not complete yet
        self.seconds: dict[str, Counter[str]] = {}  # what each stage spent on each video so far

    def expect(self, tasks: Iterable[VideoTask]) -> Iterator[VideoTask]:
        """Pass tasks on to the stages, and wait for their rows from then on."""
        for task in tasks:
            self.waiting[task.video] = task
            yield task

    def start_over(self) -> list[VideoTask]:
        """Forget the rows of what is not settled; its tasks."""
        for video in list(self._open):
            self._forget(video)
        self.seconds.clear()
        return list(self.waiting.values())

    def add(self, row: Row) -> VideoInfo | None:
        """Take in a row; the video's info when the row settles it as complete or failed."""
        if row.video not in self.waiting:
            return None
        self.seconds.setdefault(row.video, Counter()).update(row.seconds)
        if row.info is not None:
            return self._settle(row.video, row.info)
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
                info = self._store.complete(name, row.intent, receipts, times, end.duration, end.findings, end.metadata)
                return self._settle(name, info)
            except (CorruptionError, StoreMismatchError):
                pass  # another run removed a chunk, or began the video anew
        self._forget(name)
        return None

    def _failed(self, name: str, reason: str, end: End | None) -> VideoInfo:
        """Record a failure. But a complete video goes only with a content that is known to be another."""
        known = self._store.find(name)
        same = known is not None and (end is None or end.content_hash in (None, known.content_hash))
        if known is not None and same and known.status in ("complete", "growing"):
            return replace(known, status="failed", reason=f"{reason} (the cache that the store holds is kept)")
        origin = end or (
            known if known and known.source else None
        )  # a chunk that fails comes without an end, after its video's intent
        if origin is None:
            return self._store.fail(name, reason)
        return self._store.fail(name, reason, source=origin.source, size=origin.size, mtime_ns=origin.mtime_ns)

    def _settle(self, name: str, info: VideoInfo) -> VideoInfo:
        self._forget(name)
        del self.waiting[name]
        self.settled += 1
        self.failed += info.status == "failed"
        return info

    def _forget(self, name: str) -> None:
        video = self._open.pop(name, _OpenVideo())
        self.open_segments -= sum(len(video.timestamps[key]) for key, receipt in video.receipts.items() if receipt)
