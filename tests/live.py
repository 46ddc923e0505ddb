"""Real live sources on loopback: servers that send numbered frames as cameras and broadcasters do."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from tests.clips import make_clip, picture, read_frame_number

from vococache.model.images import FrameGeometry
from vococache.workers.video.live import LiveFrame

SIZE = (96, 64)
GEOMETRY = FrameGeometry(size=96)
NO_B = {"x264-params": "repeat-headers=1:bframes=0:scenecut=0"}
TS = "video/mp2t"


def make_ts(path: Path, frames: int, *, first: int = 0, start: float = 0.0, size: tuple[int, int] = SIZE) -> bytes:
    """A transport stream of numbered frames, ten a second, a keyframe every ten."""
    options = NO_B | {"preset": "ultrafast"}
    make_clip(path, frames=frames, fps=10, gop=10, first=first, start=start, size=size, options=options)
    return path.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """Calls the server's `answer` with itself."""

    def do_GET(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.answer(self)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.do_GET()

    def reply(self, kind: str, data: bytes | None = None, **headers: str) -> None:
        """A head, and a body where there is one; without, the connection's end is the body's."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if data is not None:
            self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if data is not None:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[Handler], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(answer: Callable[[Handler], None]) -> Iterator[Server]:
    """A server whose every request `answer` answers."""
    server = Server(("127.0.0.1", 0), Handler)
    server.answer = answer
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sent(data: bytes, seconds: float = 0.0) -> Callable[[Handler], None]:
    """An answer: a transport stream, at once or spread over so many seconds; then the connection is cut."""

    def answer(request: Handler) -> None:
        request.reply(TS)
        pieces = max(1, round(10 * seconds))
        size = -(-len(data) // pieces // 188) * 188
        for place in range(0, len(data), size):
            request.wfile.write(data[place : place + size])
            if seconds:
                time.sleep(seconds / pieces)

    return answer


def jpegs(frames: int, rate: float) -> Callable[[Handler], None]:
    """An answer: pictures one after the other, as web cameras send them."""

    def answer(request: Handler) -> None:
        request.reply("multipart/x-mixed-replace; boundary=frame")
        for number in range(frames):
            data = io.BytesIO()
            Image.fromarray(picture(number, *SIZE)).save(data, "JPEG", quality=95)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data.getvalue())}\r\n\r\n"
            request.wfile.write(head.encode() + data.getvalue() + b"\r\n")
            time.sleep(1 / rate)

    return answer


class Playlist:
    """An answer: HLS of segments of two seconds, of which one more is there every `step` seconds."""

    def __init__(self, folder: Path, count: int, step: float, *, ends: bool = True) -> None:
        self.data = [
            make_ts(folder / f"s{number}.ts", 20, first=20 * number, start=10 + 2.0 * number) for number in range(count)
        ]
        self.step, self.ends = step, ends
        self.began: float | None = None  # with the first request
        self.base = ""  # of the segments' URLs
        self.is_out = False

    def __call__(self, request: Handler) -> None:
        if self.is_out:
            request.send_error(503)
            return
        self.began = self.began or time.monotonic()
        there = min(len(self.data), 3 + int((time.monotonic() - self.began) / self.step))
        if request.path.endswith(".m3u8"):
            first = max(0, there - 3)
            lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
            for number in range(first, there):
                lines += ["#EXTINF:2.0,", f"{self.base}/s{number}.ts"]
            lines += ["#EXT-X-ENDLIST"] if self.ends and there == len(self.data) else []
            request.reply("application/vnd.apple.mpegurl", "\n".join([*lines, ""]).encode())
        else:
            request.reply(TS, self.data[int(request.path.strip("/s").removesuffix(".t").partition(".")[0])])


def send_udp(data: bytes, port: int, seconds: float) -> threading.Thread:
    """Send a transport stream in datagrams, evenly over so many seconds."""

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            size = 7 * 188
            pause = seconds * size / len(data)
            for place in range(0, len(data), size):
                out.sendto(data[place : place + size], ("127.0.0.1", port))
                time.sleep(pause)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def number(frame: LiveFrame, size: tuple[int, int] = SIZE) -> int:
    return read_frame_number(frame.pixels, size)


def check_even(frames: list[LiveFrame], rate: float = 10.0) -> None:
    """None lost, none twice, none shifted: moments run as the numbers do, to the millisecond."""
    numbers = [number(frame) for frame in frames]
    assert numbers == sorted(set(numbers))
    for frame, count in zip(frames, numbers, strict=True):
        assert abs(frame.moment - frames[0].moment - (count - numbers[0]) / rate) < 1e-3
