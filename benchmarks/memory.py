"""Peak memory of an ingest of a 2-minute and of a 60-minute video, 336 px, 4 frames a second.

`python benchmarks/memory.py [SHORT_MINUTES LONG_MINUTES]`. Counted is the proportional set size (PSS) of the
whole process tree, which includes the touched part of Ray's object store, each page once.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
from common import report

from vococache.model.images import FrameGeometry
from vococache.model.parts import part_config
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config

FPS, SIZE = 4, 336


def main(short: float, long: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(root / "model")
        rows: list[tuple[str, ...]] = [("minutes", "segments", "peak PSS", "peak without shared", "wall")]
        peaks = {}
        for minutes in (short, long):
            video = root / f"{minutes:g}.mp4"
            make_video(video, minutes)
            peak, private, wall = peak_of_ingest(video, root / "model", root / f"store-{minutes:g}")
            peaks[f"{minutes:g}"] = {"pss_mib": peak / 2**20, "private_mib": private / 2**20, "wall_s": wall}
            segments = f"{minutes * 60 * FPS:.0f}"
            rows.append((f"{minutes:g}", segments, f"{peak >> 20} MiB", f"{private >> 20} MiB", f"{wall:.0f} s"))
    growth = peaks[f"{long:g}"]["pss_mib"] - peaks[f"{short:g}"]["pss_mib"]
    rows.append(("growth", "", f"{growth:.0f} MiB"))
    report("memory", rows, {"peaks": peaks, "growth_mib": growth})


def make_model(folder: Path) -> None:
    """A small random model that is fed frames of 336 px, so that frames have their real size."""
    tokenizer = byte_tokenizer()
    config = small_config(tokenizer)
    vision = part_config(config.vision.to_dict() | {"image_size": SIZE, "patch_size": 56})
    model = random_model(replace(config, vision=vision, geometry=FrameGeometry(size=SIZE)), seed=0)
    model.tokenizer = tokenizer
    save_pretrained(model, folder)


def make_video(path: Path, minutes: float) -> None:
    """A long H.264 video, cheap to encode: a patch that wanders over a still ground."""
    frame = np.full((240, 320, 3), 90, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2 * FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(int(minutes * 60 * 2 * FPS)):
            shown = frame.copy()
            shown[50:90, index % 280 : index % 280 + 40] = (index % 256, 200, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode(None))


def peak_of_ingest(video: Path, model: Path, store: Path) -> tuple[int, int, float]:
    """Peak PSS of the tree in bytes, the same without shared memory, and wall seconds."""
    command = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()", "ingest", str(video)]
    command += ["--store", str(store), "--model", str(model), "--fps", str(FPS)]
    started = time.perf_counter()
    with subprocess.Popen(command) as job:
        root = psutil.Process(job.pid)
        peak = private = 0
        while job.poll() is None:
            total, shared = tree_memory(root)
            peak, private = max(peak, total), max(private, total - shared)
            time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"ingest failed with {job.returncode}")
    return peak, private, time.perf_counter() - started


def tree_memory(root: psutil.Process) -> tuple[int, int]:
    """PSS of a process tree in bytes, and the part of it that is shared memory (Ray's object store)."""
    total = shared = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
        total += sizes.get("Pss", 0)
        shared += sizes.get("Pss_Shmem", 0)
    return total, shared


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:3] or ("2", "60")))
