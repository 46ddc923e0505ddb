"""What an ingest has to do: each source against what the store holds already."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice
from operator import length_hint
from threading import Event
from typing import NamedTuple, TypeVar

from vococache.errors import VideoError
from vococache.pipeline.ingest.sources import Source
from vococache.storage import StoreReader, VideoInfo
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import SourceStat, content_hash, is_url, stat_source, why_absent

T = TypeVar("T")
R = TypeVar("R")

REMOTE_LOOKS = 16  # at once: each waits for an answer
LOCAL_LOOKS = 64  # that one thread takes in a row: each is shorter than handing it over


class SourceState(Enum):
    """What is to be done about one source."""

    WORK = "work"
    UP_TO_DATE = "up to date"
    MISSING = "missing"
    FAILED_BEFORE = "failed before"
    REFUSED = "refused"
    EQUAL = "equal to another"


class Decision(NamedTuple):
    """What is to be done, why where that is nothing, and the file's size and time as far as they were looked at.

    Of what is up to date, `moved`: the store has another place, size or time on record, and `described`: a manifest
    says something else of it than the store does. `unknown`: of a file that is missing, that the store holds nothing of
    it. `of`: the id of the video that has the same content.
    """

    state: SourceState
    reason: str = ""
    stat: SourceStat | None = None
    moved: bool = False
    described: bool = False
    unknown: bool = False
    of: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planner:
    """How sources are judged: the options of an ingest that decide what is left to do."""

    sampling: FrameSampling
    overwrite: bool = False
    check_content: bool = False
    retry_failed: bool = False
    reuse: bool = False
    redo: bool = False
    local: bool = False  # are files read here, so that one that is missing here is missing?

    def judge(self, sources: Iterable[Source], store: StoreReader) -> Iterator[tuple[Source, Decision]]:
        """Decide about each source, in their order, as it is asked for.

        What the store holds is as it is now, on an object store by its catalog. File contents are read only where size,
        time and place leave it open.
        """
        find = store.finder(length_hint(sources, 1))
        equal = _Equal(store, self.sampling) if self.reuse else None

        def judge(source: Source) -> tuple[Source, Decision]:
            known = find(source.video)
            found = self._judge(source, known, store)
            if found.state is SourceState.UP_TO_DATE and known and source.metadata:
                found = found._replace(described=source.metadata != known.metadata)
            if equal is not None and found.state is SourceState.WORK:
                found = equal.judge(source, found)
            return source, found

        rest = iter(sources)
        for first in rest:
            remote = not store.is_local or is_url(first.location)
            yield from _map_ahead(judge, chain([first], rest), remote)

    def _missing(self, source: Source, stat: SourceStat | None, known: VideoInfo | None) -> Decision | None:
        """That there is no file, where that can be known here."""
        if not self.local or is_url(source.location) or stat is not None:
            return None
        unknown = known is None or known.status == "failed"
        return Decision(SourceState.MISSING, why_absent(source.location), unknown=unknown)

    def _judge(self, source: Source, known: VideoInfo | None, store: StoreReader) -> Decision:
        """What to do about one source."""
        if known is not None and known.status == "failed" and (kind := store.obstacle(known.id)):
            reason = f"a {kind} lies in its place in the store, which is never followed; `voco rm` removes it"
            return Decision(SourceState.REFUSED, reason)
        if known is None and is_url(source.location):  # whoever decodes it looks at it
            return Decision(SourceState.WORK, stat=source.stat)
        stat = source.stat or stat_source(source.location)
        if known is None or known.status == "partial" or self.redo:
            return self._missing(source, stat, known) or Decision(SourceState.WORK, stat=stat)
        if known.status == "growing":
            reason = f"it grows, from {known.source}; `voco rm` takes it away where that has ended"
            return Decision(SourceState.REFUSED, reason)
        if stat is None:  # gone, or out of reach
            if known.status == "failed":
                return self._missing(source, stat, known) or Decision(SourceState.WORK)
            if (known.source, known.sampling) == (source.location, self.sampling.to_dict()):
                return Decision(SourceState.UP_TO_DATE)  # a cache may outlive its video
            reason = f"there is no {source.location}; the cache of that id, from {known.source}, is kept"
            return Decision(SourceState.REFUSED, reason)
        unchanged = _on_record(known, source, stat)
        if known.status == "failed":
            if self.retry_failed or not unchanged:
                return Decision(SourceState.WORK, stat=stat)
            return Decision(SourceState.FAILED_BEFORE, f"{known.reason} (failed before; --retry-failed tries again)")
        begun = known.begun
        if begun is not None and (begun["source"], begun["sampling"]) == (source.location, self.sampling.to_dict()):
            return Decision(SourceState.WORK, stat=stat)  # an ingest that was to make it anew did not come to its end
        if (self.check_content or not unchanged) and not _same_content(known, source, stat):
            if self.overwrite or known.source == source.location:  # edited since
                return Decision(SourceState.WORK, stat=stat)
            return Decision(
                SourceState.REFUSED,
                f"the store holds another video of that id, from {known.source}; give ids in a manifest, or"
                " --overwrite",
            )
        if known.sampling == self.sampling.to_dict():
            return Decision(SourceState.UP_TO_DATE, stat=stat, moved=not unchanged)
        if self.overwrite:
            return Decision(SourceState.WORK, stat=stat)
        return Decision(
            SourceState.REFUSED, f"complete with other sampling ({known.sampling}); --overwrite makes it anew"
        )


class _Equal:
    """Finds what the store holds under other ids."""

    def __init__(self, store: StoreReader, sampling: FrameSampling) -> None:
        complete = [i for i in store.list() if i.status == "complete" and i.sampling == sampling.to_dict()]
        self._sizes = {info.size for info in complete}
        self._ids = {info.content_hash: info.id for info in complete}

    def judge(self, source: Source, work: Decision) -> Decision:
        """That a source that is `work` has the content of another video, or `work`."""
        stat = work.stat or stat_source(source.location)
        if stat is None or stat.size not in self._sizes:
            return work
        try:
            video = self._ids.get(content_hash(source.location))
        except VideoError:
            return work
        return work if video is None else Decision(SourceState.EQUAL, of=video, stat=stat)


def _map_ahead(function: Callable[[T], R], items: Iterable[T], remote: bool) -> Iterator[R]:
    """`function` of each item, in order, by threads that are some items ahead of whoever takes the results."""
    threads = REMOTE_LOOKS if remote else os.cpu_count() or 1
    rest, length = iter(items), 1 if remote else LOCAL_LOOKS
    over = Event()

    def looked(part: list[T]) -> list[R]:
        return [function(item) for item in part if not over.is_set()]

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[R]]] = deque()
        try:
            while part := list(islice(rest, length)):
                ahead.append(pool.submit(looked, part))
                if len(ahead) > 2 * threads:
                    yield from ahead.popleft().result()
            yield from chain.from_iterable(future.result() for future in ahead)
        finally:
            over.set()
            for future in ahead:
                future.cancel()


def _on_record(known: VideoInfo, source: Source, stat: SourceStat) -> bool:
    """The same place, size and modification time?"""
    return (known.source, known.size, known.mtime_ns) == (source.location, stat.size, stat.mtime_ns)


def _same_content(known: VideoInfo, source: Source, stat: SourceStat) -> bool:
    """Same size and sha256? Not, where the content cannot be read."""
    try:
        return known.size == stat.size and known.content_hash == content_hash(source.location)
    except VideoError:
        return False
