"""The parent's side of decoding: one long-lived child process, its deadline, and the frames that it sends."""

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vococache.errors import VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.video.damage import MAX_DAMAGE
from vococache.workers.video.sampling import FrameSampling

DecoderName = Literal["decord", "pyav"]
READY = b"ready\n"  # the child's first word
PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
TIMEOUT_SECONDS = 60.0
START_SECONDS = 120.0  # for Python and the libraries to load, on a machine that is busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the child may take. `cpu_s` is CPU seconds for one video, `memory` bytes of address space.

    `max_damage`: the share of a broadcast that may be lost before it counts as broken.
    """

    max_pixels: int = 8192 * 8192
    memory: int = 16 << 30
    cpu_s: int = 6 * 3600
    open_files: int = 64
    log_bytes: int = 16 << 20
    max_damage: float = MAX_DAMAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a file's headers say; `duration` (seconds) and `frames` are claims, None where there is none."""

    duration: float | None
    frames: int | None
    width: int
    height: int
    codec: str


def available_decoders() -> tuple[DecoderName, ...]:
    """Decoders in the order in which they are tried. decord has no wheels for some platforms."""
    return ("decord", "pyav") if find_spec("decord") is not None else ("pyav",)


class DecoderProcess:
    """Decodes files in a child process, which is started when first needed and again after it died.

    No sign of life for `timeout_s` seconds while we wait ends the child and costs the video at hand, no more.
    One video is decoded at a time; opening the next one abandons it. A context manager.
    """

    def __init__(
        self, *, timeout_s: float = TIMEOUT_SECONDS, limits: Limits | None = None, inherited: Sequence[int] = ()
    ) -> None:
        """`inherited`: descriptors that the child may read."""
        self.timeout_s = timeout_s
        self.limits = limits or Limits()
        self.inherited = inherited
        self._child: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed with the decoder)
        self._busy = False

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(
        self, path: str, sampling: FrameSampling, geometry: FrameGeometry, decoder: DecoderName | None = None
    ) -> "DecodedFrames":
        """The chosen frames of a local file, as they are decoded. Raises `VideoError`, as iterating does.

        Without `decoder`: by the first that is there.
        """
        decoder = decoder or available_decoders()[0]
        request = {"do": "decode", "path": path, "decoder": decoder, "max_damage": self.limits.max_damage}
        self.request(request | {"sampling": sampling.to_dict(), "geometry": geometry.to_dict()})
        return DecodedFrames(self, decoder, self.receive(decoder)["expected_frames"])

    def probe(self, path: str) -> Probe:
        """What the headers of a local file say. Raises `VideoError`."""
        self.request({"do": "probe", "path": path})
        reply = self.receive("pyav")
        self._busy = False
        return Probe(**reply["probe"])

    def measure(self, path: str) -> float:
        """The duration of a local file in seconds, as decoding it would find. Raises `VideoError`.

        Where the file has no index of all its frames, their packets are read.
        """
        self.request({"do": "measure", "path": path})
        reply = self.receive("pyav")
        self._busy = False
        return float(reply["measured"])

    def close(self) -> None:
        """End the child. The decoder may be used again afterwards, except for its log."""
        self.stop()
        self._log.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def receive(self, decoder: str, *, alive: bool = False) -> dict[str, Any]:
        """The child's next reply; a frame's pixels under "pixels". Raises `VideoError` if there is none.

        `alive`: also a mere sign of life.
        """
        try:
            while True:
                reply: dict[str, Any] = json.loads(self._read(*struct.unpack(">I", self._read(4))))
                if "shape" in reply:
                    reply["pixels"] = np.frombuffer(self._read(int(np.prod(reply["shape"]))), np.uint8).reshape(
                        reply["shape"]
                    )
                if "alive" not in reply or alive:
                    break
        except TimeoutError:
            self.stop()
            raise VideoError(f"{decoder} made no progress for {self.timeout_s:g} s") from None
        except EOFError:
            raise VideoError(self._obituary(decoder)) from None
        if "error" in reply:
            self._busy = False
            raise VideoError(reply["error"])
        if "duration" in reply:
            self._busy = False
        return reply

    def is_heard(self, seconds: float) -> bool:
        """Does the child say something, or end, within so many seconds?"""
        assert self._child is not None
        assert self._child.stdout is not None
        return bool(select.select([self._child.stdout], [], [], seconds)[0])

    def stop(self) -> None:
        """Kill the child, with whatever it started."""
        self._busy = False
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._child = None

    def request(self, request: dict[str, Any]) -> None:
        """Ask the child for something; what it was at is abandoned. `receive` has the replies."""
        if self._busy or self.pid is None:
            self.stop()
            self._start()
        os.ftruncate(self._log.fileno(), 0)
        self._busy = True
        assert self._child is not None
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # its death is noticed, and explained, when we wait for the reply
            self._child.stdin.write(json.dumps(request).encode() + b"\n")

    def _start(self) -> None:
        """Start the child and wait until it is ready. Raises `RuntimeError`: no video is to blame."""
        home = str(Path(__file__).parents[3])  # the folder of the package
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        child = self._child = subprocess.Popen(
            # -P: a module of the user's working directory must not shadow ours
            [
                sys.executable,
                "-P",
                "-m",
                "vococache.workers.video.child",
                str(os.getpid()),
                json.dumps(asdict(self.limits)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            pass_fds=self.inherited,
            start_new_session=True,
        )
        if sys.platform == "linux" and child.stdout is not None:
            with suppress(OSError):
                fcntl.fcntl(child.stdout, _F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self._read(len(READY), START_SECONDS)
        except (TimeoutError, EOFError) as error:
            reason = self._obituary("the decoder child") if isinstance(error, EOFError) else "timed out"
            self.stop()
            raise RuntimeError(f"the decoder child does not start: {reason}") from None

    def _read(self, size: int, timeout_s: float | None = None) -> bytearray:
        """Exactly `size` bytes. Raises `TimeoutError` when the child is silent, `EOFError` when it is gone."""
        assert self._child is not None
        assert self._child.stdout is not None
        pipe: Any = self._child.stdout
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        data = bytearray(size)
        view = memoryview(data)
        while view:
            if not poll.poll(1000 * (self.timeout_s if timeout_s is None else timeout_s)):
                raise TimeoutError
            count = pipe.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data

    def _obituary(self, decoder: str) -> str:
        """Why the child ended: the signal, and the last line of its log."""
        code = self._child.wait() if self._child is not None else 0
        self.stop()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{decoder} {how}" + (f": {lines[-1][:200]}" if lines else "")


class DecodedFrames(Iterator[tuple[float, Frame]]):
    """The chosen frames of one video: (time in seconds, pixels uint8 [size, size, 3]).

    `expected_frames`: how many there will be, by the container's claim; None if unknown. `duration`: the real one in
    seconds, and `findings`, its damage and discontinuities, are known after the last frame.
    """

    def __init__(self, source: DecoderProcess, decoder: DecoderName, expected_frames: int | None) -> None:
        self.decoder = decoder
        self.expected_frames = expected_frames
        self.duration: float | None = None
        self.findings: dict[str, Any] = {}
        self._source = source
        self._again: list[tuple[float, Frame]] = []

    def __next__(self) -> tuple[float, Frame]:
        if self._again:
            return self._again.pop()
        if self.duration is not None:
            raise StopIteration
        reply = self._source.receive(self.decoder)
        if "duration" in reply:
            self.duration, self.findings = reply["duration"], reply["findings"]
            raise StopIteration
        self._again = [(reply["time"], reply["pixels"])] * (reply["count"] - 1)
        return reply["time"], reply["pixels"]
