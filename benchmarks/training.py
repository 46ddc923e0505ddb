"""Peak memory, seconds and tokens a second of training steps, with and without gradient checkpointing.

`python benchmarks/training.py [--size full|small|7b] [--device cuda|cpu]`. Random weights, the tower frozen; forward,
backward and AdamW. "compress": a batch of single segments with a text each; "temporal": one row of all segments with
eight texts; "reader": the same behind ready caches, where a LoRA reader alone learns. "7b" is the shape of
`vicuna-7b-compress` under bfloat16 autocast: all weights in a few layers, LoRA in all 32; else float32.

Memory is what a case takes beyond its start, beside the estimate of `model/training_costs.py`: what is allocated on a
GPU; on a CPU the peak resident set, each case in a process of its own. There memory is measured in a run in which glibc
returns what is freed at once (otherwise the peak holds hundreds of MiB that nobody uses), and time in another.
"""

import argparse
import gc
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from ctypes import CDLL
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from common import figure, report

from vococache.model.config import VoCoConfig
from vococache.model.decoder import fast_attention
from vococache.model.objective import Objective
from vococache.model.scratch import byte_tokenizer, llava_7b, random_model, small_config
from vococache.model.training_costs import STATE_BYTES, TrainingStep, activation_bytes, cast_bytes, step_flops

STAGES = ("compress", "temporal", "reader")
STEPS = 3
LORA = {"kind": "lora", "r": 128, "lora_alpha": 256}


@dataclass(frozen=True, slots=True)
class Size:
    """`layers` where all weights learn, `lora_layers` where a reader alone does; `text`: tokens of each text."""

    layers: int
    lora_layers: int
    segments: int
    text: int


