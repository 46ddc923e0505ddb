"""Videos behind HTTP: what says that they changed, and what a server's refusal is called."""

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vococache.errors import VideoError
from vococache.workers.video.source import content_hash, local_video, stat_source

DATA = b"a video\n" * 1000


class Server(ThreadingHTTPServer):
    """Serves `DATA` with `headers` at every path but those that are numbers: these are the status."""

    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        name = self.path.strip("/").partition(".")[0]
        if name.isdigit():
            self.send_error(int(name))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        for header, value in self.server.headers.items():
            self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(DATA)

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


def test_it_is_copied(server: Server) -> None:
    with local_video(url(server), 1 << 20) as local, open(local.path, "rb") as file:  # noqa: PTH123 (a descriptor's)
        assert file.read() == DATA
        assert local.content_hash == content_hash(url(server))
