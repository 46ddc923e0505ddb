"""A store's objects as local files."""

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import FileIO
from typing import IO, Any, TypeVar, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, VoCoError
from vococache.storage.documents import Bytes, Stamp
from vococache.storage.format import TEMPORARY
from vococache.storage.objects import PLAIN, SMALL, Entry, Objects

T = TypeVar("T")

# Read into one small block, checked and copied while it is in the processor's cache: twice as fast as reading straight
# into new memory, whose pages the kernel would have to map one by one.
READ_BLOCK = 256 << 10
FOLDER_KIND = "folder"
FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # enough to reach what is in it


class LocalObjects(Objects):
    """Files under a folder, written beside and moved into place.

    The root may be reached through symbolic links. Beneath it none is followed, and nothing but plain files is opened:
    a store may come from a stranger. Paths are walked by descriptors, so that no folder turns into a link between a
    check and its use.
    """

    is_local = True

    def __init__(self, root: str) -> None:
        self.url = os.path.abspath(os.path.expanduser(root))
        self.threads = min(4, os.cpu_count() or 1)

    def get(self, key: str) -> bytes | None:
        with self._errors("read", key):
            file = self._open(key)
            return None if file is None else _read_whole(file)

    def get_each(
        self, prefix: str, name: str, wanted: Callable[[str], bool]
    ) -> Iterable[tuple[str, bytes | CorruptionError | None]]:
        # One after the other: small files come from the page cache, and threads would only wait for each other. The
        # folder of all is opened once, and its listing says which of its entries are folders, and not links to some.
        with self._errors("list", prefix):
            try:
                top = self._in_folder(_open_folder, f"{prefix}/.")
            except (FileNotFoundError, NotADirectoryError):
                return
        try:
            with os.scandir(top) as entries:
                found = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if wanted(entry.name)
                )
            for folder, is_folder in found:
                file = _open_in(top, f"{folder}/{name}") if is_folder else None
                key = f"{prefix}/{folder}/{name}"
                data: bytes | CorruptionError | None
                try:  # whatever is in the way has its name told
                    data = self.get(key) if file is None else _read_whole(file)
                except CorruptionError as error:
                    data = error
                except OSError as error:
                    raise error if isinstance(error, VoCoError) else self._error("read", key, error) from None
                yield folder, data
        finally:
            os.close(top)

    def read_into(self, key: str, out: npt.NDArray[np.uint8]) -> Stamp | None:
        with self._errors("read", key):
            file = self._open(key)
            if file is None:
                return None
            with FileIO(file) as opened:
                length = os.fstat(file).st_size
                return _read_blocks(opened, out) if length == len(out) else Stamp(length, 0)

    def stamp(self, key: str) -> Stamp | None:
        with self._errors("read", key):
            file = self._open(key)
            if file is None:
                return None
            with FileIO(file) as opened:
                return _read_blocks(opened)

    def put(self, key: str, data: Bytes, guard: Callable[[], bool] | None = None) -> str | None:
        temporary = f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        with self._errors("write", key):
            folder, file = self._create(key, temporary)
            try:
                with cast(IO[Any], open(file, "wb")) as opened:
                    opened.write(data)
                    opened.flush()
                    version = _version(os.fstat(file))
                if guard is not None and not guard():
                    return None
                os.replace(temporary, key.rsplit("/", 1)[-1], src_dir_fd=folder, dst_dir_fd=folder)
                return version
            finally:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                os.close(folder)

    def version(self, key: str) -> str | None:
        with self._errors("read", key):
            try:
                return _version(self._in_folder(_lstat, key))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def obstacle(self, key: str) -> str | None:
        with self._errors("read", key), suppress(FileNotFoundError, NotADirectoryError):
            kind = _kind(self._in_folder(_lstat, key))
            return None if kind == FOLDER_KIND else kind
        return None

    def delete(self, keys: Iterable[str]) -> None:
        folders: set[str] = set()
        for key in keys:
            with self._errors("delete", key), suppress(FileNotFoundError, NotADirectoryError):
                self._in_folder(os.unlink, key)
            parts = key.split("/")[:-1]
            folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(OSError):  # not empty
                self._in_folder(os.rmdir, folder)

    def names(self, prefix: str) -> list[str]:
        with self._errors("list", prefix):
            try:
                return self._in_folder(_list, f"{prefix}/.".lstrip("/"))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def walk(self, prefix: str) -> list[Entry]:
        with self._errors("list", prefix), suppress(FileNotFoundError, NotADirectoryError):
            found = self._in_folder(_lstat, prefix or ".")
            if not stat.S_ISDIR(found.st_mode):
                return [_entry(prefix, found)]
            above = prefix.rpartition("/")[0]
            entries = self._in_folder(_walk, prefix or ".")
            return sorted(entry._replace(key=f"{above}/{entry.key}".lstrip("/")) for entry in entries)
        return []

    def _open(self, key: str) -> int | None:
        """A descriptor of a plain file; None if there is none. Raises `CorruptionError` for anything but that."""
        try:
            return self._in_folder(_open_plain, key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _NotPlain as error:
            raise self._strange(key, error.kind) from None

    def _create(self, key: str, temporary: str) -> tuple[int, int]:
        """Descriptors of the folder that is to hold `key`, made if absent, and of a new file in it."""
        while True:
            folder = self._folder(key.split("/")[:-1], make=True)
            try:
                return folder, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
            except FileNotFoundError:  # a concurrent delete took the emptied folder away
                os.close(folder)
            except BaseException:
                os.close(folder)
                raise

    def _in_folder(self, function: Callable[..., T], key: str) -> T:
        """`function` of the last name of `key` and `dir_fd`, the folder that holds it."""
        *folders, name = key.split("/")
        folder = self._folder(folders)
        try:
            return function(name, dir_fd=folder)
        finally:
            os.close(folder)

    def _folder(self, names: Sequence[str], *, make: bool = False) -> int:
        """A descriptor of a folder beneath the root. Raises `CorruptionError` where anything else is on the way."""
        if make:
            with suppress(FileExistsError):
                os.makedirs(self.url)
        folder = os.open(self.url, FOLDER)
        for depth, name in enumerate(names, 1):
            above = folder
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=above)
                folder = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                kind = _kind(_lstat(name, dir_fd=above))
                if kind == PLAIN and not make:
                    raise
                raise self._strange("/".join(names[:depth]), kind, FOLDER_KIND) from None
            finally:
                os.close(above)
        return folder

    def _strange(self, key: str, kind: str, expected: str = PLAIN) -> CorruptionError:
        return CorruptionError(
            f"{self.url}/{key} is a {kind}, which is never followed or opened: expected a {expected}"
        )


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


