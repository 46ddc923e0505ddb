"""The main job: videos become VoCo caches in a store, through Ray."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vococache.errors import CorruptionError, InputError, WorkersLostError
from vococache.pipeline.ingest.events import Event, Watchdog, logger, stalled
from vococache.pipeline.ingest.outcomes import Collector
from vococache.pipeline.ingest.plan import IngestPlan, Planner, SourceState
from vococache.pipeline.ingest.sources import LeftOutFiles, find_sources
from vococache.storage import Store, StoreHeader, open_store
from vococache.workers.rows import Row, VideoTask
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import is_url

# What a dying worker of an earlier run overwrote, or Ray lost, is done again; more than twice is no accident.
MAX_PASSES = 3


@dataclass(kw_only=True)
class IngestReport:
    """What an ingest did. Lists hold video ids; `failed` and `refused` map an id to its reason.

    `reused`: videos whose caches were copied from one of the same content. `left_out`: how many things of each kind the
    named folders and manifests hold that are no videos.
    `damaged` maps those of `done` whose source had lost something, or whose clock jumped, to what was found.
    """

    store: str
    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    bytes: int = 0
    damaged: dict[str, dict[str, Any]] = field(default_factory=dict)
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
    compression: str | None = None,
    tokens: int | None = None,
    segment_frames: int | None = None,
    chat_template: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    address: str | None = None,
    overwrite: bool = False,
    check_content: bool = False,
    retry_failed: bool = False,
    reuse: bool = False,
    redo: bool = False,
    decode_timeout: float = 60.0,
    max_pixels: int | None = None,
    max_damage: float | None = None,
    stall_after: float = 300.0,
    on_progress: Callable[[Progress], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> IngestReport:
    """Compress `videos` into the store at the path or URL `store`, which is made if absent.

    `videos`: files, folders (recursive), globs, fsspec URLs, CSV/JSONL manifests. `fps` or `num_frames`: which frames,
    by presentation time; by default as the model was made for, or one a second. `model`: a folder, an embedded model's
    name or a Hugging Face hub id. `compression` ("voco", or without VoCo tokens "cover", "pool", "full"), `tokens` (K)
    and `segment_frames` (F): the model's own when None, and so is `chat_template`, Jinja text that a model without VoCo
    tokens is asked by.
    `quantize`: "int8" or "int4", how a new store keeps caches; by default as they were computed.
    `device`: "cpu" or "cuda" for the compressor; by default GPUs where Ray has any. `address`: a Ray cluster; by
    default a local Ray is started and stopped. `overwrite`: redo videos that are complete with other sampling
    or of another source. `check_content`: compare sha256 even where place, size and modification time are as before.
    `retry_failed`: try again what failed before and did not change. `reuse`: where the store holds the same content
    under another id, copy its caches. `redo`: make videos again that the store holds complete, as where
    their chunks are damaged: of these, what is sound is kept. `decode_timeout`: seconds without a frame that cost a
    video; `max_pixels` (default
    8192 x 8192): so does a larger frame; `max_damage` (default 0.5): of a broadcast, so does a larger lost share.
    `on_event`: told each chunk, each video's outcome, and after every `stall_after` seconds in which nothing came,
    what each stage is at; the logger "vococache.ingest" gets the same as lines of JSON.

    Running it again does no work for what is complete, and resumes what was interrupted at its last chunk.
    A bad video costs itself alone: it is recorded in the store and in the report. Raises `InputError`,
    `ModelError` or `StoreError` before any work starts when the job itself cannot run.
    """
    FrameSampling(fps=fps, num_frames=num_frames)  # refuses what chooses nothing before a model is loaded
    left_out = LeftOutFiles()
    sources = find_sources([os.fspath(videos)] if isinstance(videos, str | os.PathLike) else videos, left_out)
    if max_damage is not None and not 0 <= max_damage <= 1:
        raise InputError(f"expected max_damage from 0 to 1, found {max_damage:g}")
    limits: dict[str, Any] = {"max_pixels": max_pixels, "max_damage": max_damage}
    from vococache.workers import actors
    from vococache.workers.compress import Compressor, CompressStage, frame_geometry
    from vococache.workers.decode import DecodeStage
    from vococache.workers.video.process import Limits

    report = IngestReport(store=os.fspath(store), left_out=dict(left_out))
    # The actors have working directories of their own.
    store, model = absolute(report.store), absolute(model) if Path(model).is_dir() else model
    compressor = Compressor(
        model=model, compression=compression, chat_template=chat_template, dtype=dtype, tokens=tokens,
        frames=segment_frames,
    )  # fmt: skip
    started = time.perf_counter()
    ours = False
    try:
        if address is None:  # refuse, or find nothing to do, before a local Ray is started
            header = actors.describe_compressor(compressor, device)
        else:
            ours = actors.start_ray(address)
            header = actors.describe_compressor_remotely(compressor, device)
        sampling = FrameSampling.chosen(fps, num_frames, header.sampling)
        opened = open_store(store, "a", header=replace(header, quantization=quantize))
        planner = Planner(
            sampling=sampling, overwrite=overwrite, check_content=check_content, retry_failed=retry_failed, reuse=reuse,
            redo=redo, local=address is None,
        )  # fmt: skip
        plan = planner.plan(sources, opened)
        job = _Job(report, plan, opened, stall_after, on_progress, on_event)
        job.note_settled()
        job.reuse()
        if plan.work:
            ours = actors.start_ray(address) or ours
            actors.check_store_visible(opened, store, local=address is None)
            decode = DecodeStage(
                store_url=store,
                sampling=sampling,
                geometry=frame_geometry(header),
                frames_per_segment=header.frames_per_segment,
                timeout_s=decode_timeout,
                limits=Limits(**{key: value for key, value in limits.items() if value is not None}),
            )
            compress = CompressStage(store_url=store, compressor=compressor, device=device)
            pools = actors.choose_pools(device, local=address is None)
            board = actors.make_board()
            report.startup_seconds = time.perf_counter() - started
            job.run(lambda tasks: actors.run_stages(tasks, decode, compress, pools, board), lambda: actors.busy(board))
            report.run_seconds = time.perf_counter() - started - report.startup_seconds
    finally:
        if ours:
            actors.stop_ray()
    return report


def as_made(header: StoreHeader) -> dict[str, Any]:
    """The arguments of `ingest` that a store's caches were made with."""
    return {
        "compression": header.compression, "tokens": header.tokens, "segment_frames": header.frames_per_segment,
        "chat_template": header.prompt.get("chat_template"),
    }  # fmt: skip


