"""Videos behind HTTP: what says that they changed, what a server's refusal is called, and servers of all kinds."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vococache.errors import VideoError
from vococache.workers.video import source
from vococache.workers.video.source import content_hash, local_video, stat_source

DATA = os.urandom(6 << 20)  # more than is read at once
CHUNKED = {"Transfer-Encoding": "chunked"}


class Server(ThreadingHTTPServer):
    """Serves `DATA` with `headers` at every path but those that are numbers: these are the status.

    Other names stand for habits: see `Handler`. It knows no ranges.
    """

    headers: dict[str, str]
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        name = self.path.strip("/").partition(".")[0]
        self.close_connection = name in ("ends", "cut", "cut-chunk", "silent", "endless")
        if name.isdigit() or (name == "gets-only" and not with_body):
            self.send_error(int(name) if name.isdigit() else 403)
            return
        self.send_response(302 if name in ("moved", "circle") else 200)
        lengths = {"chunks": CHUNKED, "cut-chunk": CHUNKED, "ends": {}, "endless": {}}
        headers = lengths.get(name, {"Content-Length": str(len(DATA))}) | self.server.headers
        if name in ("moved", "circle"):
            headers = {"Content-Length": "0", "Location": "/clip.mp4" if name == "moved" else "/circle.mp4"}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if not with_body or "Location" in headers:
            return
        if headers.items() >= CHUNKED.items():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(DATA), DATA) + (b"0\r\n\r\n" if name == "chunks" else b""))
        elif name == "endless":
            with suppress(OSError):
                while True:
                    self.wfile.write(DATA)
        else:
            self.wfile.write(DATA[:1000] if name in ("cut", "silent") else DATA)
            if name == "silent":
                self.wfile.flush()
                time.sleep(5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.headers = {}
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url(server: Server, name: str = "clip.mp4") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_its_headers_tell_that_a_video_changed(server: Server) -> None:
    seen = set()
    for headers in (
        {},
        {"Last-Modified": formatdate(1_700_000_000, usegmt=True)},
        {"Last-Modified": formatdate(1_700_000_001, usegmt=True)},
        {"Last-Modified": formatdate(1_700_000_001, usegmt=True), "ETag": '"a"'},
        {"Last-Modified": formatdate(1_700_000_001, usegmt=True), "ETag": '"b"'},
        {"ETag": '"a"'},
        {"ETag": 'W/"a"'},
        {"Last-Modified": "no date", "ETag": '"c"'},
    ):
        server.headers = headers
        found = stat_source(url(server))
        assert found == stat_source(url(server)), "as long as nothing changes"
        assert found is not None
        assert found.size == len(DATA)
        if "Last-Modified" in headers and headers["Last-Modified"] != "no date":
            assert found.mtime_ns // 10**9 in (1_700_000_000, 1_700_000_001)
        seen.add(found.mtime_ns)
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "Not Found"), (403, "Forbidden"), (401, "Unauthorized"), (410, "Gone"), (500, "Internal Server Error")],
)
def test_a_refusal_is_told_as_such(server: Server, status: int, words: str) -> None:
    place = url(server, f"{status}.mp4")
    assert stat_source(place) is None
    with pytest.raises(VideoError, match=rf"^HTTP {status} \({words}\) from node "), local_video(place, 1 << 20):
        pass
    with pytest.raises(VideoError, match=f"HTTP {status}|no such|FileNotFound"):
        content_hash(place)


@pytest.mark.parametrize("name", ["clip.mp4?signature=a.b", "chunks", "ends", "moved", "gets-only"])
def test_it_is_copied(server: Server, name: str) -> None:
    """Whether or not the server knows ranges, lengths, and requests for heads alone."""
    place = url(server, name)
    with local_video(place, 8 << 20) as local, open(local.path, "rb") as file:  # noqa: PTH123 (a descriptor's)
        assert file.read() == DATA
        assert local.stat.size == len(DATA)
        assert local.content_hash == content_hash(place)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut", "^cannot be copied: ClientPayloadError"),
        ("cut-chunk", "^cannot be copied: ClientPayloadError"),
        ("circle", "^no such object, or no access to it"),
        ("endless", "^larger than the 8388608 bytes"),
        ("silent", "^cannot be copied: nothing came for 1 s"),
    ],
)
def test_what_is_not_whole_is_refused(server: Server, name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "SILENCE_SECONDS", 1)
    with pytest.raises(VideoError, match=reason) as error, local_video(url(server, name), 8 << 20):
        pass
    assert "\n" not in str(error.value)
