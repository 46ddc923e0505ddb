"""An ingest under way: what is to be done becomes complete videos, entries of a report, and events."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from vococache.errors import CorruptionError, WorkersLostError
from vococache.pipeline.ingest.events import Event, Watchdog, logger, stalled
from vococache.pipeline.ingest.outcomes import Collector
from vococache.pipeline.ingest.plan import Decision, SourceState
from vococache.pipeline.ingest.sources import Source
from vococache.storage import Store, VideoInfo
from vococache.workers.rows import Row, VideoTask

# What Ray lost is done again; more than twice is no accident.
MAX_PASSES = 3
PROGRESS_S = 60.0


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
    """How far an ingest is: videos and segments so far in this run.

    `total`: videos with work, at most. `waiting`: of them, those that were handed to the stages. `seconds`: since the
    stages began.
    """

    videos: int
    total: int
    segments: int
    failed: int
    waiting: int
    seconds: float

    @property
    def rate(self) -> float:
        """Videos a second."""
        return self.videos / self.seconds if self.seconds else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds that are left, at this rate; None before the first video."""
        return (self.total - self.videos) / self.rate if self.rate else None

    def facts(self) -> dict[str, Any]:
        """As plain JSON values."""
        eta = None if self.eta is None else round(self.eta)
        return asdict(self) | {"seconds": round(self.seconds, 1), "rate": round(self.rate, 3), "eta": eta}


@dataclass(slots=True)
class Job:
    """Plans as the stages ask for work, in their thread, and collects what they make, in the caller's."""

    report: IngestReport
    store: Store
    total: int
    stall_after: float
    on_progress: Callable[[Progress], None] | None
    on_event: Callable[[Event], None] | None
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _needless: int = 0  # sources for which no stage runs
    _started: float = field(default_factory=time.monotonic)
    _collector: Collector = field(init=False)

    def __post_init__(self) -> None:
        self._collector = Collector(self.store)

    @contextmanager
    def progress_told(self) -> Iterator[None]:
        """Within, how far it is is told once in a while: planning a million videos takes its time too."""
        with Watchdog(PROGRESS_S, lambda: self._tell(Event(event="progress", facts=self.progress().facts()))):
            yield

    def progress(self) -> Progress:
        """How far it is."""
        collector = self._collector
        return Progress(
            videos=collector.settled,
            total=self.total - self._needless,
            segments=self.report.segments + collector.open_segments,
            failed=collector.failed,
            waiting=len(collector.waiting),
            seconds=time.monotonic() - self._started,
        )

    def work(self, judged: Iterable[tuple[Source, Decision]]) -> Iterator[VideoTask]:
        """What the stages have to do; of all else it is noted what became of it."""
        for source, decision in judged:
            state, stat = decision.state, decision.stat
            if state is SourceState.WORK or (state is SourceState.EQUAL and not self._copy(source, decision)):
                size, mtime_ns = (None, 0) if stat is None else (stat.size, stat.mtime_ns)
                yield VideoTask(
                    video=source.video, source=source.location, size=size, mtime_ns=mtime_ns, metadata=source.metadata
                )
            else:
                self._needless += 1
                self._settle(source, decision)

    def _settle(self, source: Source, decision: Decision) -> None:
        """Enter into the report what needs no stage."""
        video, state, reason = source.video, decision.state, decision.reason
        if state is SourceState.UP_TO_DATE:
            if decision.moved and decision.stat is not None:
                self.store.record_source(video, source.location, decision.stat.size, decision.stat.mtime_ns)
            if decision.described:
                self.store.record_metadata(video, source.metadata)
            self.report.up_to_date.append(video)
            self._tell(Event(event="up to date", video=video, stage="plan"))
        elif state in (SourceState.FAILED_BEFORE, SourceState.MISSING):
            if decision.unknown:
                self.store.fail(video, reason, source=source.location)
            self.report.failed[video] = reason
            self._tell(Event(event="failed", video=video, stage="plan", facts={"reason": reason}))
        elif state is SourceState.REFUSED:
            self.report.refused[video] = reason
            self._tell(Event(event="refused", video=video, stage="plan", facts={"reason": reason}))

    def _copy(self, source: Source, decision: Decision) -> bool:
        """Copy what the store holds under another id; False where it is damaged there."""
        assert decision.stat is not None
        try:
            info = self.store.copy(
                decision.of,
                source.video,
                source.location,
                decision.stat.size,
                decision.stat.mtime_ns,
                source.metadata,
            )
        except CorruptionError:
            return False
        self.report.reused.append(source.video)
        facts = {"source": source.location, "of": decision.of}
        self._tell(Event(event="reused", video=source.video, stage="store", facts=facts))
        self.report.bytes += info.bytes
        return True

    def run(
        self,
        work: Iterator[VideoTask],
        run_stages: Callable[[Iterable[VideoTask]], Iterable[Row]],
        busy: Callable[[], list[tuple[str, str, float]]],
    ) -> None:
        """Run the stages over `work`, complete each video as its last receipt comes in."""
        collector, self._started = self._collector, time.monotonic()
        left: list[VideoTask] = []
        for count in range(1, MAX_PASSES + 1):
            try:
                with Watchdog(self.stall_after, lambda: self._tell_stalled(busy(), collector)) as watchdog:
                    for row in run_stages(collector.expect(chain(left, work))):
                        watchdog.alive()
                        self._note_row(collector, row)
            except WorkersLostError:
                if count == MAX_PASSES:
                    raise
                left = collector.start_over()
                continue  # at what was not drawn yet, too
            left = collector.start_over()
            if not left:
                return
        for task in left:
            reason = "another ingest works on this video in the same store: run again when it is done"
            self.report.failed[task.video] = reason
            self._tell(Event(event="failed", video=task.video, stage="store", facts={"reason": reason}))

    def _note_row(self, collector: Collector, row: Row) -> None:
        if row.receipt is not None:
            segments = 0 if row.timestamps is None else len(row.timestamps)
            facts = {"chunk": row.index, "segments": segments, "seconds": row.seconds}
            self._tell(Event(event="stored", video=row.video, stage="store", facts=facts))
        info = collector.add(row)
        if info is not None:
            self._note_info(collector, row, info)
        if self.on_progress is not None:
            self.on_progress(self.progress())

    def _note_info(self, collector: Collector, row: Row, info: VideoInfo) -> None:
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

    def _tell_stalled(self, busy: list[tuple[str, str, float]], collector: Collector) -> None:
        for event in stalled([work for work in busy if work[1] in collector.waiting], self.stall_after):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        level = logging.WARNING if event.event in ("failed", "refused", "stalled") else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, event.to_line())
        if self.on_event is not None:
            with self._telling:
                self.on_event(event)
