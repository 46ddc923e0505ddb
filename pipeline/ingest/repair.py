"""Damaged videos are made anew from their sources."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from vococache.errors import StoreError, VideoError
from vococache.pipeline.ingest.driver import IngestReport
from vococache.pipeline.ingest.job import as_made, ingest_sources
from vococache.pipeline.ingest.options import IngestOptions
from vococache.pipeline.ingest.sources import Source
from vococache.storage import VideoInfo, open_store
from vococache.storage.maintenance import Problem
from vococache.workers.video.source import content_hash


@dataclass(kw_only=True)
class Repair:
    """Ids of the videos that are whole again; those that are not, and why."""

    done: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def repair(
    store: str,
    problems: Sequence[Problem],
    *,
    model: str | None = None,
    device: str | None = None,
    address: str | None = None,
) -> Repair:
    """Ingest again each video that one of `problems` is about, as it was sampled, where its source is still the same.

    Others are left as they are, damage included: they may be all that is left of their source. `model`: by default the
    store's own name for it. Killed, it leaves begun videos, which `ingest` finishes. Raises what `ingest` raises, for
    another model than the store's before anything is dropped.
    """
    opened = open_store(store)
    header, found = opened.header, Repair()
    damaged: dict[str, list[VideoInfo]] = {}
    for video in sorted({problem.video for problem in problems if problem.video is not None}):
        try:
            info = opened.info(video)
        except StoreError:
            found.left[video] = "its document, which names its source, is damaged: `voco rm` it and ingest it again"
            continue
        try:
            same = content_hash(info.source) == info.content_hash
        except VideoError as error:
            found.left[video] = f"its source {info.source} {error}"
            continue
        if same:
            damaged.setdefault(json.dumps(info.sampling), []).append(info)
        else:
            found.left[video] = f"its source {info.source} is another by now: `voco ingest` takes that"
    for sampling, infos in damaged.items():
        options = IngestOptions(
            model=model or header.model, **json.loads(sampling), **as_made(header), dtype=header.compute_dtype,
            device=device, address=address,
        )  # fmt: skip
        sources = [Source(info.id, info.source, metadata=info.metadata or {}) for info in infos]
        report = ingest_sources(sources, IngestReport(store=store), options, redo=True)
        found.done += report.done
        found.left |= report.failed | report.refused
    return found
