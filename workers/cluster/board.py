"""What each actor is at: what the driver reads when nothing moves."""

import threading
import time
from typing import Any

import ray

WORTH_NOTING_S = 0.5  # what takes less is told to nobody: a message for each video would be most of the traffic


class _Board:
    """What each actor is at, since when."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[str, str, float]] = {}

    def note(self, actor: str, stage: str, video: str | None) -> None:
        self._at.pop(actor, None)
        if video is not None:
            self._at[actor] = stage, video, time.monotonic()

    def busy(self) -> list[tuple[str, str, float]]:
        # An actor that died has left its entry; another one, or another thread, has a younger one for the same video.
        latest = {(stage, video): since for stage, video, since in self._at.values()}
        return [(*work, time.monotonic() - since) for work, since in latest.items()]


def make_board() -> Any:
    """Where the actors of a job say what they are at."""
    return ray.remote(num_cpus=0)(_Board).remote()


def busy(board: Any) -> list[tuple[str, str, float]]:
    """What the actors are at: stage, video, seconds, the longest first; nothing where Ray does not answer."""
    try:
        found: list[tuple[str, str, float]] = ray.get(board.busy.remote(), timeout=10)
    except ray.exceptions.RayError:
        return []
    return sorted(found, key=lambda entry: -entry[2])


class Noting:
    """An actor that says on the board what it is at, once that takes its time."""

    def __init__(self, board: Any, stage: str) -> None:
        self._board, self._stage, self._actor = board, stage, ray.get_runtime_context().get_actor_id()
        self._at: dict[int, tuple[str, float]] = {}  # by thread
        self._told: set[int] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._tell, daemon=True).start()

    def note(self, video: str | None) -> None:
        """What this thread begins; None while it waits."""
        thread = threading.get_ident()
        with self._lock:
            self._at.pop(thread, None)
            if video is not None:
                self._at[thread] = video, time.monotonic()
            if thread in self._told:
                self._told.discard(thread)
                self._send(thread, None)

    def _tell(self) -> None:
        while True:
            time.sleep(WORTH_NOTING_S)
            with self._lock:
                for thread, (video, since) in self._at.items():
                    if thread not in self._told and time.monotonic() - since > WORTH_NOTING_S:
                        self._told.add(thread)
                        self._send(thread, video)

    def _send(self, thread: int, video: str | None) -> None:
        self._board.note.remote(f"{self._actor} {thread}", self._stage, video)
