"""Latency of a question over 1, 16, 64, 256 segments: from the store, from memory, and from the video's frames.

`python benchmarks/ask.py`. "from memory" keeps the placed cache, as a chat does; "from frames" compresses the
decoded frames again for each question (its decoding is not even counted).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import fill, report

from vococache.model.generate import GenerationOptions, generate
from vococache.storage import open_store
from vococache.workers.caches import compress_frames
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor
from vococache.workers.reason import ReasonStage, question_ids

SEGMENTS, NEW_TOKENS, RUNS = (1, 16, 64, 256), 16, 5
GREEDY = GenerationOptions(stop_ids=())  # no stop token: every way generates the same number of tokens


def main() -> None:
    model = Compressor(model="synthetic").load("cpu")
    header = store_header(model)
    size = model.config.geometry.size
    frames = np.random.default_rng(0).integers(0, 256, (max(SEGMENTS), 1, size, size, 3), dtype=np.uint8)
    rows: list[tuple[object, ...]] = [("segments", "from", "first token", "16 tokens")]
    result: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = ReasonStage(model, open_store(str(Path(folder) / "store"), "a", header=header))
        for segments in SEGMENTS:
            kv = compress_frames(model, frames[:segments], header.micro_batch, header.dtype)
            fill(stage.store, f"v{segments}", kv, header.chunk_segments)
        question = question_ids(stage.model, "What happens in the video, and in which order?")
        for segments in SEGMENTS:
            ways = make_ways(stage, f"v{segments}", frames[:segments], question)
            for way, seconds in measure(ways).items():
                first, total = (statistics.median(run) for run in seconds)
                rows.append((segments, way, f"{1000 * first:.1f} ms", f"{1000 * total:.1f} ms"))
                result.append({"segments": segments, "from": way, "first_token_s": first, "total_s": total})
    first = {row["from"]: row["first_token_s"] for row in result if row["segments"] == max(SEGMENTS)}
    ratios = {f"store over {way}": first[way] / first["store"] for way in ("memory", "frames")}
    report("ask", rows, {"new_tokens": NEW_TOKENS, "results": result}, ratios)


def make_ways(
    stage: ReasonStage, video: str, frames: np.ndarray, question: torch.Tensor
) -> dict[str, Callable[[int], object]]:
    """Three ways to generate so many tokens."""
    kept = stage.load([video])

    def from_frames(tokens: int) -> object:
        with torch.inference_mode():
            placed = stage.model.place(stage.model.compress(stage.model.pixel_values(frames)))
        return generate(stage.model, placed, [question], tokens, GREEDY)

    return {
        "memory": lambda tokens: generate(stage.model, kept.placed, [question], tokens, GREEDY),
        "store": lambda tokens: generate(stage.model, stage.load([video]).placed, [question], tokens, GREEDY),
        "frames": from_frames,
    }


def measure(ways: dict[str, Callable[[int], object]]) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each way to 1 and to NEW_TOKENS tokens, the ways in turn; the first round is a warm-up."""
    seconds: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    for run in range(RUNS + 1):
        for way, function in ways.items():
            for times, tokens in zip(seconds[way], (1, NEW_TOKENS), strict=True):
                started = time.perf_counter()
                function(tokens)
                if run:
                    times.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
