"""What answers questions about a store: what all engines do before, and our own.

Questions that wait together go through the model together: one thread, one pass after the other.

A pass takes the questions that wait, oldest first, whatever videos they are about: the placed caches of several stand
side by side in one row, and each question sees its own (`vococache.model.packing`). Nothing joins a pass under way.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vococache.errors import InputError, VoCoError
from vococache.model.cache import PlacedCache
from vococache.model.compiled import compile_layers
from vococache.model.generate import GenerationOptions, generate
from vococache.pipeline.ask import check_window, fits, scope_of
from vococache.pipeline.live.parts import spans_of
from vococache.pipeline.serve.contexts import Kept, Key, PlacedContexts, Window
from vococache.pipeline.serve.metrics import Metrics
from vococache.storage import VideoInfo
from vococache.workers.evidence import evidence_of, grounds
from vococache.workers.focus import Focus, Scope, focus, load_focus
from vococache.workers.reason import ReasonStage, compressed, question_ids
from vococache.workers.spans import Evidence, SegmentSpan, count_whole

PASS_QUESTIONS = 64  # in one pass
PASS_ENTRIES = 2048  # of several videos' caches in one pass: each question's scores are computed over all of them
WAITING = 256  # most questions in the house, unless told
CACHE_BYTES = 2 << 30  # of caches kept in memory, unless told
KNOWN_WINDOWS = 4096  # whose segments are remembered

log = logging.getLogger(__name__)


class BusyError(VoCoError, RuntimeError):
    """As many questions wait as may."""


class InternalError(VoCoError, RuntimeError):
    """A fault of ours; its cause stands in the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked: windows read one after the other as one context, earlier turns, the question itself.

    No windows: all of the store. `find`, `whole`: as for `vococache.ask`.
    """

    windows: tuple[Window, ...]
    question: str
    history: tuple[tuple[str, str], ...] = ()
    tokens: int | None = None
    max_new_tokens: int = 64
    sampling: GenerationOptions = field(default_factory=GenerationOptions)
    find: str | None = None
    whole: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A question that can be asked: its segments are there, and all of it fits the model.

    `key`: all that is read, `infos`: its videos as they are. `focus`: what was chosen, where that is not all.
    """

    question: Question
    key: Key
    infos: tuple[VideoInfo, ...]
    spans: tuple[SegmentSpan, ...]
    tokens: int  # of each segment of the spans
    ids: torch.Tensor
    entries: int  # cached ones in front of the text
    focus: Focus | None = None
    made_of: tuple[str, ...] = ()  # the intent's token of each span's video, where an engine asks for it

    @property
    def whole_segments(self) -> int:
        """How many segments are read whole."""
        return count_whole(self.key, self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an answer ended, and seconds: waiting for its pass, loading the cache, to the first token, to the last.

    `evidence`: the spans that it rests on, best first, where the engine looks for them.
    """

    ids: list[int]
    stopped: bool  # by the model's own stop token, not by the limit
    timings: dict[str, float]
    evidence: list[Evidence] = field(default_factory=list)


Event = list[int] | Outcome | Exception  # new ids; the end; or what went wrong


class Pending:
    """A question on its way. `notify` is called from the engine's thread; with new ids only where `streamed`."""

    def __init__(self, checked: Checked, notify: Callable[[Event], None], *, streamed: bool) -> None:
        self.checked = checked
        self.streamed = streamed
        self.cancelled = False
        self.ended = False
        self.ids: list[int] = []
        self.submitted = time.perf_counter()
        self.timings: dict[str, float] = {}
        self.on_cancel: Callable[[], object] = lambda: None
        self._notify = notify

    def begin(self, load_seconds: float) -> None:
        """Its pass begins."""
        self.timings = {"queue": time.perf_counter() - self.submitted - load_seconds, "load": load_seconds}

    def add(self, ids: list[int]) -> None:
        """New ids have come."""
        if not self.ids:
            self.timings["first_token"] = time.perf_counter() - self.submitted
        self.ids += ids
        if self.streamed:
            self._notify(ids)

    def end(self, event: Outcome | Exception) -> None:
        """Tell how it ended, once."""
        if not self.ended:
            self.ended = True
            self._notify(event)

    def cancel(self) -> None:
        """Nobody waits for it any more: it is not begun, or ends with the token at hand."""
        self.cancelled = True
        self.on_cancel()


class Engine(ABC):
    """What every engine does before a question is answered. `waiting`: most questions in the house at once."""

    reads_in_part = True  # segments with fewer tokens than others, or some of a video alone

    def __init__(self, stage: ReasonStage, metrics: Metrics, *, waiting: int) -> None:
        self.stage = stage
        self.metrics = metrics
        self.waiting = waiting
        self._known: dict[Window, tuple[VideoInfo, SegmentSpan]] = {}
        self._inside = 0
        self._finding = threading.Lock()
        self._changed = threading.Condition()

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def stop(self) -> None:
        """Answer what waits, then end."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Does it still answer?"""

    @abstractmethod
    def submit(self, checked: Checked, notify: Callable[[Event], None], *, streamed: bool) -> Pending:
        """Have a question answered. `notify` is called with each of its events, the last one ends it."""

    def enter(self) -> None:
        """Take a place for a question, until `leave`. Raises `BusyError` where none is left."""
        with self._changed:
            if self._inside >= self.waiting:
                self.metrics.refused.inc()
                raise BusyError(f"{self.waiting} questions wait already: ask again in a moment")
            self._inside += 1
            self.metrics.inside.set(self._inside)

    def leave(self) -> None:
        """Give a place back."""
        with self._changed:
            self._inside -= 1
            self.metrics.inside.set(self._inside)

    def check(self, question: Question) -> Checked:
        """Look the videos up in the store, and what of them matters, where not all of it is read.

        Reads documents, and the index, so not for an event loop. Raises as `ask`: `InputError`, `ContextLimitError`,
        `VideoNotFoundError`, `CorruptionError`, `StoreError`.
        """
        stage = self.stage
        k = stage.check_tokens(question.tokens)
        for window in question.windows:
            check_window(window.start, window.end)
        looked = [found for window in question.windows for found in self._look_up(window)]
        spans = [span for _, span in looked]
        scope = Scope.of(spans) if looked else scope_of(stage, None, None, None, None)
        twice = len(scope.bounds) < len(spans)
        if not self.reads_in_part and (question.find is not None or not looked):
            raise InputError("this engine reads all of what it is asked about: leave out 'find' and 'all'")
        if twice and question.find is not None:
            raise InputError("to find something, name each video once")
        ids = question_ids(stage.model, question.question, question.history)
        room, segments = len(ids) + question.max_new_tokens, sum(span.stop - span.start for span in spans)
        whole = question.whole or twice or not self.reads_in_part
        focused: Focus | None = None
        if question.find is None and fits(stage, segments or scope.segments, k, room, whole=whole):
            spans = spans or [stage.span(video, *bound) for video, bound in scope.bounds.items()]
            if self.reads_in_part:
                pieces = stage.pieces(spans, k, room)
            else:
                stage.check_room(spans, k, room)
                pieces = compressed(spans, k)
        else:
            with self._finding:  # it takes all cores
                focused = focus(stage, scope, question.question, tokens=k, room=room, find=question.find)
            spans, pieces = focused.spans, focused.pieces
        known = {info.id: info for info, _ in looked}
        unknown = [video for video in dict.fromkeys(piece.video for piece in pieces) if video not in known]
        known |= {info.id: info for info in stage.store.objects.map(stage.store.info, unknown)}
        return Checked(
            question=question, key=tuple(pieces), infos=tuple(known[piece.video] for piece in pieces),
            spans=tuple(spans), tokens=k, ids=ids, focus=focused,
            entries=stage.model.config.prefix_entries + sum(piece.positions for piece in pieces),
        )  # fmt: skip

    def _look_up(self, window: Window) -> list[tuple[VideoInfo, SegmentSpan]]:
        """A window's videos and segments as they are in the store now. Of a known one only the document is read."""
        store = self.stage.store
        info, start, end = store.find(window.video), window.start, window.end
        if info is None or window.last is not None or isinstance(start, str) or isinstance(end, str):
            # A live source, or what comes last.
            spans = spans_of(self.stage, window.video, start, end, window.last)
            return [(store.info(span.video), span) for span in spans]
        known = self._known.get(window)
        if known is None or known[0] != info:
            known = info, self.stage.select(window.video, start, end)
            if len(self._known) >= KNOWN_WINDOWS:
                self._known.clear()
            self._known[window] = known
        return [known]


class PackingEngine(Engine):
    """Our own: questions packed into passes over one store. `cache_bytes`: of placed caches kept."""

    def __init__(
        self, stage: ReasonStage, metrics: Metrics, *, waiting: int = WAITING, cache_bytes: int = CACHE_BYTES
    ) -> None:
        super().__init__(stage, metrics, waiting=waiting)
        self.contexts = PlacedContexts(cache_bytes)
        self._queue: deque[Pending] = deque()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        compile_layers(self.stage.model)
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Does it still answer?"""
        return self._thread.is_alive()

    def submit(self, checked: Checked, notify: Callable[[Event], None], *, streamed: bool) -> Pending:
        """Put a question into the queue. `notify` is called with each of its events, the last one ends it."""
        pending = Pending(checked, notify, streamed=streamed)
        with self._changed:
            if self._ending:
                raise BusyError("the service is about to end")
            self._queue.append(pending)
            self._changed.notify()
        return pending

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except Exception as error:  # whatever it is, those who wait are told, and the next ones answered
                log.exception("a pass over %d questions failed", len(batch))
                what = InternalError(f"the pass failed: {type(error).__name__}")
                for pending in batch:
                    pending.end(what)
            self.contexts.shrink()
            self.metrics.cache_bytes.set(self.contexts.bytes)

    def _next(self) -> list[Pending]:
        """The questions of the next pass; none when the engine ends."""
        with self._changed:
            while True:
                waiting = [pending for pending in self._queue if not pending.cancelled]
                self._queue.clear()
                if waiting:
                    chosen = fitting(waiting)
                    taken = set(chosen)
                    self._queue.extend(pending for pending in waiting if pending not in taken)
                    return chosen
                if self._ending:
                    return []
                self._changed.wait()

    def _answer(self, batch: Sequence[Pending]) -> None:
        """One pass: load what is not in memory, generate, tell everyone as soon as there is something to tell."""
        read: dict[Key, Kept] = {}
        loads: dict[Key, float] = {}
        able: list[Pending] = []
        for pending in batch:
            key = pending.checked.key
            try:
                if key not in read:
                    read[key], loads[key] = self._read(pending.checked)
                able.append(pending)
            except VoCoError as error:
                pending.end(error)
        if not able:
            return
        keys = list(read)
        placed = [read[key].context.placed for key in keys]
        texts = [pending.checked.ids for pending in able]
        # Here, as threads beside a pass would take its turns at the interpreter.
        rests = evidence_of(self.stage, [read[pending.checked.key].grounds for pending in able], texts)
        stop_ids = set(self.stage.model.config.prompt.stop_ids)

        def watch(number: int, ids: list[int]) -> bool:
            pending = able[number]
            pending.add(ids)
            stopped = pending.ids[-1] in stop_ids
            if stopped or len(pending.ids) == pending.checked.question.max_new_tokens:
                pending.timings["total"] = time.perf_counter() - pending.submitted
                self.metrics.answered(pending.timings, len(pending.ids))
                pending.end(Outcome(ids=pending.ids, stopped=stopped, timings=pending.timings, evidence=rests[number]))
            return not pending.cancelled

        self.metrics.pass_questions.observe(len(able))
        for pending in able:
            pending.begin(loads[pending.checked.key])
        generate(
            self.stage.model,
            placed[0] if len(placed) == 1 else PlacedCache.join(placed),
            texts,
            [pending.checked.question.max_new_tokens for pending in able],
            able[0].checked.question.sampling,
            behind=[keys.index(pending.checked.key) for pending in able],
            watch=watch,
        )

    def _read(self, checked: Checked) -> tuple[Kept, float]:
        """The question's placed cache, and the seconds that it took to load."""
        kept = self.contexts.get(checked.key, checked.infos)
        self.metrics.lookups.labels("hit" if kept else "miss").inc()
        if kept is not None:
            return kept, 0.0
        focused = checked.focus
        context = (
            self.stage.place(checked.spans, checked.tokens, checked.key)
            if focused is None
            else load_focus(self.stage, focused)
        )
        found = grounds(self.stage, checked.key)
        if tuple(context.pieces) != checked.key:  # what was the newest when it was checked is so no longer
            return Kept(checked.infos, context, found), context.load_seconds
        kept = self.contexts.put(checked.key, checked.infos, context, found)
        self.contexts.shrink()
        return kept, context.load_seconds


def fitting(waiting: Sequence[Pending]) -> list[Pending]:
    """The oldest, and those of the others, in order, that can share its pass."""
    chosen: list[Pending] = []
    sampling = waiting[0].checked.question.sampling
    entries: dict[Key, int] = {}
    for pending in waiting:
        checked = pending.checked
        if checked.question.sampling != sampling:
            continue
        total = sum((entries | {checked.key: checked.entries}).values())
        if checked.key in entries or not entries or total <= PASS_ENTRIES:
            entries[checked.key] = checked.entries
            chosen.append(pending)
        if len(chosen) == PASS_QUESTIONS:
            break
    return chosen
