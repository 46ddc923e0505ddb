"""The parent's side of a live stream: a decoder child that connects, again and again, and sends what it keeps."""

import time
from collections.abc import Iterator
from dataclasses import asdict

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.live import LiveFrame, Resume
from vococache.workers.video.process import DecoderProcess, Limits

# A child tells at least once in so many seconds that it lives, unless its source hangs in native code.
TIMEOUT_SECONDS = 60.0


class LiveDecoder:
    """Frames of one source, decoded in a child process of its own. A context manager.

    `source`: a URL, a path, or "-" for standard input, whose descriptor `pipe` is.
    """

    def __init__(
        self, source: str, fps: float, geometry: FrameGeometry, *, limits: Limits | None = None, pipe: int | None = None
    ) -> None:
        self.source, self.fps, self.geometry, self.pipe = source, fps, geometry, pipe
        self.is_over = False  # has the source itself come to its end?
        self._process = DecoderProcess(
            timeout_s=TIMEOUT_SECONDS, limits=limits, inherited=() if pipe is None else (pipe,)
        )

    def __enter__(self) -> "LiveDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        return self._process.pid

    def connect(self, *, floor: float = 0.0, resume: Resume | None = None) -> Iterator[LiveFrame | None]:
        """The frames of one connection until it ends; None now and then, when nothing came for a moment.

        `floor`: no frame is of an earlier moment. Raises `VideoError` where there is no connection, or it breaks.
        """
        self._process.request(
            {
                "do": "watch", "source": self.source, "fps": self.fps, "geometry": self.geometry.to_dict(),
                "floor": floor, "pipe": self.pipe, "resume": None if resume is None else asdict(resume),
            }
        )  # fmt: skip
        heard = time.monotonic()
        while True:
            if not self._process.is_heard(0.25):
                if time.monotonic() - heard > TIMEOUT_SECONDS:
                    self._process.stop()
                    raise VideoError(f"its decoder made no progress for {TIMEOUT_SECONDS:g} s")
                yield None
                continue
            heard = time.monotonic()
            reply = self._process.receive("the decoder", alive=True)
            if "alive" in reply:
                yield None
            elif "over" in reply:
                self.is_over = reply["over"]
                return
            else:
                yield LiveFrame(
                    reply["moment"], reply["arrived"], reply["number"], reply["begins"], reply["pixels"]
                )  # fmt: skip
