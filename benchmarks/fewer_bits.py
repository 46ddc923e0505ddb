"""How far caches in 8 or 4 bits, or computed in float8, move a model's logits; and how fast stage 1 is in float8.

`python benchmarks/fewer_bits.py [--size 7b|small] [--device cuda|cpu]`. A model with random weights behind frames of
noise, computed in bfloat16: logits are those of one text behind 8 segments; speed is that of a worker's batches.
"""

from functools import partial

import numpy as np
import torch
from common import figure, random_model_of, report

from vococache.model.cache import VoCoCache
from vococache.model.compiled import compile_layers
from vococache.model.float8 import FLOAT8, use_float8
from vococache.model.voco import VoCoModel
from vococache.pipeline.paper.efficiency import QUESTION, median_seconds
from vococache.storage import quantize
from vococache.workers.caches import compress_frames, micro_batch

SEGMENTS = 8  # behind which logits are compared
CHUNK = 64  # frames that are timed


def main() -> None:
    size, model = random_model_of(__doc__)
    model.bfloat16()
    batch, side = micro_batch(model.config), model.config.geometry.size
    noise = np.random.default_rng(0).integers(0, 256, (CHUNK, 1, side, side, 3), dtype=np.uint8)
    work = partial(compress_frames, model, noise, batch, "float16")
    one, other = (compress_frames(model, noise[start:][:SEGMENTS], batch, "float16") for start in (0, SEGMENTS))
    exact = logits(model, one)
    moved = {"another video's": logits(model, other)}
    for kind in ("int8", "int4"):
        kept = np.empty_like(one)
        quantize.decode(quantize.encode(one, kind), kept, kind)
        moved[kind] = logits(model, kept)
    frames_a_second = {"bfloat16": CHUNK / median_seconds(work, model.device)}
    figure("fewer_bits", frames_per_s=frames_a_second)
    use_float8(model.language_model.layers)  # which then compresses and reads
    torch.compiler.reset()
    compile_layers(model)
    moved[FLOAT8] = logits(model, compress_frames(model, noise[:SEGMENTS], batch, "float16"))
    frames_a_second[FLOAT8] = CHUNK / median_seconds(work, model.device)
    shifts = {name: float((each - exact).norm() / exact.norm()) for name, each in moved.items()}
    away = shifts["another video's"]
    rows: list[tuple[object, ...]] = [("caches", "move logits by", "of how far another's do")]
    rows += [(name, f"{shift:.2%}", f"{shift / away:.1%}") for name, shift in shifts.items()]
    rows += [(f"stage 1 in {name}: {each:.1f} frames/s",) for name, each in frames_a_second.items()]
    result = {"size": size, "device": str(model.device), "logit_shifts": shifts, "frames_per_s": frames_a_second}
    report("fewer_bits", rows, result, {"float8 over bfloat16": frames_a_second[FLOAT8] / frames_a_second["bfloat16"]})


def logits(model: VoCoModel, kv: np.ndarray) -> torch.Tensor:
    """Of a text behind stored caches."""
    ids = torch.arange(QUESTION, device=model.device)[None] % 100 + 3
    with torch.inference_mode():
        return model.read(VoCoCache(torch.from_numpy(kv)), ids)[0].float()


if __name__ == "__main__":
    main()
