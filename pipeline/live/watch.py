"""The job of `voco watch`: sources are read each in a thread, compressed together, and asked about while they run."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import av

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError
from vococache.pipeline.live import growth
from vococache.pipeline.live.feed import STORE_WAIT_SECONDS, Chunk, Feed, Plan
from vococache.pipeline.live.growth import GrowingPart
from vococache.pipeline.live.newest import Compressed, Newest, check_whole, compress_chunks
from vococache.pipeline.live.sources import WatchSource
from vococache.pipeline.live.standing import StandingQuestions, Tell
from vococache.storage import Store, claims, open_store
from vococache.workers.compressor import Compressor
from vococache.workers.video.live_input import lacks_srt
from vococache.workers.video.process import Limits
from vococache.workers.video.sampling import FrameSampling

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel

LATENCY_SECONDS = 5.0
LOAD_SECONDS = 20.0  # over which the compressor's load is told
IMPATIENT_SECONDS = 2.0  # a signal so much later than the first one ends a watch at once; some senders send two


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A chunk can be asked about: `segments` of part `video`, and what is counted of their source.

    `waited`: seconds from the arrival of each until now. `begins`: it is the part's first; `gap`: seconds that are
    missing before that. `edge`: moment of the newest frame. `load`: share of its time that the compressor works.
    """

    source: str
    video: str
    segments: int
    waited: list[float]
    begins: bool
    gap: float
    edge: float
    connections: int
    stride: int
    waiting: int
    load: float


@dataclass(kw_only=True)
class Watch:
    """Sources that are watched, in one process with one model. Made by `open_watch`; `run` ends with `stop`."""

    model: "VoCoModel"
    store: Store
    feeds: list[Feed]
    plan: Plan
    standing: StandingQuestions
    newest: dict[str, Newest]  # by source
    on_stored: Callable[[Stored], None] | None = None
    error: BaseException | None = None
    _busy: list[tuple[float, float]] = field(default_factory=list)  # when the compressor worked
    _since: float = field(default_factory=time.monotonic)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Watch until all sources are over, `stop`, or Ctrl-C, which is raised again when what was open is closed.

        Raises what made it impossible to go on.
        """
        threads = [threading.Thread(target=feed.run, name=feed.source.id, daemon=True) for feed in self.feeds]
        compressor = threading.Thread(target=self._compress, name="compressor", daemon=True)
        for thread in (*threads, compressor):
            thread.start()
        interrupt = wait_for_end(self._ended, self.plan.stop)
        for failure in (self.error, *(feed.error for feed in self.feeds), interrupt):
            if failure is not None:
                raise failure

    def stop(self) -> None:
        """Close the open chunks, and end."""
        self.plan.stop.set()

    def load(self) -> float:
        """The share of the last seconds in which the compressor worked."""
        now = time.monotonic()
        first = max(self._since, now - LOAD_SECONDS)
        self._busy = [each for each in self._busy if each[1] > first]
        return sum(end - max(start, first) for start, end in self._busy) / max(1e-3, now - first)

    def _compress(self) -> None:
        try:
            while (batch := self._next()) is not None:
                started = time.monotonic()
                self._store(batch)
                self._busy.append((started, time.monotonic()))
        except Exception as error:  # told by `run`
            self.error = error
        finally:
            self.stop()
            self._ended.set()

    def _next(self) -> list[tuple[Feed, Chunk]] | None:
        """The oldest waiting chunk of each source; None when nothing will come any more."""
        with self.plan.changed:
            while True:
                batch = [(feed, feed.waiting.popleft()) for feed in self.feeds if feed.waiting]
                if batch:
                    for _, chunk in batch:
                        chunk.part.is_given = True
                    self.plan.changed.notify_all()
                    return batch
                if all(feed.is_done for feed in self.feeds):
                    return None
                if any(feed.error for feed in self.feeds):
                    self.plan.stop.set()  # the others close what is open
                self.plan.changed.wait(0.5)

    def _store(self, batch: Sequence[tuple[Feed, Chunk]]) -> None:
        """Compress chunks of several sources in one batch, store each, and ask what is due."""
        full = [chunk for feed, chunk in batch if chunk.segments and feed.taken_by is None]
        made = dict(zip(map(id, full), self._compressed(full), strict=True))
        for feed, chunk in batch:
            self._commit(feed, chunk, made.get(id(chunk)))
        for feed, chunk in batch:
            if chunk.segments and feed.taken_by is None:
                self.standing.ask(feed.source.id)

    def _compressed(self, chunks: Sequence[Chunk]) -> list[Compressed | None]:
        """What is stored of each chunk; None where the store's dtype does not hold its caches."""
        if not chunks:
            return []
        try:
            return [*compress_chunks(self.model, self.store, chunks)]
        except InputError as error:
            if len(chunks) > 1:
                return [made for chunk in chunks for made in self._compressed([chunk])]
            self.plan.tell(chunks[0].part.live, str(error))
            return [None]

    def _commit(self, feed: Feed, chunk: Chunk, made: Compressed | None) -> None:
        """Write a chunk, and complete its part with it where it ends. A store out of reach is waited for."""
        part, source, is_told = chunk.part, feed.source, False
        while not part.is_lost and feed.taken_by is None:
            try:
                if made is not None:
                    if not part.chunks and (other := growth.begin(self.store, part, feed.claim)) is not None:
                        return feed.leave(other)
                    part.thinned = max(part.thinned, chunk.stride)
                    kept = growth.write(self.store, part, made.kv, chunk.times, made.whole)
                    self._tell_stored(feed, chunk)
                    made = None
                    self.newest[source.id].add(kept)
                if chunk.ends:
                    growth.finish(self.store, part)
                    if source.keep is not None:
                        growth.drop_old(self.store, source.id, source.keep)
                return None
            except (StoreMismatchError, CorruptionError, InputError):  # removed or made anew by others
                part.is_lost = True
                self._tell_lost(feed, part)
            except StoreError as error:
                if not is_told:
                    self.plan.tell(source.id, f"{error}; trying again until it can be written")
                    is_told = True
                self.plan.stop.wait(STORE_WAIT_SECONDS)
                if self.plan.stop.is_set():
                    raise
        return None

    def _tell_lost(self, feed: Feed, part: GrowingPart) -> None:
        """Another watch has ended a part, or somebody else did something to it."""
        other = None
        with suppress(StoreError):  # else the next part finds out
            other = claims.taken_by(self.store, feed.source.id, feed.claim)
        if other is not None:
            feed.leave(other)
            return
        line = f"part {part.video} was changed by others: what comes goes into another one"
        self.plan.tell(feed.source.id, line)

    def _tell_stored(self, feed: Feed, chunk: Chunk) -> None:
        if self.on_stored is None:
            return
        part, now = chunk.part, time.time()
        self.on_stored(
            Stored(
                source=feed.source.id, video=part.video, segments=len(chunk.segments),
                waited=[now - arrived for arrived in chunk.arrived], begins=part.chunks == 1, gap=part.gap,
                edge=part.started + float(chunk.times[-1, -1]), connections=feed.connections, stride=feed.stride,
                waiting=len(feed.waiting), load=self.load(),
            )
        )  # fmt: skip


