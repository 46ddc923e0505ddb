"""Where a live stream's bytes come from: the one source that was named, and no other host or file.

What comes over HTTP, from files and pipes is fetched here and handed to FFmpeg, which opens nothing by itself; UDP,
RTSP, SRT and cameras it opens under a whitelist of that one protocol. Runs in the decoder child; free of torch.
"""

import os
import select
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from http.client import IncompleteRead as Incomplete
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import av

from vococache.errors import VideoError
from vococache.workers.video.container import open_local
from vococache.workers.video.formats import DEMUXERS

SILENCE_SECONDS = 10.0  # after which a connection that says nothing counts as lost
POLL_SECONDS = 0.1  # between looks at a file that grows
PLAYLIST = b"#EXTM3U"
PROBE = {"probesize": "1000000", "analyzeduration": "1000000", "fpsprobesize": "3"}
ANY_CLOCK = {"correct_ts_overflow": "0"}  # we unwind it
# HLS is refetched by us, so FFmpeg must not go on with a connection that it does not have.
HLS = {"http_persistent": "0", "http_multiple": "0", "allowed_extensions": "ALL", "extension_picky": "0"}
AT_ONCE = {"fpsprobesize": "0"}  # what has no times of its own has those of its arrival
# Of each scheme that FFmpeg opens: the protocols that it may use, and options.
NATIVE: dict[str, tuple[str, dict[str, str]]] = {
    "udp": ("udp", {"fifo_size": "100000", "overrun_nonfatal": "1", "buffer_size": "4194304"}),
    "rtp": ("rtp,udp", {}),
    "rtsp": ("rtsp,rtp,tcp,udp", {"rtsp_transport": "tcp"}),
    "rtsps": ("rtsps,rtsp,rtp,tcp,tls,udp", {"rtsp_transport": "tcp"}),
    "srt": ("srt", {}),
}
SCHEMES = ("http", "https", *NATIVE)

Beat = Callable[[], None]


@dataclass(kw_only=True)
class Input:
    """An open source. `span`: seconds that a file held already when it was opened, and `changed` when that was.

    `has_times`: does it say when a picture is shown?
    """

    container: Any
    has_times: bool = True
    body: Any = None  # what the bytes are read from, where that is not FFmpeg
    span: float = 0.0
    changed: float = 0.0

    @property
    def is_over(self) -> bool:
        """Behind the last packet: has the source itself ended, so that there is nothing to connect to again?"""
        return self.body is not None and bool(self.body.is_over)


def open_input(source: str, beat: Beat, *, pipe: int | None, again: bool) -> Input:
    """Open a source: a URL, a path, or "-" for the pipe whose descriptor is `pipe`. Raises `VideoError`.

    `again`: not for the first time, so that what it offers of the last moments is wanted too.
    """
    try:
        scheme = urlsplit(source).scheme if "://" in source else ""
        if scheme in ("http", "https"):
            return _open_web(Web(source, beat), again)
        if scheme in NATIVE:
            protocols, options = NATIVE[scheme]
            return Input(container=_av_open(source, protocols, options, (*DEMUXERS, "rtsp", "sdp", "rtp")))
        if source.startswith("/dev/video"):
            return Input(container=_av_open(source, "file", {}, ("v4l2", "video4linux2"), format="v4l2"))
        if source == "-":
            assert pipe is not None
            body: Any = Pipe(pipe, beat)
            return Input(container=_read_from(body), body=body)
        if not Path(source).exists():
            raise VideoError(f"no such file: {source}")
        span, changed = span_of(source, beat), Path(source).stat().st_mtime
        body = GrowingFile(source, beat)
        return Input(container=_read_from(body), body=body, span=span, changed=changed)
    except (av.FFmpegError, OSError, HTTPException) as error:
        raise VideoError(reason_of(error)) from None


def lacks_srt(source: str) -> bool:
    """Is it SRT's, without which most FFmpegs are built? Nothing is opened: what is tried names no place."""
    if not source.lower().startswith("srt://"):
        return False
    try:
        av.open("srt://", options={"protocol_whitelist": "srt"}).close()
    except av.FFmpegError as error:
        return isinstance(error, av.error.ProtocolNotFoundError)
    return False


def span_of(path: str, beat: Beat) -> float:
    """Seconds of video that a file holds by now, by its packets' times; 0 where these cannot be told."""
    try:
        with open_local(path, ANY_CLOCK) as container:
            stream = container.streams.video[0]
            total, last = 0.0, None
            for packet in container.demux(stream):
                beat()
                if packet.dts is None or stream.time_base is None:
                    continue
                now = float(packet.dts * stream.time_base)
                if last is not None and 0 < now - last < SILENCE_SECONDS:
                    total += now - last
                last = now
            return total
    except (av.FFmpegError, OSError, IndexError):
        return 0.0


class Pipe:
    """What a program writes into a pipe, as it comes."""

    is_over = False

    def __init__(self, descriptor: int, beat: Beat) -> None:
        self._descriptor, self._beat = descriptor, beat

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end."""
        while not select.select([self._descriptor], [], [], 0.5)[0]:
            self._beat()
        data = os.read(self._descriptor, size)
        self.is_over = not data
        return data


class GrowingFile:
    """A file that somebody still writes: at its end, more is waited for. It ends where another takes its name."""

    is_over = False

    def __init__(self, path: str, beat: Beat) -> None:
        self._path, self._beat = path, beat
        self._file = Path(path).open("rb")  # noqa: SIM115 (as long as this object)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any."""
        while not (data := self._file.read(size)):
            if self._is_replaced():
                return b""
            self._beat()
            time.sleep(POLL_SECONDS)
        return data

    def _is_replaced(self) -> bool:
        ours = os.fstat(self._file.fileno())
        try:
            found = Path(self._path).stat()
        except OSError:
            return False  # for a moment, or for ever: what was there is read to its end
        return (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino) or found.st_size < self._file.tell()


