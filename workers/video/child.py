"""The program of the decoder child: requests come in on stdin, frames go out on stdout.

decord can hang, crash or eat memory in native code, so it runs here, where the parent can end it. A request is
one line of JSON; a reply is a length (4 bytes), a JSON header and, for a frame, its bytes. A full pipe stops us:
that is the backpressure. Loads neither torch nor Ray.
"""

import ctypes
import json
import os
import queue
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.parent import die_with
from vococache.workers.video.container import Video, measure
from vococache.workers.video.decoders import decord_frames, fitted, pyav_frames
from vococache.workers.video.live import LiveStream, Resume
from vococache.workers.video.sampling import FrameSampling, Targets

BEAT_SECONDS = 1.0
_watched: list[LiveStream] = []  # at most one: a child watches one source, over all its connections


def main() -> None:
    """Serve requests until the parent closes our stdin, or dies."""
    parent, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    die_with(parent)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # a library that prints must not print into the replies
        set_limits(limits)
        inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=read_requests, args=(inbox,), daemon=True).start()
        out.write(b"ready\n")
        out.flush()
        while True:
            serve(inbox.get(), out, limits)
            give_back_memory()


def serve(request: dict[str, Any], out: BinaryIO, limits: dict[str, int]) -> None:
    """Answer one request; whatever goes wrong with its file is an answer too."""
    allow_cpu(limits["cpu_s"])
    try:
        if request["do"] == "probe":
            send(out, {"probe": probe(request["path"], limits["max_pixels"])})
        elif request["do"] == "measure":
            send(out, {"measured": measured(request["path"], limits["max_pixels"], beater(out))})
        elif request["do"] == "watch":
            watch(request, out, limits)
        else:
            decode(request, out, limits["max_pixels"])
    except VideoError as error:
        send(out, {"error": str(error)})
    except MemoryError:
        send(out, {"error": f"needs more than {limits['memory'] >> 20} MiB of memory"})
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:  # an unforeseen file must cost that file alone
        send(out, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})


def probe(path: str, max_pixels: int) -> dict[str, Any]:
    """What the file's headers say."""
    with Video(path, max_pixels=max_pixels) as video:
        duration, rate = video.claimed_duration, video.stream.average_rate
        frames = video.stream.frames or (round(duration * rate) if duration and rate else None)
        context = video.context
        return {
            "duration": duration,
            "frames": frames,
            "width": context.width,
            "height": context.height,
            "codec": context.codec.canonical_name,
        }


def measured(path: str, max_pixels: int, beat: Callable[[], None]) -> float:
    """A file's duration: what it says of itself where it lists its frames, or else what its packets say."""
    with Video(path, max_pixels=max_pixels) as video:
        listed = video.listed_duration
    return listed or measure(path, max_pixels=max_pixels, beat=beat)


def decode(request: dict[str, Any], out: BinaryIO, max_pixels: int) -> None:
    """Send the chosen frames of a file, then its real duration."""
    path, sampling = request["path"], FrameSampling.from_dict(request["sampling"])
    beat = beater(out)
    duration = None
    if sampling.num_frames is not None:
        duration = measure(path, max_pixels=max_pixels, beat=beat)
    with Video(path, max_pixels=max_pixels, beat=beat) as video:
        expected = sampling.expected_frames(duration if duration is not None else video.claimed_duration)
        send(out, {"expected_frames": expected})
        decoded = {"decord": decord_frames, "pyav": pyav_frames}[request["decoder"]](video, Targets(sampling, duration))
        for moment, count, picture in fitted(decoded, FrameGeometry.from_dict(request["geometry"])):
            send(out, {"time": moment, "count": count, "shape": picture.shape}, picture.data.cast("B"))
        send(out, {"findings": video.findings(request["max_damage"]), "duration": video.duration()})


def watch(request: dict[str, Any], out: BinaryIO, limits: dict[str, int]) -> None:
    """Send the chosen frames of a live stream while one connection lasts; the next request connects again."""
    if not _watched:
        _watched.append(
            LiveStream(
                request["source"],
                request["fps"],
                FrameGeometry.from_dict(request["geometry"]),
                limits["max_pixels"],
                beater(out),
                request["pipe"],
            )
        )
    resume = request["resume"]
    for frame in _watched[0].connect(request["floor"], None if resume is None else Resume(**resume)):
        allow_cpu(limits["cpu_s"])  # to each frame, as the stream has no end
        header = {"moment": frame.moment, "arrived": frame.arrived, "number": frame.number, "begins": frame.begins}
        send(out, header | {"shape": frame.pixels.shape}, frame.pixels.data.cast("B"))
    send(out, {"duration": None, "over": _watched[0].is_over})


def send(out: BinaryIO, header: dict[str, Any], payload: memoryview | bytes = b"") -> None:
    """One reply; blocks while the parent is busy."""
    text = json.dumps(header).encode()
    out.write(struct.pack(">I", len(text)) + text)
    out.write(payload)
    out.flush()


def beater(out: BinaryIO) -> Callable[[], None]:
    """A function that sends a sign of life, at most once a second."""
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            send(out, {"alive": True})
            last = time.monotonic()

    return beat


def read_requests(inbox: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass requests on. When stdin ends, the parent is gone, and so are we, whatever native code is doing."""
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(0)


def set_limits(limits: dict[str, int]) -> None:
    """Bound what a hostile file can take: memory, open files, log, core dumps."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["log_bytes"]),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full log is no reason to die


def give_back_memory() -> None:
    """Let the C library return what a video took: thousands of odd files would leave its heap in pieces."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def allow_cpu(seconds: int) -> None:
    """Let the next request use so much CPU time; beyond it the system kills us."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
