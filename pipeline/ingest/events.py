"""What happens in an ingest, as it happens: each event is one line of JSON, in the log and in a report's file."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

logger = logging.getLogger("vococache.ingest")
logger.addHandler(logging.NullHandler())  # silent unless somebody listens

Kind = Literal["stored", "complete", "failed", "refused", "up to date", "reused", "stalled", "progress"]
OUTCOMES: tuple[Kind, ...] = ("complete", "failed", "refused", "up to date", "reused")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """`stage`: "decode", "compress", "store" or "plan". `facts`: what else is known, as plain JSON values."""

    event: Kind
    video: str = ""
    stage: str = "plan"
    facts: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """What a stage is at, or how far the job is, for people."""
        if self.event == "progress":
            get = self.facts.get
            left = "" if get("eta") is None else f", about {timedelta(seconds=get('eta', 0))} left"
            return (
                f"{get('videos'):,} of {get('total'):,} videos, {get('failed'):,} failed, {get('segments'):,} segments,"
                f" {get('rate'):.2f} videos/s{left}"
            )
        if not self.video:
            return "no worker has anything to do: Ray has too few resources, or waits for nodes"
        return f"{self.stage} of {self.video!r} has taken {self.facts['seconds']:g} s"

    def to_line(self) -> str:
        """One line of JSON, with the time in seconds since the epoch."""
        line = {"time": round(time.time(), 3), "event": self.event, "video": self.video, "stage": self.stage}
        return json.dumps(line | self.facts)


def stalled(busy: Sequence[tuple[str, str, float]], silence: float) -> list[Event]:
    """What to tell when nothing came for `silence` seconds. `busy`: stage, video and seconds of each at work.

    Nothing where all have begun their work since: they move, if slowly.
    """
    stuck = [work for work in busy if work[2] >= silence / 2]
    if busy and not stuck:
        return []
    return [
        Event(event="stalled", video=video, stage=stage, facts={"seconds": round(seconds, 1)})
        for stage, video, seconds in stuck or [("plan", "", silence)]
    ]


class Watchdog:
    """Calls `tell` each time that `seconds` went by without `alive`. A context manager."""

    def __init__(self, seconds: float, tell: Callable[[], None]) -> None:
        self.seconds, self.tell = seconds, tell
        self._alive, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def alive(self) -> None:
        """Something moved."""
        self._alive.set()

    def _watch(self) -> None:
        while not self._over:
            if not self._alive.wait(self.seconds):
                self.tell()
            self._alive.clear()

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._alive.set()
        self._thread.join()
