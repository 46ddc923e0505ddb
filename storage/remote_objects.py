"""A store's objects behind an fsspec URL."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.storage.documents import Bytes, Stamp, stamp
from vococache.storage.objects import Entry, Objects, changed_at, redact

_ALONE = threading.Lock()  # what lies in memory belongs to this process


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
            # Of several requests for one object, s3fs asks for its size first.
            serial = {"max_concurrency": 1} if self._full_url.startswith(("s3:", "s3a:")) else {}
            self._opened, root = url_to_fs(self._full_url, use_listings_cache=False, **serial)
        self._root, self._process = root.rstrip("/"), os.getpid()
        self.swaps = not {"s3", "memory"}.isdisjoint(protocols(self._opened))

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
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                _check_bucket(error)
                return None

    def stamp(self, key: str, trailer: int = 0) -> Stamp | None:
        data = self.get(key)
        return None if data is None else stamp(data, trailer)

    def read_into(self, key: str, out: npt.NDArray[np.uint8], trailer: int = 0) -> Stamp | None:
        data = self.get(key)
        if data is None or len(data) != len(out) + trailer:
            return None if data is None else Stamp(len(data), 0)
        out[:] = np.frombuffer(data, np.uint8, len(out))
        return stamp(data, trailer)

    def put(self, key: str, data: Bytes) -> None:
        with self._errors("write", key):
            self._fs.pipe_file(f"{self._root}/{key}", bytes(data))

    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        whole = bytes(data) if tail is None else bytes(data) + tail()
        with self._errors("write", key):
            try:
                self._fs.pipe_file(f"{self._root}/{key}", whole, mode="create")
            except FileExistsError:
                return False
        return True

    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        if expected is None and data is not None:
            return self.create(key, data)
        if expected is not None and data is not None and "s3" in protocols(self._fs):
            return self._swap(key, expected, data)
        with _ALONE:
            if self.get(key) != expected:
                return False
            if data is None:
                self.delete([key])
            else:
                self.put(key, data)
            return True

    def _swap(self, key: str, expected: bytes, data: bytes) -> bool:
        """`replace` by the entity tag: the MD5 of what was put in one piece, or what the server says that it is."""
        path = f"{self._root}/{key}"
        tag = hashlib.md5(expected, usedforsecurity=False).hexdigest()
        with self._errors("write", key):
            for _ in range(2):
                try:
                    self._fs.pipe_file(path, data, IfMatch=f'"{tag}"')
                    return True
                except FileNotFoundError:
                    return False
                except OSError as error:
                    if "PreconditionFailed" not in repr(error.__cause__) and "pre-condition" not in str(error):
                        raise
                try:  # the tag first: what is put after that look fails to match it
                    tag = str(self._fs.info(path).get("ETag") or "").strip('"')
                    found = self._fs.cat_file(path)
                except FileNotFoundError:
                    return False
                if found != expected:
                    return bool(found == data)  # ours after all: its answer was lost, and the client tried again
        return False

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
            except (FileNotFoundError, NotADirectoryError) as error:
                _check_bucket(error)
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


def protocols(filesystem: Any) -> tuple[str, ...]:
    """What an fsspec file system calls itself."""
    found = filesystem.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _check_bucket(error: Exception) -> None:
    """Raise where a store answers that the whole bucket is missing, rather than one object in it."""
    if "bucket does not exist" in str(error):
        raise error


def _modified(info: dict[str, Any]) -> float:
    """Time of an object's last change; now where the file system does not tell: never old enough for gc."""
    found = changed_at(info)
    return time.time() if found is None else found.timestamp() if isinstance(found, datetime) else found
