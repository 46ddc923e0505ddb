"""Frames a second of stage 1 over batch sizes, and how near that is to the machine's own matrix products.

`python benchmarks/compress.py [--size 7b|small] [--device cuda|cpu]`. Counted is what a compress worker does with a
chunk: uint8 frames in, normalised on the device, through tower and decoder, the kept entries as numpy arrays out.
"""

from functools import partial

import numpy as np
import torch
from common import figure, matrix_rate, random_model_of, report

from vococache.model.costs import compress_flops
from vococache.pipeline.paper.efficiency import median_seconds
from vococache.workers.caches import compress_frames, micro_batch

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHUNK = 64  # frames


def main() -> None:
    size, model = random_model_of(__doc__)
    rate = matrix_rate(model.device, model.dtype)
    flops, side = compress_flops(model.config).total, model.config.geometry.size
    frames = np.random.default_rng(0).integers(0, 256, (CHUNK, 1, side, side, 3), dtype=np.uint8)
    own = micro_batch(model.config)
    rows: list[tuple[object, ...]] = [("frames in a batch", "frames/s", "floor", "of the matrix rate")]
    found: dict[str, dict[str, float]] = {}
    figure("compress", matrix_tflops=rate / 1e12)
    for batch in BATCHES:
        name = f"{batch} (a worker's)" if batch == own else str(batch)
        seconds = median_seconds(partial(compress_frames, model, frames, batch, "float16"), model.device)
        share = CHUNK * flops / rate / seconds
        rows.append((name, f"{CHUNK / seconds:.1f}", f"{rate / flops:.1f}", f"{share:.1%}"))
        found[name] = {"frames_per_s": CHUNK / seconds, "share": share}
        figure("compress", batch=batch, **found[name])
    rows.append((f"matrix products of {model.dtype}: {rate / 1e12:.3g} TFLOP/s",))
    best = max(row["share"] for row in found.values())
    result: dict[str, object] = {"size": size, "device": str(model.device), "dtype": str(model.dtype)}
    result |= {"matrix_tflops": rate / 1e12, "gflops_per_frame": flops / 1e9, "batches": found}
    report("compress", rows, result, {"of the matrix rate": best})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
