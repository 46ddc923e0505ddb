"""Where a video's bytes are: a local file, or an fsspec URL that is copied to this node's disk first."""

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from vococache.errors import VideoError
from vococache.storage.objects import changed_at, describe

COPY_BYTES = 4 << 20
HTTP = ("http://", "https://")
SILENCE_SECONDS = 60  # of an HTTP server; a whole video may take hours


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStat:
    """Size in bytes and time of the last change, 0 where a remote store tells none."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalVideo:
    """A video's file on this node, and what identifies its content."""

    path: str
    stat: SourceStat
    content_hash: str  # sha256, hex


def is_url(source: str) -> bool:
    """An fsspec URL, rather than a path?"""
    return "://" in source


def without_query(source: str) -> str:
    """A path, or a URL without what follows a question mark, which of HTTP is no part of a name."""
    return source.partition("?")[0] if source.startswith(HTTP) else source


def stat_source(source: str) -> SourceStat | None:
    """Size and modification time without reading the content; None for what is absent or cannot be reached."""
    try:
        if not is_url(source):
            found = Path(source).stat()
            return SourceStat(size=found.st_size, mtime_ns=found.st_mtime_ns)
        filesystem, path = file_system(source)
        info = filesystem.info(path)
        return SourceStat(size=int(info.get("size") or 0), mtime_ns=_mtime_ns(info))
    except Exception:  # what fsspec's file systems raise has no common ancestor
        return None


def listed_stat(info: dict[str, Any]) -> SourceStat | None:
    """What an entry of a listing says; None where that is not both size and time, and the object is to be asked."""
    size, mtime_ns = info.get("size"), _mtime_ns(info)
    return SourceStat(size=size, mtime_ns=mtime_ns) if isinstance(size, int) and mtime_ns else None


def content_hash(source: str) -> str:
    """sha256 of the content, hex. Raises `VideoError` where it cannot be read."""
    try:
        with _open(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # as above
        raise VideoError(f"cannot be read: {_in_words(error) or describe(error)}") from None


@contextmanager
def local_video(source: str, max_bytes: int, listed: SourceStat | None = None) -> Iterator[LocalVideo]:
    """The video of `source` as a local file; a remote one is copied, and the copy is gone afterwards.

    `listed`: what a listing said of a remote one, which is not asked for again. Raises `VideoError` for what cannot be
    read, or is remote and longer than `max_bytes`.
    """
    stat = listed if listed is not None and is_url(source) else stat_source(source)
    if not is_url(source):
        if stat is None:
            raise VideoError(why_absent(source))
        if not Path(source).is_file():
            raise VideoError("a directory, not a file" if Path(source).is_dir() else "not a regular file")
        yield LocalVideo(path=source, stat=stat, content_hash=content_hash(source))
        return
    if stat is None:
        raise VideoError(why_absent(source))
    if listed is not None and stat.size > max_bytes:
        raise VideoError(f"larger than the {max_bytes} bytes that are copied at most")
    with _temporary_file(Path(source).suffix) as file:
        copy = _copy if listed is None else _fetch
        digest = copy(source, file, max_bytes)
        stat = SourceStat(size=os.fstat(file.fileno()).st_size or stat.size, mtime_ns=stat.mtime_ns)
        yield LocalVideo(path=_path_of(file), stat=stat, content_hash=digest)


def why_absent(source: str) -> str:
    """Why `stat_source` finds nothing, on which node."""
    node = socket.gethostname()
    try:
        if is_url(source):
            filesystem, path = file_system(source)
            filesystem.info(path)
        else:
            Path(source).stat()
    except Exception as error:  # as in `stat_source`
        if is_url(source):
            return f"{_in_words(error) or 'no such object, or no access to it'} from node {node}"
        what = "no permission to read it" if isinstance(error, PermissionError) else "no such file"
        if what == "no such file" and Path(source).is_symlink():
            what = f"a link to {Path(source).readlink()}, where nothing is,"
        return f"{what} on node {node}: {source}"
    return f"it came back meanwhile on node {node}: {source}"


def _in_words(error: BaseException | None) -> str | None:
    """The HTTP status that an error, or what caused it, tells; or that there was no answer."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return f"nothing came for {SILENCE_SECONDS} s"
        status = getattr(error, "status", None)
        if isinstance(status, int) and status:
            with suppress(ValueError):
                return f"HTTP {status} ({HTTPStatus(status).phrase})"
            return f"HTTP {status}"
        error = error.__cause__
    return None


def _fetch(source: str, file: IO[bytes], max_bytes: int) -> str:
    """`_copy` in one request, without a look at the object before."""
    try:
        filesystem, path = file_system(source)
        filesystem.get_file(path, _path_of(file))
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise VideoError(f"larger than the {max_bytes} bytes that are copied at most")
        return content_hash(_path_of(file))
    except VideoError:
        raise
    except Exception as error:  # as in `stat_source`
        raise VideoError(f"cannot be copied: {_in_words(error) or describe(error)}") from None


def _copy(source: str, file: IO[bytes], max_bytes: int) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with _open(source) as remote:
            while block := remote.read(COPY_BYTES):
                size += len(block)
                if size > max_bytes:
                    raise VideoError(f"larger than the {max_bytes} bytes that are copied at most")
                digest.update(block)
                file.write(block)
        file.flush()
    except VideoError:
        raise
    except Exception as error:  # as in `stat_source`
        raise VideoError(f"cannot be copied: {_in_words(error) or describe(error)}") from None
    return digest.hexdigest()


def _temporary_file(suffix: str) -> Any:
    """A file that even `kill -9` of this process does not leave behind, where the system allows."""
    if Path("/proc/self/fd").is_dir():
        return tempfile.TemporaryFile()
    return tempfile.NamedTemporaryFile(suffix=suffix)


def _path_of(file: Any) -> str:
    """A path by which the decoder child can open a temporary file."""
    if Path("/proc/self/fd").is_dir():
        return f"/proc/{os.getpid()}/fd/{file.fileno()}"
    return str(file.name)


def _open(source: str) -> Any:
    if not is_url(source):
        return Path(source).open("rb")
    filesystem, path = file_system(source)
    # Of HTTP in one answer: not all servers give ranges, and parts may be of two versions.
    return filesystem.open(path, "rb", **({"block_size": 0} if source.startswith(HTTP) else {}))


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, which asks anew each time, and the path in it."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(HTTP):
        import aiohttp

        silence = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": silence}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, path


def _mtime_ns(info: dict[str, Any]) -> int:
    """Of HTTP what tells versions apart: Last-Modified, with the ETag's hash in the place of the nanoseconds."""
    found = changed_at(info)
    if isinstance(found, datetime):
        return int(found.timestamp()) * 10**9  # fractions are told in listings, not in the answer about one object
    if found is not None:
        return int(found * 1e9)
    seconds = 0
    with suppress(KeyError, ValueError, TypeError):
        seconds = int(parsedate_to_datetime(info["Last-Modified"]).timestamp())
    tag = hashlib.sha256(str(info.get("ETag", "")).encode()).digest() if info.get("ETag") else b""
    return seconds * 10**9 + int.from_bytes(tag[:8], "big") % 10**9
