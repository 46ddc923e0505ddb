"""Jobs without an end, each in an actor of its own; Ray starts it again elsewhere when its node or process dies."""

import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from vococache.errors import VoCoError, WorkersLostError
from vococache.workers.cluster.blocks import facts_of, raising
from vococache.workers.cluster.pools import COMPRESS_THREADS, Pools

HEAR_SECONDS = 1.0  # that an actor waits for something to tell
SILENT_SECONDS = 60.0  # without a word, after which that is told
MOST_TOLD = 10_000  # that wait for a driver that does not ask; the oldest go

Tell = Callable[[Any], None]


class Resident(Protocol):
    """A job that may be begun again at any moment, and goes on with what it finds. Pickles."""

    def run(self, tell: Tell, stop: threading.Event) -> None:
        """Work until it is over, or `stop`; `tell` takes what pickles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """What a job told since it was asked last. `node`: where it runs; `life`: another one each time it is begun."""

    node: str
    life: str
    told: list[Any]
    is_over: bool
    error: str | None  # facts that make `facts_of` raise one


def follow(
    jobs: Sequence[Resident],
    pools: Pools,
    *,
    hear: Callable[[int, Word], None],
    silent: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Run jobs until all are over. `hear` gets a job's number and its words; `silent` is called where none come.

    `stop`: lets the jobs end; one that is silent then is not waited for. An error that a job raises on purpose ends the
    others, and is raised when they are over. Raises `WorkersLostError` where Ray gives up.
    """
    made = ray.remote(_ResidentActor).options(
        num_cpus=pools.cpus, num_gpus=pools.gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )
    actors = [made.remote(job) for job in jobs]
    asked = {actor.hear.remote(False): number for number, actor in enumerate(actors)}
    heard = dict.fromkeys(range(len(jobs)), time.monotonic())
    lost: set[int] = set()
    error: str | None = None
    try:
        while set(asked.values()) - (lost if stop.is_set() else set()):
            ready, _ = ray.wait([*asked], timeout=HEAR_SECONDS)
            for reference in ready:
                number = asked.pop(reference)
                word = ray.get(reference)
                heard[number] = time.monotonic()
                lost.discard(number)
                hear(number, word)
                if word.error is not None:
                    error = error or word.error
                    stop.set()
                if not word.is_over:
                    asked[actors[number].hear.remote(stop.is_set())] = number
            for number in set(asked.values()) - lost:
                if time.monotonic() - heard[number] > SILENT_SECONDS:
                    lost.add(number)
                    silent(number)
    except ray.exceptions.RayTaskError:
        raise  # a bug of ours: with all that is known about it
    except ray.exceptions.RayError as lost_by_ray:
        reason = str(lost_by_ray).strip().splitlines()[0]
        raise WorkersLostError(f"Ray gave up: {reason}; the same command goes on") from lost_by_ray
    finally:
        for actor in actors:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
    if error is not None:
        facts_of({"facts": error})


def places(pools: Pools) -> int:
    """How many jobs the cluster has room for, a compressor in each."""
    return pools.compressors or max(1, int(ray.cluster_resources().get("GPU", 0)))


class _ResidentActor:
    def __init__(self, job: Resident) -> None:
        import torch

        torch.set_num_threads(COMPRESS_THREADS)
        self._job, self._life = job, uuid.uuid4().hex
        self._told: deque[Any] = deque(maxlen=MOST_TOLD)
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._is_over = False
        self._error: Exception | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def hear(self, stop: bool) -> Word:
        """What was told since the last time, as soon as there is something, or after a moment."""
        if stop:
            self._stop.set()
        with self._changed:
            self._changed.wait_for(lambda: self._told or self._is_over, HEAR_SECONDS)
            told, is_over, error = [*self._told], self._is_over, self._error
            self._told.clear()
        if error is not None and not isinstance(error, VoCoError):
            raise error
        facts = None if error is None else json.dumps(raising(error))
        return Word(node=socket.gethostname(), life=self._life, told=told, is_over=is_over, error=facts)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._job.run(self._tell, self._stop)
        except Exception as raised:  # told by `hear`
            error = raised
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify_all()

    def _tell(self, what: Any) -> None:
        with self._changed:
            self._told.append(what)
            self._changed.notify_all()
