"""256 segments of a 7B model's caches from the store to where the model is, beside the slower of its two ways.

`python benchmarks/load.py [--size 7b|small] [--device cuda|cpu]`, small: 16 segments. Reading alone, with
all checks; copying alone to the device; and what `ask` does: read, copy, convert, rotate to positions. The operating
system has the store's files in memory. Where Zarr is not installed, a line says so.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import fill, report

from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.pipeline.paper.efficiency import median_seconds

try:
    from vococache.storage import open_store
    from vococache.workers.compress import store_header
    from vococache.workers.reason import ReasonStage
except ModuleNotFoundError as missing:
    print(json.dumps({"benchmark": "load", "skipped": str(missing)}))
    sys.exit()

SEGMENTS = {"7b": 256, "small": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SEGMENTS, default="7b")
    options = parser.parse_args()
    device, segments = torch.device(options.device), SEGMENTS[options.size]
    # The caches of Vicuna-7B at K = 2, of a model that is otherwise small: its weights do not matter here.
    config = small_config(byte_tokenizer()).with_voco(tokens=2)
    vars(config.text).update(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, head_dim=128)
    model = random_model(config, seed=0).bfloat16().to(device)
    header = store_header(model)
    kv = np.random.default_rng(0).standard_normal((segments, *header.segment_shape), np.float32).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        stage = ReasonStage(model, open_store(str(Path(folder) / "store"), "a", header=header))
        fill(stage.store, "video", kv, header.chunk_segments)
        seconds = {
            "read": median_seconds(partial(stage.store.read, "video"), device),
            "copy": median_seconds(lambda: torch.from_numpy(kv).to(device, copy=True), device),
            "read and placed": median_seconds(partial(stage.load, ["video"]), device),
        }
    rows = [("way", "ms", "GB/s")]
    rows += [(way, f"{1000 * each:.1f}", f"{kv.nbytes / each / 1e9:.2f}") for way, each in seconds.items()]
    slower = max(seconds["read"], seconds["copy"])
    result = {"device": str(device), "segments": segments, "bytes": kv.nbytes, "seconds": seconds}
    report("load", rows, result, {"slower way over both": slower / seconds["read and placed"]})


if __name__ == "__main__":
    main()