def open_watch(
    sources: Sequence[WatchSource],
    store: str,
    compressor: Compressor,
    *,
    fps: float | None = None,
    latency: float = LATENCY_SECONDS,
    quantize: str | None = None,
    device: str | None = None,
    limits: Limits | None = None,
    say: Callable[[str, str], None],
    tell: Tell,
    on_stored: Callable[[Stored], None] | None = None,
    stop: threading.Event | None = None,
) -> Watch:
    """Load the model, open or make the store, take the sources over from whatever watched them, and end its parts.

    `fps`: of sources that have none of their own; else the model's, or one a second. `latency`: seconds within which a
    chunk is closed. `say` gets a source's id and what there is to tell of it, `tell` the answers to standing questions.
    `stop`: what ends the watch, where somebody has it already.
    Raises `InputError`, `ModelError`, `StoreError`.
    """
    from vococache.workers.compress import frame_geometry, store_header
    from vococache.workers.reason import ReasonStage

    if not latency > 0:
        raise InputError(f"expected a latency above 0, found {latency:g}")
    check_sources(sources)
    model = compressor.load(device)
    for source in sources:
        check_whole(model, source)
    header = replace(store_header(model), quantization=quantize)
    opened = open_store(store, "a", header=header)
    made_for = FrameSampling.chosen(fps, None, opened.header.sampling).fps or 1.0
    plan = Plan(
        store=opened, geometry=frame_geometry(opened.header), frames_per_segment=opened.header.frames_per_segment,
        latency=latency, fps=made_for, limits=limits or Limits(), tell=say, load=lambda: watch.load(),
        changed=threading.Condition(), stop=stop or threading.Event(),
    )  # fmt: skip
    standing = StandingQuestions(ReasonStage(model, opened), sources, tell, made_for)
    feeds, newest = [], {}
    for source in sources:
        claim, _ = growth.take_over(opened, source.id)
        if source.keep is not None:
            growth.drop_old(opened, source.id, source.keep)
        newest[source.id] = Newest.of(opened, source)
        edge, resume = growth.where_it_stopped(opened, source)
        pipe = os.dup(0) if source.source == "-" else None
        feeds.append(Feed(source=source, plan=plan, claim=claim, pipe=pipe, edge=edge, resume=resume))
    watch = Watch(
        model=model, store=opened, feeds=feeds, plan=plan, standing=standing, newest=newest, on_stored=on_stored
    )
    return watch


def check_sources(sources: Sequence[WatchSource]) -> None:
    """Refuse what can never be watched here. Raises `InputError`."""
    if not sources:
        raise InputError("expected at least one source")
    for source in sources:
        if lacks_srt(source.source):
            raise InputError(
                f"source {source.id!r} is of srt://, which this FFmpeg (in PyAV {av.__version__}) was built without:"
                f" let a program that has it hand the stream on, to udp:// or into a pipe, and watch that"
            )


def wait_for_end(ended: threading.Event, stop: threading.Event) -> KeyboardInterrupt | None:
    """Wait; Ctrl-C sets `stop`, and is returned at the end. A later one is raised at once."""
    interrupt: KeyboardInterrupt | None = None
    since = 0.0
    while not ended.is_set():
        try:
            ended.wait(0.5)  # not `join`: interrupted, it takes a thread for dead (Python 3.11)
        except KeyboardInterrupt as error:
            if interrupt is not None and time.monotonic() - since > IMPATIENT_SECONDS:
                raise
            interrupt, since = error, since or time.monotonic()
            stop.set()
    return interrupt