def absolute(place: str) -> str:
    """A path from the root on; URLs as they are."""
    return place if is_url(place) else str(Path(place).expanduser().absolute())


@dataclass(slots=True)
class _Job:
    """An ingest under way: its rows become complete videos, entries of the report, and events."""

    report: IngestReport
    plan: IngestPlan
    store: Store
    stall_after: float
    on_progress: Callable[[Progress], None] | None
    on_event: Callable[[Event], None] | None

    def note_settled(self) -> None:
        """Enter into the report what needs no work."""
        for video, verdict, reason in self.plan.settled:
            if verdict is SourceState.UP_TO_DATE:
                if video in self.plan.moved:
                    source, stat = self.plan.moved[video]
                    self.store.record_source(video, source, stat.size, stat.mtime_ns)
                if video in self.plan.described:
                    self.store.record_metadata(video, self.plan.metadata[video])
                self.report.up_to_date.append(video)
                self._tell(Event(event="up to date", video=video, stage="plan"))
            elif verdict in (SourceState.FAILED_BEFORE, SourceState.MISSING):
                if video in self.plan.missing:
                    self.store.fail(video, reason, source=self.plan.missing[video])
                self.report.failed[video] = reason
                self._tell(Event(event="failed", video=video, stage="plan", facts={"reason": reason}))
            else:
                self.report.refused[video] = reason
                self._tell(Event(event="refused", video=video, stage="plan", facts={"reason": reason}))

    def reuse(self) -> None:
        """Copy what the store holds under another id; what is damaged there becomes work."""
        for video, (of, source, stat) in self.plan.equal.items():
            try:
                info = self.store.copy(of, video, source, stat.size, stat.mtime_ns, self.plan.metadata.get(video))
            except CorruptionError:
                self.plan.work.append(VideoTask(video=video, source=source))
                continue
            self.report.reused.append(video)
            self._tell(Event(event="reused", video=video, stage="store", facts={"source": source, "of": of}))
            self.report.bytes += info.bytes

    def run(self, run_stages: Callable[[Any], Any], busy: Callable[[], list[tuple[str, str, float]]]) -> None:
        """Run the stages over the plan's work, complete each video as its last receipt comes in."""
        work = self.plan.work
        failed_before = len(self.report.failed)
        for count in range(1, MAX_PASSES + 1):
            collector = Collector(self.store, self.plan.metadata)
            try:
                with Watchdog(self.stall_after, lambda: self._tell_stalled(busy())) as watchdog:
                    for row in run_stages(work):
                        watchdog.alive()
                        self._note_row(collector, row)
                        self._progress(collector, failed_before)
            except WorkersLostError:
                if count == MAX_PASSES:
                    raise
            work = [task for task in work if task.video not in collector.settled]
            if not work:
                return
        for task in work:
            reason = "another ingest works on this video in the same store: run again when it is done"
            self.report.failed[task.video] = reason
            self._tell(Event(event="failed", video=task.video, stage="store", facts={"reason": reason}))

    def _note_row(self, collector: Collector, row: Row) -> None:
        if row.receipt is not None:
            segments = 0 if row.timestamps is None else len(row.timestamps)
            facts = {"chunk": row.index, "segments": segments, "seconds": row.seconds}
            self._tell(Event(event="stored", video=row.video, stage="store", facts=facts))
        info = collector.add(row)
        if info is None:
            return
        seconds = dict(collector.seconds.pop(info.id, {}))
        if info.status == "failed":
            reason = self.report.failed[info.id] = info.reason or "unknown"
            stage = "decode" if row.index < 0 else "compress"
            facts = {"source": info.source, "reason": reason, "seconds": seconds}
            self._tell(Event(event="failed", video=info.id, stage=stage, facts=facts))
            return
        self.report.done.append(info.id)
        self.report.segments += info.segments
        self.report.bytes += info.bytes
        if info.findings:
            self.report.damaged[info.id] = info.findings
        names = ("source", "decoder", "segments", "duration", "bytes")
        facts = {name: getattr(info, name) for name in names} | info.findings | {"seconds": seconds}
        self._tell(Event(event="complete", video=info.id, stage="store", facts=facts))

    def _progress(self, collector: Collector, failed_before: int) -> None:
        if self.on_progress is None:
            return
        report, failed = self.report, len(self.report.failed) - failed_before
        segments = report.segments + collector.open_segments
        self.on_progress(
            Progress(videos=len(report.done) + failed, total=len(self.plan.work), segments=segments, failed=failed)
        )

    def _tell_stalled(self, busy: list[tuple[str, str, float]]) -> None:
        settled = {*self.report.done, *self.report.failed}
        for event in stalled([work for work in busy if work[1] not in settled], self.stall_after):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        level = logging.WARNING if event.event in ("failed", "refused", "stalled") else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, event.to_line())
        if self.on_event is not None:
            self.on_event(event)
