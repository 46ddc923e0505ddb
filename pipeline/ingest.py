"""The main job: videos become VoCo caches in a store, through Ray."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vococache.errors import WorkersLostError
from vococache.pipeline.collect import Collector
from vococache.pipeline.plan import Plan, Verdict, make_plan
from vococache.pipeline.sources import find_sources
from vococache.storage import Store, VideoInfo, open_store
from vococache.workers.sampling import Sampling
from vococache.workers.source import is_url

# What a dying worker of an earlier run overwrote, or Ray lost, is done again; more than twice is no accident.
MAX_PASSES = 3


@dataclass(kw_only=True)
class IngestReport:
    """What an ingest did. Lists hold video ids; `failed` and `refused` map an id to its reason."""

    store: str
    done: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    segments: int = 0
    bytes: int = 0
    startup_seconds: float = 0.0
    run_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.failed and not self.refused

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an ingest is: videos and segments so far in this run."""

    videos: int
    total: int
    segments: int
    failed: int


def ingest(
    videos: str | os.PathLike[str] | Sequence[str],
    store: str | os.PathLike[str],
    *,
    model: str = "synthetic",
    fps: float | None = None,
    num_frames: int | None = None,
    tokens: int | None = None,
    segment_frames: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    address: str | None = None,
    overwrite: bool = False,
    check_content: bool = False,
    retry_failed: bool = False,
    decode_timeout: float = 60.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> IngestReport:
    """Compress `videos` into the store at the path or URL `store`, which is made if absent.

    `videos`: files, folders (recursive), globs, fsspec URLs, CSV/JSONL manifests. `fps` (default 1) or
    `num_frames`: which frames, by presentation time. `tokens` (K) and `segment_frames`: the model's own when None.
    `device`: "cpu" or "cuda" for the compressor; by default GPUs where Ray has any. `address`: a Ray cluster; by
    default a local Ray is started and stopped. `overwrite`: redo videos that are complete with other sampling
    or of another source. `check_content`: compare sha256, not size and modification time. `retry_failed`: try
    again what failed before and did not change.

    Running it again does no work for what is complete, and resumes what was interrupted at its last chunk.
    A bad video costs itself alone: it is recorded in the store and in the report. Raises `InputError`,
    `ModelError` or `StoreError` before any work starts when the job itself cannot run.
    """
    sampling = Sampling(fps=fps, num_frames=num_frames)
    sources = find_sources([os.fspath(videos)] if isinstance(videos, str | os.PathLike) else videos)
    from vococache.workers import actors
    from vococache.workers.compress import Compressor, CompressStage, frame_geometry
    from vococache.workers.decode import DecodeStage

    report = IngestReport(store=os.fspath(store))
    # The actors have working directories of their own.
    store, model = absolute(report.store), absolute(model) if Path(model).is_dir() else model
    compressor = Compressor(model=model, dtype=dtype, tokens=tokens, frames=segment_frames)
    started = time.perf_counter()
    ours = False
    try:
        if address is None:  # refuse, or find nothing to do, before a local Ray is started
            header = actors.describe_compressor(compressor, device)
        else:
            ours = actors.start_ray(address)
            header = actors.describe_compressor_remotely(compressor, device)
        opened = open_store(store, "a", header=header)
        plan = make_plan(sources, opened, sampling, overwrite, check_content, retry_failed)
        _note_settled(report, plan)
        if plan.work:
            ours = actors.start_ray(address) or ours
            actors.check_store_visible(opened, store, local=address is None)
            decode = DecodeStage(
                store_url=store,
                sampling=sampling,
                geometry=frame_geometry(header),
                frames_per_segment=header.frames_per_segment,
                timeout_s=decode_timeout,
            )
            compress = CompressStage(store_url=store, compressor=compressor, device=device)
            pools = actors.choose_pools(device, local=address is None)
            report.startup_seconds = time.perf_counter() - started
            _run(report, plan, opened, lambda tasks: actors.run_stages(tasks, decode, compress, pools), on_progress)
            report.run_seconds = time.perf_counter() - started - report.startup_seconds
    finally:
        if ours:
            actors.stop_ray()
    return report


def absolute(place: str) -> str:
    """A path from the root on; URLs as they are."""
    return place if is_url(place) else str(Path(place).expanduser().absolute())


def _note_settled(report: IngestReport, plan: Plan) -> None:
    """Enter into the report what needs no work."""
    for video, verdict, reason in plan.settled:
        if verdict is Verdict.UP_TO_DATE:
            report.up_to_date.append(video)
        elif verdict is Verdict.FAILED_BEFORE:
            report.failed[video] = reason
        else:
            report.refused[video] = reason


def _run(
    report: IngestReport,
    plan: Plan,
    store: Store,
    run_stages: Callable[[Any], Any],
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Run the stages over the plan's work, complete each video as its last receipt comes in."""
    work = plan.work
    failed_before = len(report.failed)
    for count in range(1, MAX_PASSES + 1):
        collector = Collector(store)
        try:
            for row in run_stages(work):
                info = collector.add(row)
                if info is not None:
                    _note_info(report, info)
                if on_progress is not None:
                    failed = len(report.failed) - failed_before
                    settled, segments = len(report.done) + failed, report.segments + collector.open_segments
                    on_progress(Progress(videos=settled, total=len(plan.work), segments=segments, failed=failed))
        except WorkersLostError:
            if count == MAX_PASSES:
                raise
        work = [task for task in work if task.video not in collector.settled]
        if not work:
            return
    for task in work:
        report.failed[task.video] = "another ingest works on this video in the same store: run again when it is done"


def _note_info(report: IngestReport, info: VideoInfo) -> None:
    if info.status == "failed":
        report.failed[info.id] = info.reason or "unknown"
        return
    report.done.append(info.id)
    report.segments += info.segments
    report.bytes += info.bytes
