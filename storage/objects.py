"""Objects under one root, by key: local files or an object store, whole and atomic.

A put object is there as a whole or not at all; keys are relative, with "/". Failures are `StoreError`s in one
line, in which no credentials appear.
"""

import hashlib
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any, NamedTuple, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt

from vococache.errors import StoreError, VoCoError
from vococache.storage.documents import Bytes, Stamp, stamp
from vococache.storage.format import TEMPORARY

T = TypeVar("T")
R = TypeVar("R")

# Read into one small block, checked and copied while it is in the processor's cache: twice as fast as reading straight
# into new memory, whose pages the kernel would have to map one by one.
READ_BLOCK = 256 << 10
SMALL = 4096


class Entry(NamedTuple):
    """An object: key, length in bytes, time of its last change in seconds since the epoch."""

    key: str
    length: int
    modified: float


def open_objects(url: str) -> "Objects":
    """The objects under a local path (also file://) or an fsspec URL."""
    if "://" in url and not url.startswith("file://"):
        return RemoteObjects(url)
    return LocalObjects(os.path.abspath(os.path.expanduser(url.removeprefix("file://"))))


class Objects(ABC):
    """Access to the objects under one root. `url` names it in messages."""

    url: str
    threads: int

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """An object's bytes; None if there is no such object."""

    def stamp(self, key: str) -> Stamp | None:
        """An object's length and crc32c; None if absent."""
        data = self.get(key)
        return None if data is None else stamp(data)

    @abstractmethod
    def read_into(self, key: str, out: npt.NDArray[np.uint8]) -> Stamp | None:
        """Read an object of just `out`'s length into it; its stamp (crc 0 if of another length), None if absent."""

    @abstractmethod
    def put(self, key: str, data: Bytes, guard: Callable[[], bool] | None = None) -> str | None:
        """Make or replace an object, atomically; its version. None if `guard`, asked at the last moment, says no."""

    def version(self, key: str) -> str | None:
        """What another `put` of the object would change; "" where versions are not known, None if absent."""
        return ""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are fine."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Names of the objects and folders directly beneath `prefix`; none if it does not exist."""

    @abstractmethod
    def walk(self, prefix: str) -> list[Entry]:
        """All objects beneath `prefix`, sorted by key."""

    def get_many(self, keys: Sequence[str]) -> Iterable[bytes | None]:
        """`get` of each key, in order."""
        return self.map(self.get, keys)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`function` of each item, in order, several at a time."""
        if len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(min(self.threads, len(items))) as pool:
            yield from pool.map(function, items)

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


class LocalObjects(Objects):
    """Files under a folder, written beside and moved into place."""

    def __init__(self, root: str) -> None:
        self.url = root
        self.threads = min(4, os.cpu_count() or 1)

    def get(self, key: str) -> bytes | None:
        try:  # plain calls: `list` makes them for each of a hundred thousand videos
            file = os.open(f"{self.url}/{key}", os.O_RDONLY)
            try:
                data = os.read(file, SMALL)
                return data if len(data) < SMALL else data + os.read(file, os.fstat(file).st_size)
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error("read", key, error) from None

    def get_many(self, keys: Sequence[str]) -> Iterable[bytes | None]:
        return map(self.get, keys)  # small files from the page cache: threads would only wait for each other

    def read_into(self, key: str, out: npt.NDArray[np.uint8]) -> Stamp | None:
        with self._errors("read", key):
            try:
                file = open(f"{self.url}/{key}", "rb", buffering=0)  # noqa: SIM115 (`with` follows)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with file:
                length = os.fstat(file.fileno()).st_size
                if length != len(out):
                    return Stamp(length, 0)
                return _read_blocks(file, out)

    def stamp(self, key: str) -> Stamp | None:
        with self._errors("read", key):
            try:
                file = open(f"{self.url}/{key}", "rb", buffering=0)  # noqa: SIM115 (`with` follows)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with file:
                return _read_blocks(file)

    def put(self, key: str, data: Bytes, guard: Callable[[], bool] | None = None) -> str | None:
        path = f"{self.url}/{key}"
        folder = path.rsplit("/", 1)[0]
        temporary = f"{folder}/{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        with self._errors("write", key):
            try:
                with self._create(temporary, folder) as file:
                    file.write(data)
                    file.flush()
                    version = _version(os.fstat(file.fileno()))
                if guard is not None and not guard():
                    return None
                os.replace(temporary, path)
                return version
            finally:
                with suppress(OSError):
                    os.unlink(temporary)

    def version(self, key: str) -> str | None:
        with self._errors("read", key), suppress(FileNotFoundError, NotADirectoryError):
            return _version(os.stat(f"{self.url}/{key}"))
        return None

    @staticmethod
    def _create(path: str, folder: str) -> Any:
        while True:
            try:
                return open(path, "xb")
            except FileNotFoundError:  # also if a concurrent delete took the emptied folder away
                os.makedirs(folder, exist_ok=True)

    def delete(self, keys: Iterable[str]) -> None:
        folders: set[str] = set()
        for key in keys:
            with self._errors("delete", key), suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(f"{self.url}/{key}")
            parts = key.split("/")[:-1]
            folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(OSError):  # not empty
                os.rmdir(f"{self.url}/{folder}")

    def names(self, prefix: str) -> list[str]:
        with self._errors("list", prefix):
            try:
                with os.scandir(f"{self.url}/{prefix}") as entries:
                    return [entry.name for entry in entries]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def walk(self, prefix: str) -> list[Entry]:
        entries = []
        top = f"{self.url}/{prefix}".rstrip("/")

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        with self._errors("list", prefix):
            for folder, _, names in os.walk(top, onerror=refuse, followlinks=True):
                for name in names:
                    path = f"{folder}/{name}"
                    with suppress(FileNotFoundError):
                        status = os.lstat(path)
                        entries.append(Entry(path[len(self.url) + 1 :], status.st_size, status.st_mtime))
        return sorted(entries)


class RemoteObjects(Objects):
    """Objects behind an fsspec URL; one PUT each."""

    def __init__(self, url: str) -> None:
        self.threads = 16
        self._full_url = url.rstrip("/")
        self.url = redact(self._full_url)
        self._open()

    def _open(self) -> None:
        from fsspec.core import url_to_fs

        with self._errors("open", ""):
            # A listing must show what other processes have written since.
            self._opened, root = url_to_fs(self._full_url, use_listings_cache=False)
        self._root, self._process = root.rstrip("/"), os.getpid()

    @property
    def _fs(self) -> Any:
        """The file system; a forked process, such as a data loader's worker, has one of its own."""
        if self._process != os.getpid():
            self._open()
        return self._opened

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteObjects, (self._full_url,)

    def get(self, key: str) -> bytes | None:
        with self._errors("read", key):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{key}"))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def read_into(self, key: str, out: npt.NDArray[np.uint8]) -> Stamp | None:
        data = self.get(key)
        if data is None or len(data) != len(out):
            return None if data is None else Stamp(len(data), 0)
        out[:] = np.frombuffer(data, np.uint8)
        return stamp(data)

    def put(self, key: str, data: Bytes, guard: Callable[[], bool] | None = None) -> str | None:
        if guard is not None and not guard():
            return None
        data = bytes(data)
        with self._errors("write", key):
            self._fs.pipe_file(f"{self._root}/{key}", data)
        if len(data) <= SMALL:
            return ""  # reading it again costs no more than asking for its version
        # Another writer may have replaced it by now: only a version that is the hash of these bytes is theirs.
        version = self.version(key)
        return version if version == hashlib.md5(data, usedforsecurity=False).hexdigest() else ""

    def version(self, key: str) -> str | None:
        """The entity tag; on most object stores an MD5 of what was put in one piece."""
        with self._errors("read", key):
            try:
                return str(self._fs.info(f"{self._root}/{key}").get("ETag") or "").strip('"')
            except FileNotFoundError:
                return None

    def delete(self, keys: Iterable[str]) -> None:
        def delete(key: str) -> None:
            with self._errors("delete", key), suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{key}")

        for _ in self.map(delete, list(keys)):
            pass

    def names(self, prefix: str) -> list[str]:
        with self._errors("list", prefix):
            try:
                found = self._fs.ls(f"{self._root}/{prefix}".rstrip("/"), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [name for path in found if (name := path.rstrip("/").rsplit("/", 1)[-1])]

    def walk(self, prefix: str) -> list[Entry]:
        with self._errors("list", prefix):
            try:
                found = self._fs.find(f"{self._root}/{prefix}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
        skip = len(self._root) + 1
        return sorted(Entry(path[skip:], info["size"], _modified(info)) for path, info in found.items())


def _read_blocks(file: FileIO, out: npt.NDArray[np.uint8] | None = None) -> Stamp:
    """Read a file to its end, into `out` if given; its stamp."""
    block = np.empty(READ_BLOCK, np.uint8)
    length = crc = 0
    while count := file.readinto(block.data):
        crc = google_crc32c.extend(crc, block[:count])
        if out is not None:
            out[length : length + count] = block[:count]
        length += count
    return Stamp(length, crc)


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _modified(info: dict[str, Any]) -> float:
    """Time of an object's last change; now where the file system does not tell: never old enough for gc."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        if (value := info.get(name)) is not None and not isinstance(value, str):
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    return time.time()


def redact(text: str) -> str:
    """`text` without user:password@ and without query strings of URLs."""
    return re.sub(r"(\w://[^\s?]*)\?[^\s'\"]+", r"\1", re.sub(r"(\w://)[^/@\s]*@", r"\1", text))


def describe(error: Exception) -> str:
    """The first line of an error, fit for a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {redact((str(error).splitlines() or [''])[0])}".rstrip(": ")
