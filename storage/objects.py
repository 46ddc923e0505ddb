"""Objects under one root, by key: local files or an object store, whole and atomic.

A put object is there as a whole or not at all; keys are relative, with "/". Failures are `StoreError`s in one
line, in which no credentials appear.
"""

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, StoreError, VoCoError
from vococache.storage.documents import Bytes, Stamp

T = TypeVar("T")
R = TypeVar("R")

SMALL = 4096
PLAIN = "plain file"


class Entry(NamedTuple):
    """An object: key, length in bytes, time of its last change in seconds since the epoch.

    `kind`: of local ones, what lies there, as "symbolic link": only plain files hold a store's bytes.
    """

    key: str
    length: int
    modified: float
    kind: str = PLAIN


def changed_at(info: dict[str, Any]) -> datetime | float | None:
    """An object's last change, as the fsspec file system that described it names and tells it; None if it does not."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime | int | float):
            return value
    return None


class Objects(ABC):
    """Access to the objects under one root. `url` names it in messages."""

    url: str
    threads: int
    is_local = False  # else a look at each video's document is so slow that a catalog pays
    swaps = True  # does nobody come between the look and the deed of `replace`?

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """An object's bytes; None if there is no such object."""

    def mapped(self, key: str) -> Bytes | None:
        """An object's bytes, from the page cache where it is a local file; None if there is no such object."""
        return self.get(key)

    @abstractmethod
    def stamp(self, key: str, trailer: int = 0) -> Stamp | None:
        """An object's length and crc32c, as `documents.closing` has it; None if absent."""

    @abstractmethod
    def read_into(self, key: str, out: npt.NDArray[np.uint8], trailer: int = 0) -> Stamp | None:
        """Read an object of just `out`'s length and the trailer's; its stamp, as `documents.closing` has it.

        The crc is 0 if the object is of another length. None if absent.
        """

    @abstractmethod
    def put(self, key: str, data: Bytes) -> None:
        """Make or replace an object, atomically."""

    @abstractmethod
    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        """Make an object of `data` and what `tail` then returns, atomically; False where one is there already."""

    @abstractmethod
    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        """Make `data` of an object that is `expected`, None being no object; False, and nothing done, where it is not.

        Nobody who does the same comes between the look and the deed, where it `swaps`.
        """

    def obstacle(self, key: str) -> str | None:
        """What lies where a folder is expected, as "symbolic link"; None for a folder, or nothing."""
        return None

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are fine."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Names of the objects and folders directly beneath `prefix`; none if it does not exist."""

    @abstractmethod
    def walk(self, prefix: str) -> list[Entry]:
        """All objects beneath `prefix`, sorted by key; `prefix` itself where it is one. No link is followed."""

    def get_each(
        self, prefix: str, name: str, wanted: Callable[[str], bool]
    ) -> Iterable[tuple[str, bytes | CorruptionError | None]]:
        """The object `name` of each folder beneath `prefix` whose name is `wanted`, with that, in its order.

        None where a folder has none; the error itself where `get` would raise `CorruptionError`.
        """
        folders = sorted(filter(wanted, self.names(prefix)))
        return zip(folders, self.map(self.get, [f"{prefix}/{folder}/{name}" for folder in folders]), strict=True)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`function` of each item, in order, several at a time."""
        if len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(min(self.threads, len(items))) as pool:
            yield from pool.map(function, items)

    def ahead(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Like `map`, of items without end: never more than twice as many as there are threads are under way."""
        with ThreadPoolExecutor(self.threads) as pool:
            under_way: deque[Future[R]] = deque()
            try:
                for item in items:
                    under_way.append(pool.submit(function, item))
                    if len(under_way) > 2 * self.threads:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for future in under_way:
                    future.cancel()

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        """Turn whatever a file system raises into one clear line."""
        try:
            yield
        except VoCoError:
            raise
        except Exception as error:
            raise self._error(verb, key, error) from None

    def _error(self, verb: str, key: str, error: Exception) -> StoreError:
        place = f"{self.url}/{key}".rstrip("/")
        return StoreError(f"cannot {verb} {place}: {describe(error)}")


def redact(text: str) -> str:
    """`text` without user:password@ and without query strings of URLs."""
    return re.sub(r"(\w://[^\s?]*)\?[^\s'\"]+", r"\1", re.sub(r"(\w://)[^/@\s]*@", r"\1", text))


def describe(error: Exception) -> str:
    """The first line of an error, fit for a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {redact((str(error).splitlines() or [''])[0])}".rstrip(": ")