class _NotPlain(Exception):
    """What lies there is not a plain file but a `kind`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def _kind(status: os.stat_result) -> str:
    """What lies at a place, in words."""
    for test, kind in (
        (stat.S_ISREG, PLAIN),
        (stat.S_ISDIR, FOLDER_KIND),
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(status.st_mode):
            return kind
    return "device"


def _lstat(name: str, *, dir_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _open_plain(name: str, *, dir_fd: int) -> int:
    """A descriptor of a plain file; nothing else is opened: a FIFO would block, a device might act."""
    status = _lstat(name, dir_fd=dir_fd)
    if not stat.S_ISREG(status.st_mode):
        raise _NotPlain(_kind(status))
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)


def _open_in(folder: int, path: str) -> int | None:
    """A descriptor of a plain file, or None: for `list`, which opens one for each of a hundred thousand videos."""
    try:
        if stat.S_ISREG(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        pass
    return None


def _read_whole(file: int) -> bytes:
    """All of an open file, which is closed."""
    try:
        data = os.read(file, SMALL)
        return data if len(data) < SMALL else data + os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)


def _open_folder(name: str, *, dir_fd: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


def _list(name: str, *, dir_fd: int) -> list[str]:
    folder = _open_folder(name, dir_fd=dir_fd)
    try:
        return os.listdir(folder)
    finally:
        os.close(folder)


def _walk(top: str, *, dir_fd: int) -> list[Entry]:
    """All but folders beneath `top`, with keys that begin with it."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    entries = []
    for place, folders, others, folder in os.fwalk(top, dir_fd=dir_fd, onerror=refuse):
        links = []
        for name in (*folders, *others):
            with suppress(FileNotFoundError):  # removed meanwhile
                status = _lstat(name, dir_fd=folder)
                if not stat.S_ISDIR(status.st_mode):
                    links.append(name)
                    entries.append(_entry(f"{place}/{name}".removeprefix("./"), status))
        folders[:] = [name for name in folders if name not in links]
    return entries


def _entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, status.st_mtime, _kind(status), _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
