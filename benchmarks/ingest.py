"""CPU seconds of an ingest, whole process tree, over the bare parts: decode + compress + Zarr write.

`python benchmarks/ingest.py [CLIPS]`: 200 H.264 clips of 10 s at 640 x 360, one frame a second. Ray's start and
stop cost the same for one clip and for many, so they are measured with one clip and told apart.
"""

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import zarr
from common import report

from vococache.workers.caches import to_stored
from vococache.workers.compress import frame_geometry, store_header
from vococache.workers.compressor import Compressor

SECONDS, FPS, WIDTH, HEIGHT = 10, 30, 640, 360
PR_SET_CHILD_SUBREAPER = 36


def main(clips: int) -> None:
    become_subreaper()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = make_clips(root / "clips", clips)
        one = root / "one"
        one.mkdir()
        (one / "first.mp4").symlink_to(paths[0])
        bare = bare_seconds(paths, root / "bare.zarr")
        startup, startup_wall = tree_seconds(one, root / "store-one")
        whole, wall = tree_seconds(root / "clips", root / "store")
    # Of one clip's run, all but that clip's own work is start and stop.
    ours = whole - startup
    floor = sum(bare.values()) * (clips - 1) / clips
    rows = [(f"bare {name}", f"{seconds:.2f} s CPU") for name, seconds in bare.items()]
    rows += [
        ("start and stop", f"{startup:.2f} s CPU", f"{startup_wall:.1f} s wall"),
        (f"ingest of {clips} clips", f"{whole:.2f} s CPU", f"{wall:.1f} s wall"),
        ("ratio without start", f"{ours / floor:.2f}"),
    ]
    figures = {"bare_s": bare, "startup_s": startup, "ingest_s": whole, "wall_s": wall}
    report("ingest", rows, {"clips": clips, **figures}, {"bare parts over ingest": floor / ours})


def become_subreaper() -> None:
    """Inherit orphans: Ray's processes outlive their parent, and only a parent is told their CPU seconds."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl failed")


def make_clips(folder: Path, count: int) -> list[Path]:
    """H.264 clips of moving noise patches; a few are encoded, the rest are copies of those."""
    folder.mkdir()
    paths = [folder / f"clip_{index:04d}.mp4" for index in range(count)]
    for seed, path in enumerate(paths[:4]):
        choose = np.random.default_rng(seed)
        texture = choose.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for index in range(SECONDS * FPS):
                shifted = np.roll(texture, (index, 2 * index), axis=(0, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
            container.mux(stream.encode(None))
    for index, path in enumerate(paths[4:]):
        path.write_bytes(paths[index % 4].read_bytes())
    return paths


def bare_seconds(paths: list[Path], store: Path) -> dict[str, float]:
    """CPU seconds of the three parts in one process, one thread, without any of our machinery."""
    import decord

    torch.set_num_threads(1)
    model = Compressor(model="synthetic").load("cpu")
    header = store_header(model)
    geometry = frame_geometry(header)
    wanted = range(0, SECONDS * FPS, FPS)
    started = time.process_time()
    frames = []
    for path in paths:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames.append(np.stack([geometry.apply(reader[index].asnumpy()) for index in wanted])[:, None])
        reader[len(reader) - 1]  # to the end, as ours must to know that the file is whole
    decoded = time.process_time()
    with torch.inference_mode():
        caches = [to_stored(model.compress(model.pixel_values(each)).data, header.dtype) for each in frames]
    compressed = time.process_time()
    group = zarr.open_group(str(store), mode="w")
    for path, kv in zip(paths, caches, strict=True):
        group.create_array(f"{path.stem}/kv", data=kv, chunks=kv.shape, compressors=None)
    written = time.process_time()
    return {"decode": decoded - started, "compress": compressed - decoded, "write": written - compressed}


def tree_seconds(videos: Path, store: Path) -> tuple[float, float]:
    """CPU seconds of `voco ingest` with all its descendants, and wall seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()", "ingest", str(videos)]
    subprocess.run([*command, "--store", str(store), "--fps", "1"], check=True)
    wall = time.perf_counter() - started
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
