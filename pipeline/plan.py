"""What an ingest has to do: each source against what the store holds already."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vococache.errors import VideoError
from vococache.pipeline.sources import Source
from vococache.storage import Store, VideoInfo
from vococache.workers.rows import VideoTask
from vococache.workers.sampling import Sampling
from vococache.workers.source import SourceStat, content_hash, stat_source


class Verdict(Enum):
    """What is to be done about one source."""

    WORK = "work"
    UP_TO_DATE = "up to date"
    FAILED_BEFORE = "failed before"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Plan:
    """The videos to work on, and those that need nothing: (id, verdict, reason)."""

    work: list[VideoTask]
    settled: list[tuple[str, Verdict, str]]


def make_plan(
    sources: Sequence[Source],
    store: Store,
    sampling: Sampling,
    overwrite: bool,
    check_content: bool,
    retry_failed: bool,
) -> Plan:
    """Decide about each source from the store's list; reads file contents only where `check_content` asks."""
    known = {info.id: info for info in store.list()}
    plan = Plan([], [])
    for source in sources:
        info = known.get(source.video)
        if info is not None and info.status == "failed" and (kind := store.obstacle(info.id)):
            reason = f"a {kind} lies in its place in the store, which is never followed; `voco rm` removes it"
            plan.settled.append((source.video, Verdict.REFUSED, reason))
            continue
        verdict, reason = judge(source, info, sampling, overwrite, check_content, retry_failed)
        if verdict is Verdict.WORK:
            plan.work.append(VideoTask(video=source.video, source=source.location))
        else:
            plan.settled.append((source.video, verdict, reason))
    return plan


def judge(
    source: Source,
    known: VideoInfo | None,
    sampling: Sampling,
    overwrite: bool,
    check_content: bool,
    retry_failed: bool,
) -> tuple[Verdict, str]:
    """What to do about one source, and why where that is nothing."""
    if known is None or known.status == "partial":
        return Verdict.WORK, ""
    stat = stat_source(source.location)
    if stat is None:  # gone, or out of reach
        if known.status == "failed":
            return Verdict.WORK, ""  # the decoder will say what is wrong with it
        if (known.source, known.sampling) == (source.location, sampling.to_dict()):
            return Verdict.UP_TO_DATE, ""  # a cache may outlive its video
        return Verdict.REFUSED, f"there is no {source.location}; the cache of that id, from {known.source}, is kept"
    if known.status == "failed":
        if retry_failed or known.source != source.location or not unchanged(known, stat):
            return Verdict.WORK, ""
        return Verdict.FAILED_BEFORE, f"{known.reason} (failed before; --retry-failed tries again)"
    if known.source == source.location:
        same = same_content(known, source, stat) if check_content else unchanged(known, stat)
        if not same:
            return Verdict.WORK, ""  # edited since
    elif not same_content(known, source, stat):
        if overwrite:
            return Verdict.WORK, ""
        return Verdict.REFUSED, (
            f"the store holds another video of that id, from {known.source}; give ids in a manifest, or --overwrite"
        )
    if known.sampling == sampling.to_dict():
        return Verdict.UP_TO_DATE, ""
    if overwrite:
        return Verdict.WORK, ""
    return Verdict.REFUSED, f"complete with other sampling ({known.sampling}); --overwrite makes it anew"


def unchanged(known: VideoInfo, stat: SourceStat) -> bool:
    """Same size and modification time?"""
    return (known.size, known.mtime_ns) == (stat.size, stat.mtime_ns)


def same_content(known: VideoInfo, source: Source, stat: SourceStat) -> bool:
    """Same size and sha256? Not, where the content cannot be read."""
    try:
        return known.size == stat.size and known.content_hash == content_hash(source.location)
    except VideoError:
        return False
