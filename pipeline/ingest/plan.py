"""What an ingest has to do: each source against what the store holds already."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from vococache.errors import VideoError
from vococache.pipeline.ingest.sources import Source
from vococache.storage import Store, VideoInfo
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import SourceStat, content_hash, is_url, stat_source, why_absent

REMOTE_LOOKS = 16  # at once: each waits for an answer


class SourceState(Enum):
    """What is to be done about one source."""

    WORK = "work"
    UP_TO_DATE = "up to date"
    MISSING = "missing"
    FAILED_BEFORE = "failed before"
    REFUSED = "refused"


class Decision(NamedTuple):
    """A verdict, why where nothing is done, and the file's size and time where the store has others on record."""

    verdict: SourceState
    reason: str = ""
    moved: SourceStat | None = None


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """The videos to work on, and those that need nothing: (id, verdict, reason).

    `moved`: of those up to date, the files that lie elsewhere, or are of another time, than the store has on record.
    `equal`: videos with the content of one that the store holds, by id: its id, and their own file.
    `missing`: files that are not there, of videos of which the store holds nothing.
    `metadata`: what manifests say of videos, by id; `described`: those up to date that
    the store describes otherwise.
    """

    work: list[VideoTask] = field(default_factory=list)
    settled: list[tuple[str, SourceState, str]] = field(default_factory=list)
    moved: dict[str, tuple[str, SourceStat]] = field(default_factory=dict)
    equal: dict[str, tuple[str, str, SourceStat]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    described: set[str] = field(default_factory=set)


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

    def plan(self, sources: Sequence[Source], store: Store) -> IngestPlan:
        """Decide about each source. File contents are read only where size, time and place leave it open."""
        infos = store.list()
        known = {info.id: info for info in infos}
        plan = IngestPlan(metadata={source.video: source.metadata for source in sources if source.metadata})
        remote = any(is_url(source.location) for source in sources)
        with ThreadPoolExecutor(REMOTE_LOOKS if remote else os.cpu_count()) as pool:
            judged = pool.map(lambda source: self._judge(source, known.get(source.video), store), sources)
            for source, (verdict, reason, moved) in zip(sources, judged, strict=True):
                if verdict is SourceState.WORK:
                    plan.work.append(VideoTask(video=source.video, source=source.location))
                    continue
                plan.settled.append((source.video, verdict, reason))
                info = known.get(source.video)
                if verdict is SourceState.MISSING and (info is None or info.status == "failed"):
                    plan.missing[source.video] = source.location
                if (
                    verdict is SourceState.UP_TO_DATE
                    and info
                    and plan.metadata.get(source.video, info.metadata) != info.metadata
                ):
                    plan.described.add(source.video)
                if moved is not None:
                    plan.moved[source.video] = source.location, moved
            if self.reuse:
                self._find_equal(plan, infos, pool)
        return plan

    def _find_equal(self, plan: IngestPlan, infos: Iterable[VideoInfo], pool: ThreadPoolExecutor) -> None:
        """Move from the work of `plan` what the store holds under other ids."""
        complete = [i for i in infos if i.status == "complete" and i.sampling == self.sampling.to_dict()]
        sizes = {info.size for info in complete}
        ids = {info.content_hash: info.id for info in complete}

        def equal(task: VideoTask) -> tuple[str, str, SourceStat] | None:
            stat = stat_source(task.source)
            if stat is None or stat.size not in sizes:
                return None
            try:
                video = ids.get(content_hash(task.source))
            except VideoError:
                return None
            return None if video is None else (video, task.source, stat)

        found = list(pool.map(equal, plan.work))
        plan.equal.update({task.video: of for task, of in zip(plan.work, found, strict=True) if of is not None})
        plan.work[:] = [task for task in plan.work if task.video not in plan.equal]

    def _missing(self, source: Source) -> Decision | None:
        """That there is no file, where that can be known here."""
        if not self.local or is_url(source.location) or stat_source(source.location) is not None:
            return None
        return Decision(SourceState.MISSING, why_absent(source.location))

    def _judge(self, source: Source, known: VideoInfo | None, store: Store) -> Decision:
        """What to do about one source."""
        if known is None or known.status == "partial" or self.redo:
            return self._missing(source) or Decision(SourceState.WORK)
        if known.status == "growing":
            reason = f"it grows, from {known.source}; `voco rm` takes it away where that has ended"
            return Decision(SourceState.REFUSED, reason)
        if known.status == "failed" and (kind := store.obstacle(known.id)):
            reason = f"a {kind} lies in its place in the store, which is never followed; `voco rm` removes it"
            return Decision(SourceState.REFUSED, reason)
        stat = stat_source(source.location)
        if stat is None:  # gone, or out of reach
            if known.status == "failed":
                return self._missing(source) or Decision(SourceState.WORK)
            if (known.source, known.sampling) == (source.location, self.sampling.to_dict()):
                return Decision(SourceState.UP_TO_DATE)  # a cache may outlive its video
            reason = f"there is no {source.location}; the cache of that id, from {known.source}, is kept"
            return Decision(SourceState.REFUSED, reason)
        unchanged = _on_record(known, source, stat)
        if known.status == "failed":
            if self.retry_failed or not unchanged:
                return Decision(SourceState.WORK)
            return Decision(SourceState.FAILED_BEFORE, f"{known.reason} (failed before; --retry-failed tries again)")
        if known.begun is not None and (known.begun["source"], known.begun["sampling"]) == (
            source.location,
            self.sampling.to_dict(),
        ):
            return Decision(SourceState.WORK)  # an ingest that was asked to make it anew did not come to its end
        if (self.check_content or not unchanged) and not _same_content(known, source, stat):
            if self.overwrite or known.source == source.location:  # edited since
                return Decision(SourceState.WORK)
            return Decision(
                SourceState.REFUSED,
                f"the store holds another video of that id, from {known.source}; give ids in a manifest, or"
                " --overwrite",
            )
        if known.sampling == self.sampling.to_dict():
            return Decision(SourceState.UP_TO_DATE, moved=None if unchanged else stat)
        if self.overwrite:
            return Decision(SourceState.WORK)
        return Decision(
            SourceState.REFUSED, f"complete with other sampling ({known.sampling}); --overwrite makes it anew"
        )


def _on_record(known: VideoInfo, source: Source, stat: SourceStat) -> bool:
    """The same place, size and modification time?"""
    return (known.source, known.size, known.mtime_ns) == (source.location, stat.size, stat.mtime_ns)


def _same_content(known: VideoInfo, source: Source, stat: SourceStat) -> bool:
    """Same size and sha256? Not, where the content cannot be read."""
    try:
        return known.size == stat.size and known.content_hash == content_hash(source.location)
    except VideoError:
        return False
