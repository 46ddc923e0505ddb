"""What live sources cost: from a frame's arrival to its answer, CPU, memory, bytes, and catching up.

python benchmarks/live.py [--seconds 60] [--sources 8] [--only latency,capacity,memory,catch-up]

All of it takes some 9 minutes, and hardly more than 20 on a busy machine: nothing is waited for without a bound.

Sources are H.264 clips, 640 x 360, 25 frames a second, served over HTTP by a process of their own in real time and
sampled once a second with the embedded model; the hour of memory is a synthetic stream at 20 times its speed.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from common import figure, report

from vococache.pipeline.live.parts import newest_first
from vococache.pipeline.live.sources import WatchSource
from vococache.pipeline.live.watch import Stored, Watch, open_watch
from vococache.workers.compressor import Compressor

RATE, WIDTH, HEIGHT = 25, 640, 360
LATENCY = 5.0  # the default
SPEED = 20
PATIENCE = 3  # times as long as something should take, after which what there is by then is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument("--only", default="latency,capacity,memory,catch-up")
    options = parser.parse_args()
    wanted, rows, result = options.only.split(","), [], dict[str, Any](seconds=options.seconds)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.ts", options.seconds)
        if "latency" in wanted:
            result["latency"] = latency(Path(folder), clip, options.seconds)
            for name, seconds in result["latency"].items():
                rows.append([f"from arrival to askable, {name}", f"{seconds:.2f} s"])
        if "capacity" in wanted:
            found = result["capacity"] = capacity(Path(folder), clip, options.seconds, options.sources)
            rows += [
                ["CPU seconds a source-hour", found["cpu_s"]],
                ["the same, bare decode + compress", found["bare_cpu_s"]],
                ["sources that two cores carry, by that", found["carried"]],
                [f"stride after {options.seconds} s of {options.sources} sources", found["stride"]],
            ]
            ratios["live CPU against bare"] = found["bare_cpu_s"] / found["cpu_s"]
        if "memory" in wanted:
            found = result["memory"] = memory(Path(folder))
            rows += [
                ["memory, all processes, after 10 minutes of stream", f"{found['early_mib']} MiB"],
                [f"after {found['minutes']}, of {found['kept']:.0%} of the frames", f"{found['late_mib']} MiB"],
                ["bytes an hour at a frame a second", f"{found['hour_bytes']:,}"],
                ["of these caches", f"{found['hour_cache_bytes']:,}"],
            ]
        if "catch-up" in wanted:
            found = result["catch_up"] = catch_up(Path(folder), clip, options.seconds)
            rows.append(["catching up with a file, seconds of stream a second", found["rate"]])
    report("live", rows, result, ratios)


def make_clip(path: Path, seconds: int) -> Path:
    """A moving picture of `seconds`, a keyframe each second."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 255, (HEIGHT, 2 * WIDTH, 3), np.uint8)
    ground = np.repeat(np.repeat(ground[::8, ::8], 8, 0), 8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", RATE
        for number in range(seconds * RATE):
            left = 3 * number % WIDTH
            picture = np.ascontiguousarray(ground[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def serve_paced(path: Path, seconds: float, port: Any) -> None:
    """Serve a clip's bytes over HTTP, evenly over its length, to whoever connects. Runs in a process of its own."""
    data = path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            began, place, step = time.monotonic(), 0, 188 * 7
            while place < len(data):
                time.sleep(0.04)
                due = int(len(data) * min(1.0, (time.monotonic() - began) / seconds)) // step * step
                if time.monotonic() - began >= seconds:
                    due = len(data)
                if due > place:
                    self.wfile.write(data[place:due])
                    place = due
            time.sleep(3600)  # a source that says no more, until it is left

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # whoever leaves, leaves
    port.value = server.server_port
    server.serve_forever()


@contextmanager
def served(path: Path, seconds: float) -> Iterator[str]:
    port = multiprocessing.Value("i", 0)
    child = multiprocessing.Process(target=serve_paced, args=(path, seconds, port), daemon=True)
    child.start()
    while not port.value:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port.value}/clip.ts"
    finally:
        child.terminate()
        child.join()


@contextmanager
def watching(store: Path, sources: list[WatchSource], stored: list[Stored], **options: Any) -> Iterator[Watch]:
    watch = open_watch(
        sources, str(store), Compressor(model="synthetic"), device="cpu", tell=lambda _: None,
        say=lambda source, line: print(f"{source}: {line}", file=sys.stderr), on_stored=stored.append, **options,
    )  # fmt: skip
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()


def latency(folder: Path, clip: Path, seconds: int) -> dict[str, float]:
    """Seconds from a frame's arrival until it can be asked about, of one source."""
    found: dict[str, float] = {}
    for longest in (LATENCY, 2.0, 1.0):
        stored: list[Stored] = []
        with served(clip, seconds) as url:
            source = [WatchSource(id="one", source=url, fps=1.0)]
            with watching(folder / f"latency-{longest:g}", source, stored, latency=longest):
                time.sleep(seconds)
        waited = sorted(second for each in stored for second in each.waited)
        found |= {
            f"--latency {longest:g}, median": round(statistics.median(waited), 3),
            f"--latency {longest:g}, 99th of a hundred": round(waited[int(0.99 * (len(waited) - 1))], 3),
        }
        figure("latency", **found)
    return found


def capacity(folder: Path, clip: Path, seconds: int, sources: int) -> dict[str, float]:
    """CPU seconds of a source-hour: of a watch of many sources, and of bare loops over the same frames."""
    stored: list[Stored] = []
    with served(clip, seconds) as url:
        named = [WatchSource(id=f"s{number}", source=url, fps=1.0) for number in range(sources)]
        with watching(folder / "capacity", named, stored) as watch:
            deadline = time.monotonic() + PATIENCE * seconds
            while not all(feed.frames for feed in watch.feeds) and time.monotonic() < deadline:
                time.sleep(0.1)  # until Python and the libraries have been loaded
            before, began = tree_cpu(), time.monotonic()
            first = sum(feed.frames for feed in watch.feeds)
            time.sleep(seconds - 12)
            cpu, wall = tree_cpu() - before, time.monotonic() - began
            frames = sum(feed.frames for feed in watch.feeds) - first
            stride = max(feed.stride for feed in watch.feeds)
    hours = frames / 3600  # of sources, at a frame a second
    bare = bare_cpu(clip) / seconds * 3600
    return {
        "cpu_s": round(cpu / hours, 1), "bare_cpu_s": round(bare, 1), "carried": round(2 * 3600 / (cpu / hours), 1),
        "stride": stride, "sources": sources, "frames": frames, "wall_s": round(wall, 1),
    }  # fmt: skip


def tree_cpu() -> float:
    """CPU seconds of this process and its decoder children, those of servers left out."""
    own = psutil.Process()
    total = sum(own.cpu_times()[:2])
    for child in own.children(recursive=True):
        if "vococache.workers.video.child" in " ".join(child.cmdline()):
            total += sum(child.cpu_times()[:2])
    return float(total)


BARE = """
import sys, resource, av, numpy as np, torch
from vococache.model import load_model
from vococache.workers.caches import compress_frames
torch.set_num_threads(1)
model = load_model("synthetic", device="cpu")
geometry = model.config.geometry
compress_frames(model, np.zeros((5, 1, geometry.size, geometry.size, 3), np.uint8), 64, "float16")
def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
before = cpu()
taken = []
with av.open(sys.argv[1]) as container:
    container.streams.video[0].codec_context.thread_count = 1
    for number, frame in enumerate(container.decode(video=0)):
        if number % 25 == 0:
            taken.append(geometry.apply(frame.to_ndarray(format="rgb24")))
            if len(taken) == 5:
                compress_frames(model, np.stack(taken)[:, None], 64, "float16")
                taken = []
print(cpu() - before)
"""


def bare_cpu(clip: Path) -> float:
    """CPU seconds to decode a clip, and to compress a frame a second, five at once, in one bare loop."""
    done = subprocess.run([sys.executable, "-c", BARE, str(clip)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def memory(folder: Path) -> dict[str, Any]:
    """Memory while an hour of a synthetic stream is watched at 20 times its speed, and what the store holds of it."""
    stored: list[Stored] = []
    port = multiprocessing.Value("i", 0)
    child = multiprocessing.Process(target=serve_synthetic, args=(port,), daemon=True)
    child.start()
    while not port.value:
        time.sleep(0.05)
    named = [WatchSource(id="hour", source=f"http://127.0.0.1:{port.value}/live.ts", fps=1.0)]
    marks: dict[int, float] = {}
    deadline = time.monotonic() + PATIENCE * 3600 / SPEED
    with watching(folder / "memory", named, stored) as watch:
        while 60 not in marks and time.monotonic() < deadline:
            time.sleep(0.1)
            minute = int((stored[-1].edge - stored[0].edge) / 60) if stored else 0  # of the stream
            if minute // 10 > len(marks):
                marks[10 * (len(marks) + 1)] = tree_memory()
                figure("memory", minute=10 * len(marks), mib=round([*marks.values()][-1]))
        marks = marks or {minute: tree_memory()}
        store, frames = watch.store, watch.feeds[0].frames
    child.terminate()
    child.join()
    infos = [part.info for part in newest_first(store, "hour")]
    segments = sum(info.segments for info in infos)
    return {
        "early_mib": round(next(iter(marks.values()))), "late_mib": round([*marks.values()][-1]), "minutes": max(marks),
        "kept": segments / frames, "hour_bytes": round(3600 * sum(info.bytes for info in infos) / segments),
        "hour_cache_bytes": 3600 * store.header.stored_segment_bytes,
    }  # fmt: skip


def serve_synthetic(port: Any) -> None:
    from vococache.pipeline.synthetic.stream import serving_scenes

    with serving_scenes(0, speed=SPEED) as url:
        port.value = int(url.split(":")[2].split("/")[0])
        time.sleep(3600)


def tree_memory() -> float:
    """MiB of this process and its decoder children, without the libraries' own pages, which others share."""
    own = psutil.Process()
    mine = [
        each for each in own.children(recursive=True) if "vococache.workers.video.child" in " ".join(each.cmdline())
    ]
    infos = [each.memory_info() for each in (own, *mine)]
    return sum(float(info.rss - info.shared) for info in infos) / (1 << 20)


def catch_up(folder: Path, clip: Path, seconds: int) -> dict[str, float]:
    """How fast a file that is there already is watched up to its end, from its first stored chunk on."""
    stored: list[Stored] = []
    longer = folder / "longer.ts"
    longer.write_bytes(clip.read_bytes() * 5)  # its clock jumps, so it has five parts
    times: list[float] = []
    deadline = time.monotonic() + PATIENCE * seconds
    with watching(folder / "catch-up", [WatchSource(id="file", source=str(longer), fps=1.0)], stored):
        while sum(each.segments for each in stored) < 5 * seconds - 5 and time.monotonic() < deadline:
            time.sleep(0.05)
            times += [time.monotonic()] if stored and not times else []
        wall = time.monotonic() - times[0]
    return {"rate": round((sum(each.segments for each in stored) - stored[0].segments) / wall, 1)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
