"""Batches of tasks on their way from the driver to the decode actors, a few ahead of those that they have begun."""

import asyncio
import json
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import ray

from vococache.errors import WorkersLostError
from vococache.workers.batches import task_batches
from vococache.workers.cluster.blocks import facts_of, raising
from vococache.workers.rows import VideoTask

AHEAD = 64  # batches
INTERRUPTED_S = 5.0


class _Feed:
    """Keeps what it was given (some 20 bytes a video): Ray runs a reader again, which then gets the same once more."""

    def __init__(self) -> None:
        self._batches: list[bytes] = []
        self._taken, self._ended = 0, False
        self._changed = asyncio.Condition()

    async def put(self, batch: bytes | None) -> None:
        """Take in a batch, None behind the last; waits while readers are far behind."""
        async with self._changed:
            if batch is None:
                self._ended = True
            else:
                self._batches.append(batch)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._ended or len(self._batches) - self._taken <= AHEAD)

    async def take(self, index: int) -> bytes | None:
        """A batch; None behind the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or len(self._batches) > index)
            if index >= len(self._batches):
                return None
            self._taken = max(self._taken, index + 1)
            self._changed.notify_all()
            return self._batches[index]


class Feeder:
    """Draws tasks, in a thread of its own, as they are wanted. A context manager; `error`: what drawing raised."""

    def __init__(self, tasks: Iterable[VideoTask], decoders: int) -> None:
        self.actor = ray.remote(num_cpus=0)(_Feed).remote()
        self.error: BaseException | None = None
        self._tasks, self._decoders, self._over = tasks, decoders, False
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def _feed(self) -> None:
        try:
            for batch in task_batches(self._wanted(), self._decoders):
                if self._over:
                    return
                ray.get(self.actor.put.remote(zlib.compress(json.dumps([asdict(task) for task in batch]).encode())))
        except ray.exceptions.RayError:  # whoever reads will notice
            return
        except BaseException as error:  # as KeyboardInterrupt, which a callback may raise
            self.error = error
        with suppress(ray.exceptions.RayError):
            ray.get(self.actor.put.remote(None))

    def _wanted(self) -> Iterator[VideoTask]:
        for task in self._tasks:
            yield task
            if self._over:
                return

    def __enter__(self) -> "Feeder":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        ray.kill(self.actor)
        # Whoever interrupts a job does not wait for a look at a file that is slow to come.
        self._thread.join(None if kind is None or issubclass(kind, Exception) else INTERRUPTED_S)


def read_batches(_: dict[str, Any], feed: Any) -> Iterator[dict[str, str]]:
    """All batches of a feed, a block each."""
    index = 0
    while True:
        try:
            batch = ray.get(feed.take.remote(index))
        except ray.exceptions.RayError:
            yield {"facts": json.dumps(raising(WorkersLostError("Ray lost the list of what is to be done")))}
            return
        if batch is None:
            return
        yield {"facts": json.dumps({"tasks": json.loads(zlib.decompress(batch))})}
        index += 1


def tasks_of(block: dict[str, str]) -> list[VideoTask]:
    """The tasks of a block. Raises the error of one that carries one."""
    return [VideoTask(**task) for task in facts_of(block)["tasks"]]
