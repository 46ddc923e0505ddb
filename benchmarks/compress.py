"""Frames a second of stage 1 over batch sizes, and how near that is to the machine's own matrix products.

`python benchmarks/compress.py [--size 7b|small] [--device cuda|cpu]`. Counted is what a compress worker does: uint8
frames in, normalised on the device, through tower and decoder, the kept entries as numpy arrays out.
"""

import numpy as np
import torch
from common import matrix_rate, random_model_of, report

from vococache.model.costs import compress_flops
from vococache.pipeline.efficiency import median_seconds
from vococache.workers.compress import micro_batch, to_stored

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    size, model = random_model_of(__doc__)
    rate = matrix_rate(model.device, model.dtype)
    flops, side = compress_flops(model.config).total, model.config.geometry.size
    rows: list[tuple[object, ...]] = [("frames in a batch", "frames/s", "floor", "of the matrix rate")]
    found: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        frames = np.random.default_rng(0).integers(0, 256, (batch, 1, side, side, 3), dtype=np.uint8)

        def work(frames: np.ndarray = frames) -> None:
            to_stored(model.compress(model.pixel_values(frames)).data, "float16")

        seconds = median_seconds(work, model.device)
        share = batch * flops / rate / seconds
        mark = " (a worker's)" if batch == micro_batch(model.config) else ""
        rows.append((f"{batch}{mark}", f"{batch / seconds:.1f}", f"{rate / flops:.1f}", f"{share:.1%}"))
        found[str(batch)] = {"frames_per_s": batch / seconds, "share": share}
    result: dict[str, object] = {"size": size, "device": str(model.device), "dtype": str(model.dtype)}
    result |= {"matrix_tflops": rate / 1e12, "gflops_per_frame": flops / 1e9, "batches": found}
    report("compress", rows, result, {"of the matrix rate": max(row["share"] for row in found.values())})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
