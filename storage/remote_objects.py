"""A store's objects behind an fsspec URL."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.storage.documents import Bytes, Stamp, stamp
from vococache.storage.objects import SMALL, Entry, Objects, redact


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
            answer = self._fs.pipe_file(f"{self._root}/{key}", data)
        if len(data) <= SMALL:
            return ""  # reading it again costs no more than asking for its version
        # Another writer may have replaced it by now: only a version that is the hash of these bytes is theirs.
        version = _tag(answer) if isinstance(answer, dict) else self.version(key)
        return version if version == hashlib.md5(data, usedforsecurity=False).hexdigest() else ""

    def put_each(self, objects: Mapping[str, Bytes], guard: Callable[[], bool]) -> dict[str, str] | None:
        if not guard():  # once: they go at the same time
            return None
        versions = self.map(lambda item: self.put(*item), list(objects.items()))
        return {key: version or "" for key, version in zip(objects, versions, strict=True)}

    def version(self, key: str) -> str | None:
        """The entity tag; on most object stores an MD5 of what was put in one piece."""
        with self._errors("read", key):
            try:
                return _tag(self._fs.info(f"{self._root}/{key}"))
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
        return sorted(
            Entry(path[skip:], info["size"], _modified(info), version=_tag(info)) for path, info in found.items()
        )


def _check_bucket(error: Exception) -> None:
    """Raise where a store answers that the whole bucket is missing, rather than one object in it."""
    if "bucket does not exist" in str(error):
        raise error


def _tag(info: dict[str, Any]) -> str:
    """An object's entity tag; "" where a store has none."""
    return str(info.get("ETag") or "").strip('"')


def _modified(info: dict[str, Any]) -> float:
    """Time of an object's last change; now where the file system does not tell: never old enough for gc."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        if (value := info.get(name)) is not None and not isinstance(value, str):
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    return time.time()
