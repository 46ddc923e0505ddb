"""Searching many videos: which of 1,000 clips hold something, and the index alone over 1,000 hours.

python benchmarks/search.py [--clips 1000] [--hours 1000] [--folder FOLDER]

The clips are of 4 s, ingested from files at two frames a second; searched is each object ("a red circle") that at least
three of them show, and each in motion ("does the red circle move up?"). The index is that of a store whose caches are
next to nothing: random vectors, as many and as large as the embedded model's, a segment a second; a store that is kept
is sealed by the first run, and then read so. Counts of 0 leave a part out.
"""

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import figure, make_intent, report

from vococache.model import load_model
from vococache.model.finding import key_scores
from vococache.pipeline.ask import open_reader
from vococache.pipeline.search.measure import average_precision
from vococache.pipeline.synthetic.scene import split_scenes
from vococache.pipeline.synthetic.trial import ingest_clips
from vococache.storage import Store, catalog, open_store, sealing
from vococache.storage.index import scan_index
from vococache.workers import finding
from vococache.workers.compress import store_header
from vococache.workers.reason import ReasonStage

HOUR = 3600  # segments of a video
CHUNK = 240
QUERIES = 20
LEAST = 3  # videos that hold what a query names
WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--hours", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="Where clips and stores are kept.  [default: a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        clips = search_clips(folder, options.clips) if options.clips else {}
        figure("search", clips=clips)
        hours = scan_hours(folder, options.hours) if options.hours else {}
    rows: list[list[object]] = [["what", "result"]]
    rows += [[f"{options.clips} clips, {name}", f"{value:.3f}"] for name, value in clips.items()]
    rows += [[f"{options.hours} hours, {name}", f"{value:,.3f}"] for name, value in hours.items()]
    report("search", rows, {"clips": clips, "hours": hours})


def search_clips(folder: Path, count: int) -> dict[str, float]:
    """Mean average precision by the index, and by reading all clips; medians of seconds."""
    scenes = split_scenes("find", count)
    store = str(folder / "clips-store")
    ingest_clips(scenes, folder / "clips", store)
    stage = open_reader(store)
    shown: dict[str, set[str]] = defaultdict(set)
    moving: dict[str, set[str]] = defaultdict(set)
    for video, scene in scenes.items():
        for thing in scene.things:
            shown[f"a {thing.colour} {thing.shape}"].add(video)
            if thing.action == "moves":
                where = WAYS[thing.legs[0].direction]
                moving[f"does the {thing.colour} {thing.shape} move {where}?"].add(video)
    return search_each(stage, "objects", shown, count) | search_each(stage, "motion", moving, count)


def search_each(stage: ReasonStage, kind: str, holding: dict[str, set[str]], count: int) -> dict[str, float]:
    """Mean average precision over queries, and by which videos hold what they name, those of a `kind`."""
    names = [name for name, videos in holding.items() if len(videos) >= LEAST][:QUERIES]
    found: dict[str, list[float]] = {
        "chance": [],
        "index": [],
        "index, then reading the best 200": [],
        "reading all": [],
    }
    took: dict[str, list[float]] = {"index": [], "reading 200": []}
    for name in names:
        question = finding.as_question(stage.model, name)
        scores = finding.score_segments(stage, question)
        windows = finding.best_windows(scores, finding.window_segments(stage.model), count)
        truth = [window.video in holding[name] for window in windows]
        started = time.perf_counter()
        best = [window.score for window in finding.read_windows(stage, windows[:200], question)]
        took["reading 200"].append(time.perf_counter() - started)
        took["index"].append(scores.seconds)
        rest = [window.score for window in finding.read_windows(stage, windows[200:], question)]
        found["chance"].append(float(np.mean(truth)))
        found["index"].append(average_precision([window.score for window in windows], truth))
        in_order = [-1e9 - place for place in range(len(rest))]  # behind those that were read
        found["index, then reading the best 200"].append(average_precision([*best, *in_order], truth))
        found["reading all"].append(average_precision([*best, *rest], truth))
    means = {f"{kind}, mean average precision: {way}": round(float(np.mean(each)), 4) for way, each in found.items()}
    seconds = {f"{kind}, seconds: {way}": round(float(np.median(each)), 4) for way, each in took.items()}
    return {f"{kind}, queries": len(names)} | means | seconds


def scan_hours(folder: Path, hours: int) -> dict[str, float]:
    """Seconds of one pass over the index of so many hours, as chunks and sealed, and of the bare products; memory."""
    full = store_header(load_model("synthetic"))
    assert full.index is not None
    shape = tuple(full.index["shape"])
    header = replace(
        full, layers=1, kv_heads=1, tokens=1, head_dim=1, chunk_segments=CHUNK,
        index={"kind": "random", "shape": list(shape)},
    )  # fmt: skip
    store = open_store(str(folder / "hours-store"), "a", header=header)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((HOUR, *shape), np.float32).astype(np.float16)
    for number in range(hours):
        video = f"hour-{number:04d}"
        if store.find(video) is None:
            write_hour(store, video, np.roll(vectors, number, axis=0))
    query = torch.randn(8, shape[1], 1, shape[2])
    before_sealing: dict[str, float] = {}
    if not store.objects.walk(catalog.PARTS):
        scan(store, query)  # from the disk
        before_sealing["seconds of opening each chunk, each byte checked"] = round(scan(store, query)[0], 3)
        started = time.perf_counter()
        sealing.seal(store)
        before_sealing["seconds of sealing, once"] = round(time.perf_counter() - started, 3)
    scan(store, query)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = time.process_time()
    through, choosing = (min(found) for found in zip(*(scan(store, query) for _ in range(ROUNDS)), strict=True))
    spent = (time.process_time() - spent) / ROUNDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    torch.set_num_threads(1)
    started = time.perf_counter()
    for _ in range(hours):
        key_scores(query[0], vectors)
    bare = time.perf_counter() - started
    return {
        "segments": hours * HOUR,
        "gigabytes": round(hours * HOUR * header.index_segment_bytes / 1e9, 3),
        **before_sealing,
        "seconds through what is sealed, each byte checked": round(through, 3),
        "seconds of choosing 200 windows": round(choosing, 3),
        "processor seconds of both": round(spent, 3),
        "seconds of the products alone, on one core": round(bare, 3),
        "growth of peak memory, MiB": round(grown / 1024, 1),
    }


def write_hour(store: Store, video: str, vectors: np.ndarray) -> None:
    intent = make_intent(CHUNK)
    store.begin(video, intent)
    kv = np.zeros((CHUNK, 1, 2, 1, 1, 1), store.header.dtype)
    receipts = [
        store.write_chunk(video, intent.token, index, kv, vectors[index * CHUNK : (index + 1) * CHUNK])
        for index in range(HOUR // CHUNK)
    ]
    written = [receipt for receipt in receipts if receipt is not None]
    store.complete(video, intent.token, written, np.arange(HOUR, dtype=np.float64)[:, None], float(HOUR))


def scan(store: Store, query: torch.Tensor) -> tuple[float, float]:
    """Seconds of all products, and of choosing windows."""
    started = time.perf_counter()
    scores = finding.Scores(videos=finding.scan_scores(scan_index(store), query))
    through = time.perf_counter()
    assert scores.segments % HOUR == 0
    assert len(finding.best_windows(scores, 8, 200)) == 200
    return through - started, time.perf_counter() - through


if __name__ == "__main__":
    main()
