"""A store's objects as local files."""

import errno
import fcntl
import mmap
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from typing import IO, Any, TypeVar, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, VoCoError
from vococache.storage.documents import Bytes, Stamp, closing
from vococache.storage.format import DOCUMENT, TEMPORARY
from vococache.storage.objects import PLAIN, SMALL, Entry, Objects

T = TypeVar("T")

# Read into one small block, checked and copied while it is in the processor's cache: twice as fast as reading straight
# into new memory, whose pages the kernel would have to map one by one.
READ_BLOCK = 256 << 10
FOLDER_KIND = "folder"
LOCK = f"videos/{DOCUMENT}"  # a store's one file that nobody ever replaces
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

    def mapped(self, key: str) -> Bytes | None:
        with self._errors("read", key):
            file = self._open(key)
            if file is None:
                return None
            with FileIO(file) as opened:
                if not os.fstat(file).st_size:
                    return b""
                return np.frombuffer(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ), np.uint8)

    def read_into(self, key: str, out: npt.NDArray[np.uint8], trailer: int = 0) -> Stamp | None:
        with self._errors("read", key):
            file = self._open(key)
            if file is None:
                return None
            with FileIO(file) as opened:
                length = os.fstat(file).st_size
                return _read_blocks(opened, trailer, out) if length == len(out) + trailer else Stamp(length, 0)

    def stamp(self, key: str, trailer: int = 0) -> Stamp | None:
        with self._errors("read", key):
            file = self._open(key)
            if file is None:
                return None
            with FileIO(file) as opened:
                return _read_blocks(opened, trailer)

    def put(self, key: str, data: Bytes) -> None:
        self._write(key, data, None, _replace)

    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        return self._write(key, data, tail, _link)

    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        with self._errors("write", key), self._alone():
            if self.get(key) != expected:
                return False
            if data is None:
                self._remove([key])
            else:
                self._write(key, data, None, _replace)
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else of this host, or of those that share a file system with locks, is in here."""
        file = self._in_folder(_open_to_lock, LOCK)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _write(
        self, key: str, data: Bytes, tail: Callable[[], bytes] | None, move: Callable[[str, str, int], bool]
    ) -> bool:
        temporary = f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        with self._errors("write", key):
            folder, file = self._create(key, temporary)
            try:
                with cast(IO[Any], open(file, "wb")) as opened:
                    opened.write(data)
                    if tail is not None:
                        opened.write(tail())
                return move(temporary, key.rsplit("/", 1)[-1], folder)
            finally:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                os.close(folder)

    def obstacle(self, key: str) -> str | None:
        with self._errors("read", key), suppress(FileNotFoundError, NotADirectoryError):
            kind = _kind(self._in_folder(_lstat, key))
            return None if kind == FOLDER_KIND else kind
        return None

    def delete(self, keys: Iterable[str]) -> None:
        self._remove(keys)

    def _remove(self, keys: Iterable[str]) -> None:
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
            except BaseException:  # a descriptor is nobody else's to close
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


def _read_blocks(file: FileIO, trailer: int, out: npt.NDArray[np.uint8] | None = None) -> Stamp:
    """Read a file to its end, all but the trailer into `out` if given; its stamp."""
    block = np.empty(READ_BLOCK, np.uint8)
    left = max(0, os.fstat(file.fileno()).st_size - trailer)
    length = crc = 0
    while count := file.readinto(block[: min(left - length, READ_BLOCK)].data):
        crc = google_crc32c.extend(crc, block[:count])
        if out is not None:
            out[length : length + count] = block[:count]
        length += count
    end = file.read()
    return closing(length + len(end), crc, end)


def _replace(temporary: str, name: str, folder: int) -> bool:
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _link(temporary: str, name: str, folder: int) -> bool:
    """Give a file its name, where nothing has it."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: whoever comes between the look and the deed writes the same.
        with suppress(FileNotFoundError):
            _lstat(name, dir_fd=folder)
            return False
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _open_to_lock(name: str, *, dir_fd: int) -> int:
    return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)


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
    return Entry(key, status.st_size, status.st_mtime, _kind(status))
