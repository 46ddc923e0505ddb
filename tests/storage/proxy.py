"""A proxy in front of an S3 server, in this process, that delays, drops, throttles and truncates."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["none", "delay", "drop", "throttle", "truncate"]
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Proxy(ThreadingHTTPServer):
    """Forwards to `target`; of each request it chooses a fault by `odds`, from a seed."""

    daemon_threads = True

    def __init__(self, target: str, odds: dict[Fault, float], seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.odds = urlsplit(target), odds
        self.random, self.lock = Random(seed), threading.Lock()
        self.seen: Counter[Fault] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def choose(self) -> Fault:
        """The fault of the next request."""
        with self.lock:
            roll = self.random.random()
            for fault, odds in self.odds.items():
                roll -= odds
                if roll < 0:
                    self.seen[fault] += 1
                    return fault
            self.seen["none"] += 1
            return "none"


@contextmanager
def proxy(target: str, odds: dict[Fault, float], seed: int = 0) -> Iterator[Proxy]:
    """A proxy that serves while the block runs."""
    server = Proxy(target, odds, seed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        body = self._body()
        fault = self.server.choose()
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "throttle":
            self._reply(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        if fault == "delay":
            time.sleep(0.2)
        upstream = http.client.HTTPConnection(self.server.target.hostname or "", self.server.target.port, timeout=60)
        kept = {key: value for key, value in self.headers.items() if key.lower() not in HOP}
        upstream.request(self.command, self.path, body=body, headers=kept)
        answer = upstream.getresponse()
        data = answer.read()
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in HOP]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._reply(answer.status, headers, data, cut=fault == "truncate" and len(data) > 1, length=length)
        upstream.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return data

    def _reply(
        self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
