"""What a training step of the 7B recipes computes and holds, counted without a GPU: padding, FLOPs, bytes.

`python benchmarks/training_counts.py [--layers N]`. Padding: 665,000 texts, drawn by the parts of LLaVA-1.5's mix
below, as the Trainer draws them at random and by length (`pipeline/training/lengths.py`); no data are read. FLOPs and
bytes: a step of one process of the recipes' shapes, run on tensors without storage (`model/counted.py`), beside those
of `model/training_costs.py` and beside the floor: the products that no implementation can leave out, nothing computed
twice. Gradients: FSDP over 8 processes, of which one is run, at a small size, between two accumulated batches. Loading:
a checkpoint of 0.4 GB in bfloat16, as one process of several loads it, each way in a process of its own.
"""

import argparse
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from ctypes import CDLL
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from common import report
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from vococache.model.checkpoints import load_model
from vococache.model.config import VoCoConfig
from vococache.model.counted import count_step
from vococache.model.objective import Objective
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, llava_7b, random_model, small_config
from vococache.model.training_costs import (
    TrainingStep,
    activation_bytes,
    step_flops,
    waiting_gradient_values,
    whole_gradient_bytes,
)
from vococache.pipeline.training.lengths import ByLength

GPUS, ROWS, LONGEST = 8, 16, 2048
# Thousands of rows, and the median and spread (sigma of the logarithm) of their tokens: estimates from the data sets'
# descriptions, as the file itself is not at hand. Conversations, details, reasoning, ShareGPT, VQAv2 and GQA, OCR-VQA,
# single questions, regions.
MIX = (
    (58, 350, 0.35), (23, 180, 0.3), (77, 260, 0.3), (41, 900, 0.8), (155, 180, 0.5), (80, 150, 0.2), (97, 70, 0.4),
    (134, 380, 0.6),
)  # fmt: skip
LETTERS = (4.2, 0.08)  # a token, and the spread of a text's mean
# What each process of a training did once, what one does for a store, and what each does beside adapters.
WAYS = {"float32, hashed": ("float32", True), "float32": ("float32", False), "bfloat16": ("bfloat16", False)}
RECIPES = {
    "compress": TrainingStep(segments=16, rows=16, text=300, labels=16 * 150),
    "temporal": TrainingStep(segments=32, rows=1, text=100, labels=60),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    loaded = loading()  # before this process holds memory that a fork of it would take for new
    rows: list[tuple[object, ...]] = [("tokens computed over tokens needed", "texts", "whole step", "8 processes wait")]
    ratios, found = {}, {}
    for name, figures in padding().items():
        rows.append((name, *(f"{figure:.3f}" for figure in figures)))
        found[f"padding, {name}"] = figures
    rows.append(("a step", "FLOPs", "formula", "floor", "over floor", "peak", "formula"))
    config = llava_7b(2)
    config.text.num_hidden_layers = options.layers
    for name, step in RECIPES.items():
        for checkpointing in (True, False):
            counted = count_step(config, step, checkpointing=checkpointing)
            flops, floor = (step_flops(config, step, checkpointing=again) for again in (checkpointing, False))
            estimate = activation_bytes(config, step, checkpointing=checkpointing, bytes_per_value=2)
            estimate += 2 * waiting_gradient_values(config) if checkpointing else 0
            title = f"{name}, checkpointing {'on' if checkpointing else 'off'}"
            rows.append((
                title, *(f"{value / 1e12:.0f} T" for value in (counted.flops, flops, floor)),
                f"{counted.flops / floor:.2f}", *(f"{size / 1e9:.1f} GB" for size in (counted.peak_bytes, estimate)),
            ))  # fmt: skip
            found[title] = {"flops": counted.flops, "floor": floor, "peak": counted.peak_bytes, "formula": estimate}
            ratios[f"{title}: formula over peak"] = estimate / counted.peak_bytes
    rows.append(("gradients between two accumulated batches", "whole", "in shards", "formula, whole", "of 7B"))
    held = {sync: held_gradients(sync=sync) for sync in (False, True)}
    formula = whole_gradient_bytes(small())
    sizes = (held[False], held[True], formula)
    rows.append(("", *(f"{s / 1e6:.2f} MB" for s in sizes), f"{whole_gradient_bytes(llava_7b(2)) / 1e9:.0f} GB"))
    rows.append(("loading a checkpoint in bfloat16", "peak over the file", "its own memory", "CPU s"))
    for name, (peak, own, seconds) in loaded.items():
        rows.append((name, f"{peak:.2f}", f"{own:.2f}", f"{seconds:.1f}"))
    measured = {"layers": options.layers, "gradients": held, "loading": loaded, "found": found}
    report("training_counts", rows, measured, ratios)


def padding() -> dict[str, tuple[float, float, float]]:
    """By order: tokens computed over needed, of the texts and of both stages; and, in texts, where all wait for one."""
    random = Random(0)
    tokens = [
        min(LONGEST, max(10, round(median * random.lognormvariate(0, spread))))
        for count, median, spread in MIX
        for _ in range(1000 * count)
    ]
    letters = [round(length * LETTERS[0] * random.lognormvariate(0, LETTERS[1])) for length in tokens]
    shuffled = list(range(len(tokens)))
    random.shuffle(shuffled)
    orders: dict[str, Iterable[int]] = {
        "at random": shuffled,
        "by length": ByLength(letters, ROWS * GPUS, lambda: 0),
    }
    stage1 = llava_7b(2).stage1_length
    found = {}
    for name, order in orders.items():
        lengths = torch.tensor([tokens[row] for row in order])
        steps = lengths[: len(lengths) // (ROWS * GPUS) * ROWS * GPUS].view(-1, GPUS, ROWS)
        needed, computed = int(steps.sum()), int(ROWS * steps.amax(2).sum())
        vision = stage1 * steps.numel()
        waited = int(GPUS * ROWS * steps.amax((1, 2)).sum())
        found[name] = (computed / needed, (computed + vision) / (needed + vision), waited / needed)
    return found


def small() -> VoCoConfig:
    return small_config(byte_tokenizer(), width=64, layers=4, heads=4)


def held_gradients(*, sync: bool) -> int:
    """Bytes of gradients in one of 8 processes after the first of two accumulated batches."""
    dist.init_process_group("fake", rank=0, world_size=GPUS, store=FakeStore())
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    try:
        model = random_model(small(), 0).requires_grad_(True)
        model.vision_tower.requires_grad_(False)
        objective = Objective(model).train()
        for layer in model.language_model.layers:
            fully_shard(layer)
        fully_shard(objective)
        objective.set_requires_gradient_sync(sync)
        ids, side = torch.zeros(1, 8, dtype=torch.long), model.config.geometry.size
        frames = torch.zeros(1, 1, side, side, 3, dtype=torch.uint8)
        objective(ids, torch.ones_like(ids), ids, [1], frames=frames)["loss"].backward()
        whole = [group for module in objective.modules() for group in groups(module)]
        held = [p.unsharded_accumulated_grad for group in whole for p in group.fsdp_params
                if p.unsharded_accumulated_grad is not None]  # fmt: skip
        held += [p._unsharded_param.grad for group in whole for p in group.fsdp_params
                 if p._unsharded_param.grad is not None]  # fmt: skip
        shards = [weight.grad.to_local() for weight in objective.parameters() if weight.grad is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*held, *shards))
    finally:
        dist.destroy_process_group()


def loading() -> dict[str, tuple[float, float, float]]:
    """By way: the peak of memory and, in the end, what is the process's own (not the file's pages), over the file's
    bytes; and seconds of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(byte_tokenizer(), width=1024, layers=16, heads=16)
        save_pretrained(random_model(config, 0).bfloat16(), folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        found = {}
        for name, way in WAYS.items():
            # What is larger than the threshold is returned to the system as soon as it is freed.
            prepare = partial(CDLL(None).mallopt, -3, 1 << 17)
            with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=prepare) as process:
                peak, own, seconds = process.submit(load, folder, *way).result()
            found[name] = peak / size, own / size, seconds
    return found


def load(folder: str, dtype: str, hashed: bool) -> tuple[int, int, float]:
    """Bytes that loading takes at its peak, those that are the process's own in the end, and seconds of CPU."""
    peak, own, began = peak_bytes(), own_bytes(), time.process_time()
    model = load_model(folder, dtype=dtype, device="cpu", hashed=hashed)
    seconds = time.process_time() - began
    assert model.dtype == getattr(torch, dtype)
    return peak_bytes() - peak, own_bytes() - own, seconds


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_bytes() -> int:
    """Memory that no file stands behind."""
    found = re.search(r"Anonymous:\s*(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


def groups(module: torch.nn.Module) -> list[Any]:
    """The groups of weights that FSDP gathers together."""
    state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
    return [state._fsdp_param_group] if state is not None and state._fsdp_param_group is not None else []


if __name__ == "__main__":
    main()