SIZES = {"full": Size(16, 16, 64, 32), "small": Size(2, 2, 4, 32), "7b": Size(4, 32, 16, 300)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    size, device = options.size, options.device
    rows: list[tuple[object, ...]] = [("stage", "checkpointing", "peak", "estimate", "s a step", "tokens/s", "loss")]
    cases = []
    for stage, checkpointing in product(STAGES, ("off", "on")):
        case = measure(size, device, stage, checkpointing) if device == "cuda" else run_case(size, stage, checkpointing)
        cases.append(case)
        figure("training", **case)
        peak, estimate = (f"{case[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "estimated_bytes"))
        seconds, tokens = f"{case['seconds']:.2f}", f"{case['tokens_per_s']:.0f}"
        rows.append((stage, checkpointing, peak, estimate, seconds, tokens, f"{case['loss']:.4f}"))
    peaks = {(case["stage"], case["checkpointing"]): case["peak_bytes"] for case in cases}
    ratios = {f"{stage} without over with checkpointing": peaks[stage, False] / peaks[stage, True] for stage in STAGES}
    report("training", rows, {"size": size, "device": device, **asdict(SIZES[size]), "cases": cases}, ratios)


def run_case(size: str, *case: str) -> dict[str, Any]:
    """`measure` on a CPU, in processes of its own: memory, then time."""

    def run(prepare: Callable[[], object] | None = None) -> dict[str, Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=prepare) as process:
            return process.submit(measure, size, "cpu", *case).result()

    # M_MMAP_THRESHOLD: what is larger is returned to the system as soon as it is freed.
    memory, timed = run(partial(CDLL(None).mallopt, -3, 1 << 17)), run()
    return memory | {name: timed[name] for name in ("seconds", "tokens_per_s", "tflops_per_s")}


def measure(size: str, where: str, stage: str, checkpointing: str) -> dict[str, Any]:
    """One case."""
    device, shape = torch.device(where), SIZES[size]
    layers = shape.lora_layers if stage == "reader" else shape.layers
    rows, texts = (shape.segments, 1) if stage == "compress" else (1, 8)
    step = TrainingStep(
        segments=shape.segments, rows=rows, text=texts * shape.text, labels=rows * texts * (shape.text // 2)
    )
    if size == "7b":
        config = llava_7b(2)
        config.text.num_hidden_layers = layers
    else:
        # What the first step ever loads is no part of a step.
        first = Case(small_config(byte_tokenizer(), layers=1), replace(step, segments=1, rows=1), texts, stage, device)
        first.train(checkpointing=False)
        config = small_config(byte_tokenizer(), width=256, layers=layers, heads=4)
    if device.type == "cuda":  # on a CPU each case has a process of its own
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = peak_memory(device)
    case = Case(config, step, texts, stage, device)
    loss, seconds = case.train(checkpointing=checkpointing == "on")
    peak = peak_memory(device) - start
    counted = activation_bytes(
        config, step, checkpointing=checkpointing == "on", bytes_per_value=2 if case.half else 4,
        fused=device.type == "cuda", stored=stage == "reader",
    )  # fmt: skip
    if case.half and checkpointing == "off":
        counted += cast_bytes((*case.model.reading.layers.parameters(), *case.model.lm_head.parameters()))
    learned = sum(weight.numel() for weight in case.learned)
    frozen = sum(weight.numel() for weight in case.model.parameters()) - learned
    flops = step_flops(config, step, checkpointing=checkpointing == "on")
    return {
        "stage": stage,
        "checkpointing": checkpointing == "on",
        "peak_bytes": peak,
        "estimated_bytes": STATE_BYTES * learned + 4 * frozen + counted,
        "estimated_activation_bytes": counted,
        "seconds": seconds,
        "tokens_per_s": case.tokens / seconds,
        "tflops_per_s": None if stage == "reader" else flops / seconds / 1e12,
        "loss": loss,
    }


class Case:
    """A random model and a batch for it; `tokens`: positions of both stages in a step."""

    def __init__(self, config: VoCoConfig, step: TrainingStep, texts: int, stage: str, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            self.model = random_model(config, seed=0)
        self.device, self.half = device, device.type == "cuda"
        rows, segments, text = step.rows, step.segments, step.text // texts
        self.tokens = rows * step.text
        side = config.geometry.size
        ids = torch.randint(3, config.text.vocab_size, (rows, step.text))
        batch = {
            "input_ids": ids,
            "attention_mask": torch.arange(1, texts + 1).repeat_interleave(text).expand(rows, -1),
            "labels": ids.masked_fill(torch.arange(step.text) % text < text - text // 2, -100),
        }
        if stage == "reader":
            self.model.add_reader(LORA)
            assert self.model.reader is not None
            for name, weight in self.model.reader.named_parameters():
                weight.requires_grad_("lora" in name)
            entries = (segments, config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim)
            batch["cache"] = torch.randn(entries)
        else:
            self.model.requires_grad_(True)
            self.model.vision_tower.requires_grad_(False)
            batch["frames"] = torch.randint(0, 256, (segments, 1, side, side, 3), dtype=torch.uint8)
            self.tokens += segments * config.stage1_length
        self.learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.batch = {name: tensor.to(device) for name, tensor in batch.items()}
        self.segments = [segments // rows] * rows

    def train(self, *, checkpointing: bool) -> tuple[float, float]:
        """The last loss of a few steps, and the seconds of the fastest but the first."""
        self.model.gradient_checkpointing = checkpointing
        objective = Objective(self.model).train()
        # As the Trainer does by default; the other one holds a copy of all weights more while it steps.
        optimizer = torch.optim.AdamW(self.learned, lr=1e-4, fused=True)
        found, seconds = 0.0, []
        for _ in range(STEPS):
            began = time.perf_counter()
            with fast_attention(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                loss = objective(**self.batch, segments=self.segments)["loss"]
            with fast_attention(self.device):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found = loss.item()  # for which a GPU is waited for
            seconds.append(time.perf_counter() - began)
        return found, min(seconds[1:])


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: the resident set of this process, or what was allocated on the GPU."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
