"""The cache store against raw file I/O, by chunk size and codec pipeline; `ls` of a large store.

python benchmarks/store.py [--quick]
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from common import fill, make_intent, report

from vococache.storage import ChunkReceipt, Store, StoreHeader, documents, open_store
from vococache.storage.format import DOCUMENT, TRAILER, max_chunk_segments
from vococache.storage.index import keys_index

# Vicuna-7B at K = 2: one MiB a segment.
HEADER = StoreHeader(
    fingerprint="0" * 64,
    model="vicuna-size",
    layers=32,
    kv_heads=32,
    tokens=2,
    head_dim=128,
    frames_per_segment=1,
    dtype="float16",
    compute_dtype="float16",
    geometry={},
    prompt={},
    chunk_segments=256,
    micro_batch=8,
    index=keys_index(layers=32, kv_heads=32, tokens=2, head_dim=128),
)
FRAME_BYTES = 3 * 336 * 336
Times = dict[str, list[float]]


def main() -> None:
    quick = "--quick" in sys.argv
    segments, rounds, videos = (64, 3, 10_000) if quick else (256, 9, 100_000)
    kv = np.random.default_rng(0).standard_normal((segments, *HEADER.segment_shape), np.float32).astype(np.float16)
    rows: list[list[object]] = [
        ["chunk", "way", "write GB/s", "of raw", "read GB/s", "of raw"],
    ]
    result: dict[str, Any] = {"segments": segments, "rounds": rounds, "sweep": {}}
    folder = Path(tempfile.mkdtemp(prefix="store-bench-", dir=Path.cwd()))
    try:
        for chunk in (4, 8, 16, 32, 64):
            speeds = sweep(folder, kv, chunk, rounds)
            result["sweep"][chunk] = speeds
            for way, speed in speeds.items():
                rows.append([f"{chunk} MiB", way, *(f"{speed[name]:.2f}" for name in COLUMNS)])
        seconds = list_seconds(folder / "many", videos, rounds)
    finally:
        shutil.rmtree(folder)
    rows.append([f"ls of {videos:,} videos: {seconds:.2f} s"])
    result |= {"ls_videos": videos, "ls_seconds": round(seconds, 3), "google_crc32c": version("google-crc32c")}
    result["chunk_segments"] = max_chunk_segments(HEADER.segment_bytes, FRAME_BYTES)
    ours = result["sweep"][16]["store"]
    report("store", rows, result, {f"{way} of raw": ours[f"{way}_ratio"] for way in ("write", "read")})


COLUMNS = ("write", "write_ratio", "read", "read_ratio")


def sweep(folder: Path, kv: npt.NDArray[np.float16], chunk: int, rounds: int) -> dict[str, dict[str, float]]:
    """Speeds of each way at one chunk size; the ways take turns, so that the machine's mood strikes all alike.

    Speeds are the best of all rounds: what other work on the machine takes away is nobody's.
    """
    parts = [kv[start : start + chunk] for start in range(0, len(kv), chunk)]
    ways: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
        "raw": (lambda path: write_raw(path, parts), read_raw),
        "store": (
            lambda path: fill(open_store(str(path), "a", header=HEADER), "video", kv, chunk),
            lambda path: open_store(str(path)).read("video"),
        ),
        "zarr": (lambda path: write_zarr(path, kv, chunk), read_zarr),
    }
    if find_spec("zarrs"):  # a Rust pipeline for Zarr; not one of our dependencies
        ways["zarrs"] = (zarrs(lambda path: write_zarr(path, kv, chunk)), zarrs(read_zarr))
    seconds: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    for _ in range(rounds):
        for way, (write, read) in ways.items():
            path = folder / way
            seconds[way][0].append(timed(lambda write=write, path=path: write(path)))
            seconds[way][1].append(timed(lambda read=read, path=path: read(path)))
            shutil.rmtree(path)
    raw_write, raw_read = map(min, seconds["raw"])
    return {
        way: {
            "write": round(kv.nbytes / min(write) / 1e9, 3),
            "write_ratio": round(raw_write / min(write), 3),
            "read": round(kv.nbytes / min(read) / 1e9, 3),
            "read_ratio": round(raw_read / min(read), 3),
        }
        for way, (write, read) in seconds.items()
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds of `work`, whose result is kept until the clock stopped."""
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    del kept
    return seconds


def write_raw(path: Path, parts: list[npt.NDArray[np.float16]]) -> None:
    path.mkdir()
    for index, part in enumerate(parts):
        with (path / str(index)).open("wb") as file:
            file.write(part.data)


def read_raw(path: Path) -> list[bytes]:
    return [(path / str(index)).read_bytes() for index in range(len(list(path.iterdir())))]


def write_zarr(path: Path, kv: npt.NDArray[np.float16], chunk: int) -> None:
    array = zarr.create_array(
        path, shape=kv.shape, chunks=(chunk, *kv.shape[1:]), dtype=kv.dtype, compressors=None, fill_value=0
    )
    array[:] = kv


def read_zarr(path: Path) -> object:
    array = zarr.open_array(path, mode="r")
    return array[:]


def zarrs(work: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """`work` with the codec pipeline in Rust."""

    def run(path: Path) -> Any:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return work(path)

    return run


def list_seconds(path: Path, videos: int, rounds: int) -> float:
    """Best seconds of `Store.list` over hour-long videos (their documents alone: list reads nothing else)."""
    store = open_store(str(path), "a", header=HEADER)
    for video, document in hour_long_videos(store, videos):
        folder = path / "videos" / video
        folder.mkdir()
        (folder / DOCUMENT).write_bytes(document)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        assert len(store.list()) == videos
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def hour_long_videos(store: Store, videos: int) -> Iterator[tuple[str, bytes]]:
    """Documents of videos of 3,600 segments in chunks of the chosen length."""
    chunk = max_chunk_segments(HEADER.segment_bytes, FRAME_BYTES)
    for number in range(videos):
        video = f"video_{number:06}"
        intent = make_intent(chunk, f"/data/videos/part_{number // 1000:03}/{video}.mp4")
        receipts = [
            ChunkReceipt(
                index=index, length=(chunk << 20) + TRAILER, crc32c=number * index % 2**32, vectors_crc32c=index
            )
            for index in range(3600 // chunk)
        ]
        stamps = {
            "kv/zarr.json": documents.Stamp(1200, number),
            **({} if store.header.index is None else {"index/zarr.json": documents.Stamp(900, number)}),
            "timestamps/c.0.0": documents.Stamp(28_800, number),
            "timestamps/zarr.json": documents.Stamp(800, number),
        }
        fields = documents.readable_fields(store.header, "complete", intent, 3600, 3600.0, receipts, stamps, {})
        yield video, documents.seal_video(store.identity, video, *fields)


if __name__ == "__main__":
    main()