class Web:
    """Requests to the host of one URL, with the user and password in it; other hosts are refused."""

    def __init__(self, url: str, beat: Beat) -> None:
        parts = urlsplit(url)
        self._beat = beat
        self.host = parts.hostname
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self.has_ended = False  # a playlist that says so
        handlers: list[Any] = [_SameHost(self)]
        if parts.username is not None:
            known = urllib.request.HTTPPasswordMgrWithPriorAuth()
            root = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "/", "", ""))
            known.add_password(None, root, parts.username, parts.password or "", is_authenticated=False)
            handlers += [urllib.request.HTTPBasicAuthHandler(known), urllib.request.HTTPDigestAuthHandler(known)]
        self._opener = urllib.request.build_opener(*handlers)

    def open(self, url: str, flags: int = 0, options: object = None) -> "Body":
        """A URL of the same host. Raises `VideoError`."""
        self.check(url)
        self._beat()
        try:
            reply = self._opener.open(url, timeout=SILENCE_SECONDS)
        except (OSError, HTTPException, ValueError) as error:
            raise VideoError(reason_of(error)) from None
        return Body(reply, self)

    def check(self, url: str) -> None:
        """Raises `VideoError` for a URL of another host, or that is none of HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname != self.host:
            raise VideoError(f"it leads to another place ({parts.scheme}://{parts.hostname}): name that one instead")


class Body:
    """What a server replies, as it comes."""

    def __init__(self, reply: HTTPResponse, web: Web) -> None:
        self._reply, self._web = reply, web
        self.kind = reply.headers.get_content_type()
        self.is_over = False
        self._head = b""
        self._is_text = False

    @property
    def is_playlist(self) -> bool:
        """Is it one of HLS?"""
        if not self._head:
            self._head = self.read(16)
        return self._head.startswith(PLAYLIST)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end. Raises `VideoError` after a long silence."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        self._web._beat()
        try:
            data = self._reply.read1(size)
        except (OSError, Incomplete, HTTPException) as error:
            raise VideoError(reason_of(error)) from None
        # A server that told the length has sent all there is; one that broke off has not.
        self.is_over = not data and self._reply.length == 0
        self._is_text = self._is_text or data.startswith(PLAYLIST)
        if self._is_text and b"#EXT-X-ENDLIST" in data:
            self._web.has_ended = True
        return data

    def close(self) -> None:
        """Give the connection up."""
        self._reply.close()


class _SameHost(urllib.request.HTTPRedirectHandler):
    def __init__(self, web: Web) -> None:
        self._web = web

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow to the same host alone."""
        self._web.check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Playlist:
    """The end of an HLS playlist, told as `Input` wants it."""

    def __init__(self, web: Web) -> None:
        self._web = web

    @property
    def is_over(self) -> bool:
        return self._web.has_ended


def _open_web(web: Web, again: bool) -> Input:
    body = web.open(web.url)
    if body.kind.startswith("multipart/"):
        container = _read_from(body, ("mpjpeg", "mjpeg"), AT_ONCE, format="mpjpeg")
        return Input(container=container, body=body, has_times=False)
    if not body.is_playlist:
        return Input(container=_read_from(body), body=body)
    body.close()
    # At first the newest segment; afterwards also those before it, of which some may be missing.
    options = HLS | {"live_start_index": "-3" if again else "-1"}
    container = _av_open(web.url, "http,https", options, ("hls", *DEMUXERS), format="hls", io_open=web.open)
    return Input(container=container, body=_Playlist(web))


def _read_from(
    body: Any, formats: tuple[str, ...] = DEMUXERS, options: dict[str, str] | None = None, **how: Any
) -> Any:
    return _av_open(body, "", options or {}, formats, **how)


def _av_open(place: Any, protocols: str, options: dict[str, str], formats: tuple[str, ...], **how: Any) -> Any:
    allowed = {"protocol_whitelist": protocols, "format_whitelist": ",".join(formats)}
    if not isinstance(place, str):  # else FFmpeg waits by itself
        del allowed["protocol_whitelist"]
    else:
        how["timeout"] = (SILENCE_SECONDS, SILENCE_SECONDS)
    return av.open(place, options=PROBE | ANY_CLOCK | allowed | options, metadata_errors="replace", **how)


def reason_of(error: BaseException) -> str:
    """One line for a person, without the source's name: that may hold a password."""
    if isinstance(error, VideoError):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} ({error.reason})"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason_of(error.reason)
    if isinstance(error, TimeoutError | av.error.TimeoutError | av.error.ExitError):
        return f"nothing came for {SILENCE_SECONDS:g} s"
    if isinstance(error, av.error.ProtocolNotFoundError):
        return "this build of FFmpeg (PyAV) does not have that protocol"
    if isinstance(error, av.InvalidDataError):
        return "what came is no video that is known"
    if isinstance(error, av.FFmpegError):
        return str(error.strerror).lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
