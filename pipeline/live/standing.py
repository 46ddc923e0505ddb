"""Questions that are asked again and again, of what came last; those of one window go through the model together."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vococache.errors import InputError, VoCoError
from vococache.pipeline.ask import MAX_NEW_TOKENS, room_for
from vococache.pipeline.live.clock import shown
from vococache.pipeline.live.newest import extra_positions
from vococache.pipeline.live.parts import ROUNDING_SECONDS, ClockWindow, clock_of, newest_first, select_spans
from vococache.pipeline.live.sources import CHANGE, Standing, WatchSource, public

if TYPE_CHECKING:
    from vococache.workers.reason import ReasonStage

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0  # between attempts; each is twice as long as the one before
TIMEOUT_SECONDS = 10.0
MOST_WAITING = 1000  # answers for a webhook that does not take them; the oldest go

Tell = Callable[[dict[str, Any]], None]


@dataclass
class _State:
    standing: Standing
    due: float = 0.0  # moment of the stream, seconds since the epoch
    answer: str | None = None


@dataclass
class StandingQuestions:
    """All standing questions of a watch."""

    stage: "ReasonStage"
    sources: Sequence[WatchSource]
    tell: Tell
    fps: float
    _states: dict[str, list[_State]] = field(init=False)

    def __post_init__(self) -> None:
        self._states = {source.id: [_State(each) for each in source.ask] for source in self.sources}
        for source in self.sources:
            for standing in source.ask:
                self._check(standing, source)

    def ask(self, live: str) -> None:
        """Ask what is due of a source, whose newest chunk has just been stored."""
        states = self._states[live]
        if not states:
            return
        try:
            newest = next(newest_first(self.stage.store, live), None)
            if newest is None:
                return
            due: dict[float, list[_State]] = defaultdict(list)
            for state in states:
                if newest.end >= state.due:
                    state.due = newest.end + state.standing.every - ROUNDING_SECONDS
                    due[state.standing.over].append(state)
            for over, asked in due.items():
                self._ask(live, over, asked)
        except VoCoError as error:  # as where somebody removed a part: the next chunk brings another chance
            self.tell({"id": live, "error": str(error)})

    def _ask(self, live: str, over: float, states: Sequence[_State]) -> None:
        started = time.perf_counter()
        spans = select_spans(self.stage, live, ClockWindow(last=over))
        questions = [state.standing.question for state in states]
        context = self.stage.load_spans(spans, room=room_for(self.stage, questions, MAX_NEW_TOKENS))
        answers = self.stage.answer(context, questions, max_new_tokens=MAX_NEW_TOKENS)
        clock = clock_of(self.stage.store, spans)
        assert clock is not None, "they are of parts"
        for state, answer in zip(states, answers, strict=True):
            before, state.answer = state.answer, answer.answer
            if not is_told(state.standing.when, before, answer.answer):
                continue
            self.tell(
                {
                    "id": live, "question": answer.question, "answer": answer.answer, "before": before,
                    "start": clock[0], "end": clock[1],
                    "segments": [asdict(span) for span in spans],
                    **({"whole_segments": context.whole_segments} if context.whole_segments else {}),
                    "asked_at": shown(time.time()),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )  # fmt: skip

    def _check(self, standing: Standing, source: WatchSource) -> None:
        """Refuse a window that the model cannot read, before anything is watched."""
        header, fps = self.stage.store.header, source.fps or self.fps
        segments = int(standing.over * fps / header.frames_per_segment) + 1
        room = room_for(self.stage, [standing.question], MAX_NEW_TOKENS)
        left = self.stage.limit - room - extra_positions(self.stage.model, source, segments)
        if segments * header.tokens > left:
            fitting = int(max(0, left) // header.tokens * header.frames_per_segment / fps)
            raise InputError(f"a question over {standing.over:g} s is too long for the model: at most {fitting} s fit")


def is_told(when: str | None, before: str | None, now: str) -> bool:
    """Is an answer told: always, where it changes, or where it becomes `when`?"""
    if when is None:
        return True
    if when == CHANGE:
        return before is None or _bare(before) != _bare(now)
    return _bare(now) == _bare(when) and (before is None or _bare(before) != _bare(when))


def _bare(text: str) -> str:
    return text.strip().strip(".!?").casefold()


class Webhook:
    """Posts answers as JSON, one after the other, each a few times at most. A context manager."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"--post {public(url)!r}: expected an http or https URL")
        self._url, self._say = url, say
        self._waiting: deque[bytes] = deque()
        self._changed, self._ending = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._opener = urllib.request.build_opener(_NoRedirect())
        self.lost = 0

    def post(self, told: dict[str, Any]) -> None:
        """Take an answer; the oldest is dropped where too many wait."""
        with self._changed:
            self._waiting.append(json.dumps(told).encode())
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._changed.notify()

    def __enter__(self) -> "Webhook":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(TIMEOUT_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            reason = self._send(data)
            if reason is not None:
                self.lost += 1
                self._say(f"webhook {public(self._url)}: {reason}; {self.lost} answers were not taken")

    def _pause(self, seconds: float) -> None:
        """Wait, but not once the watch ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending, seconds)

    def _send(self, data: bytes) -> str | None:
        """Why an answer could not be posted, after all attempts; None where it was."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
            try:
                request = urllib.request.Request(self._url, data, {"content-type": "application/json"})
                with self._opener.open(request, timeout=TIMEOUT_SECONDS):
                    return None
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    return reason
            except (OSError, ValueError) as error:
                reason = type(getattr(error, "reason", error)).__name__
        return reason


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Answers go to the place that was named."""
        return
