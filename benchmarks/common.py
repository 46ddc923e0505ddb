"""What benchmarks share: the way figures are printed, and what the machine itself can do."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vococache.pipeline.machine import machine
from vococache.pipeline.tables import aligned

if TYPE_CHECKING:  # most benchmarks have no use for torch here
    import numpy as np
    import torch

    from vococache.model.voco import VoCoModel
    from vococache.storage import Intent, Store


def report(
    name: str, rows: Sequence[Sequence[object]], result: dict[str, Any], ratios: dict[str, float] | None = None
) -> None:
    """Print `rows` as a table and, last, everything as one JSON line.

    `ratios`: what was measured beside something else in the same run, more is better; `guard.py` compares them with
    those of another day.
    """
    print(aligned([[str(cell) for cell in row] for row in rows]))
    if ratios:
        result = result | {"ratios": {what: round(ratio, 3) for what, ratio in ratios.items()}}
    print(json.dumps({"benchmark": name, "arguments": sys.argv[1:], **result, "machine": machine()}))


def figure(name: str, **values: object) -> None:
    """A JSON line on the standard error as soon as there is a figure: a run that is cut off has left these."""
    print(json.dumps({"benchmark": name, **values}), file=sys.stderr, flush=True)


def random_model_of(description: str | None) -> "tuple[str, VoCoModel]":
    """The size that the command line asks for, and a model of it with random weights, K = 2, a frame a segment."""
    from vococache.pipeline.paper.efficiency import SIZES, build

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device")
    options = parser.parse_args()
    model = build(options.size, options.device)
    model.config = model.config.with_voco(tokens=2, frames=1)
    return options.size, model


def matrix_rate(device: "torch.device", dtype: "torch.dtype") -> float:
    """FLOPs a second of a large square matrix product."""
    import torch

    from vococache.pipeline.paper.efficiency import median_seconds

    side = 8192 if device.type == "cuda" else 1024
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: one @ two, device)


def memory_rate(device: "torch.device") -> float:
    """Bytes a second that are read while a large tensor is summed up."""
    import torch

    from vococache.pipeline.paper.efficiency import median_seconds

    data = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device, dtype=torch.int8)
    return data.nbytes / median_seconds(lambda: data.view(torch.int64).sum(), device)


def fill(store: "Store", video: str, kv: "np.ndarray", chunk: int) -> None:
    """Write a video's caches, chunk by chunk, as an ingest does: the completion, which checks all again, too."""
    import numpy as np

    intent = make_intent(min(chunk, len(kv)))
    store.begin(video, intent)
    starts = range(0, len(kv), intent.chunk_segments)
    receipts = [
        store.write_chunk(video, intent.token, index, kv[start : start + intent.chunk_segments])
        for index, start in enumerate(starts)
    ]
    written = [receipt for receipt in receipts if receipt is not None]
    store.complete(video, intent.token, written, np.arange(len(kv), dtype=np.float64)[:, None], float(len(kv)))


def make_intent(chunk: int, source: str = "/videos/video.mp4") -> "Intent":
    """What an ingest of `source` sets out to do, in chunks of so many segments."""
    from vococache.storage import Intent

    return Intent(
        source=source,
        content_hash="a" * 64,
        size=123_456_789,
        mtime_ns=1_700_000_000_123_456_789,
        sampling={"fps": 1.0, "num_frames": None},
        decoder="decord",
        chunk_segments=chunk,
    )
