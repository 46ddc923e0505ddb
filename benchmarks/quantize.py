"""Caches in 16, 8 and 4 bits, or computed in float8: bytes, right answers, and how fast chunks are made and read.

`python benchmarks/quantize.py [--clips N] [--model FOLDER]`. The same unseen clips are ingested each way; the same
questions are asked of each store. Speed is that of one chunk of a 7B model's caches (K = 2), beside a plain copy.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import report

from vococache.model.cache import VoCoCache
from vococache.model.float8 import FLOAT8
from vococache.pipeline.ask import open_reader
from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.paper.efficiency import median_seconds
from vococache.pipeline.synthetic.scene import split_scenes
from vococache.pipeline.synthetic.trial import LOOKS_A_SECOND, run_trial, write_clips
from vococache.storage import Store, StoreHeader, open_store, quantize
from vococache.workers.reason import ReasonStage, question_ids

ASKED = 8
VICUNA = (32, 2, 32, 2, 128)  # [layers, 2, kv_heads, K, head_dim] of a 7B model's segment
# Name: what is kept in how many bits, what is computed in.
EXACT = "float16"
WAYS = {EXACT: (None, "bfloat16"), "int8": ("int8", "bfloat16"), "int4": ("int4", "bfloat16"), FLOAT8: (None, FLOAT8)}
CHUNK, RUNS = 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--clips", type=int, default=400)
    options = parser.parse_args()
    header = ("way", "bytes a segment", "7B: an hour at 1/s", "right", "same answer", "KL", "encode", "decode")
    rows: list[tuple[object, ...]] = [header]
    result: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as root:
        scenes = split_scenes("test", options.clips)
        clips = [str(path) for path in write_clips(scenes, Path(root) / "clips")]
        answers: dict[str, list[str]] = {}
        for name, (kind, dtype) in WAYS.items():
            url = str(Path(root) / name)
            ingest(clips, url, fps=LOOKS_A_SECOND, model=options.model, dtype=dtype, quantize=kind)
            stage = open_reader(url, model=options.model)
            trial = run_trial(stage, scenes, asked=ASKED)
            answers[name] = [row.prediction for row in trial.rows]
            same = sum(map(str.__eq__, answers[name], answers[EXACT])) / len(trial.rows)
            exact = open_store(str(Path(root) / EXACT))
            found = {
                "right": trial.accuracy, "interval": trial.interval(), "questions": len(trial.rows),
                "same_answer": same, "kl": divergence(stage, exact, list(scenes)),
                "bytes_per_segment": stage.store.header.stored_segment_bytes,
                "hour_7b_bytes": 3600 * vicuna_segment_bytes(stage.store.header), **speed(kind),
            }  # fmt: skip
            result[name] = found
            rows.append((
                name, found["bytes_per_segment"], f"{found['hour_7b_bytes'] / 1e6:.0f} MB",
                f"{trial.accuracy:.2%}", f"{same:.2%}", f"{found['kl']:.5f}",
                f"{found['encode_mb_s']:.0f} MB/s", f"{found['decode_mb_s']:.0f} MB/s",
            ))  # fmt: skip
    report("quantize", rows, {"clips": options.clips, "ways": result})


def vicuna_segment_bytes(header: StoreHeader) -> float:
    """Bytes of a segment of a 7B model's caches, kept as the store keeps its own."""
    if header.quantization is None:
        return float(np.prod(VICUNA)) * 2
    return quantize.chunk_bytes((CHUNK, *VICUNA), header.quantization) / CHUNK


def divergence(stage: ReasonStage, exact: Store, videos: list[str], question: str = "what happens?") -> float:
    """Mean KL divergence in nats of the next token after a question, from the answer over the exact caches."""
    total = 0.0
    with torch.inference_mode():
        for video in videos:
            logits = []
            for store in (exact, stage.store):
                cache = VoCoCache(torch.from_numpy(store.read(video)))
                ids = question_ids(stage.model, question)[None]
                logits.append(stage.model.read(cache, ids)[0, -1].float().log_softmax(-1))
            total += float((logits[0].exp() * (logits[0] - logits[1])).sum())
    return total / len(videos)


def speed(kind: str | None) -> dict[str, float]:
    """Megabytes of float16 a second of one thread that encodes and decodes a chunk; of a copy where that is all."""
    kv = np.random.default_rng(0).standard_normal((CHUNK, *VICUNA), np.float32).astype(np.float16)
    out = np.empty_like(kv)
    median = partial(median_seconds, device=torch.device("cpu"), runs=RUNS)
    if kind is None:
        both = median(lambda: np.copyto(out, kv))
        return {"encode_mb_s": kv.nbytes / 1e6 / both, "decode_mb_s": kv.nbytes / 1e6 / both}
    data = quantize.encode(kv, kind)
    return {
        "encode_mb_s": kv.nbytes / 1e6 / median(lambda: quantize.encode(kv, kind)),
        "decode_mb_s": kv.nbytes / 1e6 / median(lambda: quantize.decode(data, out, kind)),
    }


if __name__ == "__main__":
    main()
