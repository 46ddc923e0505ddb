"""Synthetic scenes one after the other as a live stream: MPEG-TS over HTTP, on this machine alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from vococache.pipeline.synthetic.render import FPS, SIDE, frames
from vococache.pipeline.synthetic.scene import SECONDS, Scene, make_scene

QUALITY = "20"  # constant rate factor


def scene_of(seed: int, number: int) -> Scene:
    """The scene that a stream shows from second `number` * `SECONDS` on."""
    return make_scene(f"live-{seed} {number}")


@contextmanager
def serving_scenes(seed: int, *, speed: float = 1.0, port: int = 0) -> Iterator[str]:
    """The URL of a stream, which begins anew with each connection. `speed`: times that of the clock."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.seed, server.speed = seed, speed
    thread = threading.Thread(target=server.serve_forever, name="stream", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live.ts"
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seed: int
    speed: float

    def __init__(self, *where: Any) -> None:
        self.ended = threading.Event()
        super().__init__(*where)

    def handle_error(self, *_: object) -> None:
        """A client that leaves is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Send scenes, each frame when it is due, until the client leaves."""
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        send_scenes(self.wfile, self.server.seed, speed=self.server.speed, ended=self.server.ended)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def send_scenes(
    target: Any, seed: int, *, speed: float = 1.0, scenes: int | None = None, ended: threading.Event | None = None
) -> None:
    """Write a stream into `target`, so many scenes or without end. `speed` 0: as fast as it goes."""
    import av

    options = {"preset": "ultrafast", "tune": "zerolatency", "threads": "1", "crf": QUALITY}
    began = time.monotonic()
    with av.open(_Unseekable(target), "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.gop_size = "yuv420p", FPS
        each = int(SECONDS * FPS)
        for number in count() if scenes is None else range(scenes):
            pictures = frames(scene_of(seed, number), [place / FPS for place in range(each)], SIDE)
            for place, pixels in enumerate(pictures):
                index = number * each + place
                if speed and (wait := began + index / FPS / speed - time.monotonic()) > 0:
                    time.sleep(wait)
                if ended is not None and ended.is_set():
                    return
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class _Unseekable:
    """What PyAV writes to, of a socket that it would otherwise seek in."""

    def __init__(self, target: Any) -> None:
        self.write = target.write
