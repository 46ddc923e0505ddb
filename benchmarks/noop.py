"""What an ingest costs that has nothing to do: CPU seconds, whole process tree, by number of local videos.

python benchmarks/noop.py [VIDEOS]: by default 20,000, and for comparison one.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report

from vococache.pipeline.tables import counted
from vococache.storage import ChunkReceipt, Intent, documents, open_store
from vococache.storage.format import DOCUMENT, TRAILER
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor

ROUNDS = 3


def main(videos: int) -> None:
    figures: dict[str, dict[str, float]] = {}
    for count in (1, videos):
        with tempfile.TemporaryDirectory() as folder:
            make_up_to_date(Path(folder), count)
            found = [ingest_seconds(Path(folder), count) for _ in range(ROUNDS)]
        cpu, wall = map(min, zip(*found, strict=True))
        figures[str(count)] = {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}
    rows = [
        [f"{int(count):,} videos up to date", f"{f['cpu_s']} s CPU", f"{f['wall_s']} s"] for count, f in figures.items()
    ]
    report("noop", rows, {"rounds": ROUNDS, "runs": figures})


def make_up_to_date(folder: Path, count: int) -> None:
    """Files, and the store of an ingest of them at one frame a second: its documents alone, more is not looked at."""
    header = store_header(Compressor(model="synthetic").load("cpu"))
    store = open_store(folder / "store", "a", header=header)
    (folder / "videos").mkdir()
    receipt = ChunkReceipt(index=0, length=10 * header.segment_bytes + TRAILER, crc32c=1, vectors_crc32c=1)
    for number in range(count):
        video = f"video_{number:06}"
        path = folder / "videos" / f"{video}.mp4"
        path.write_bytes(b"x")
        intent = Intent(
            source=str(path), content_hash="a" * 64, size=1, mtime_ns=path.stat().st_mtime_ns, sampling={"fps": 1.0},
            decoder="decord", chunk_segments=10,
        )  # fmt: skip
        stamps = {
            "kv/zarr.json": documents.Stamp(1200, 1),
            "index/zarr.json": documents.Stamp(900, 1),
            "timestamps/c.0.0": documents.Stamp(80 * header.frames_per_segment, 1),
            "timestamps/zarr.json": documents.Stamp(800, 1),
        }
        fields = documents.readable_fields(header, "complete", intent, 10, 10.0, [receipt], stamps, {})
        place = folder / "store" / "videos" / video
        place.mkdir()
        (place / DOCUMENT).write_bytes(documents.seal_video(store.identity, video, *fields))


def ingest_seconds(folder: Path, count: int) -> tuple[float, float]:
    """CPU and wall seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from vococache.pipeline.cli import main; main()",
        "ingest",
        str(folder / "videos"),
    ]
    done = subprocess.run(
        [*command, "--store", str(folder / "store"), "--fps", "1"], check=True, stdout=subprocess.PIPE, text=True
    )
    wall = time.perf_counter() - started
    assert f"nothing to do: {counted(count, 'video')}" in done.stdout, done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
