"""Peak memory and seconds of a training step of both stages, with and without gradient checkpointing.

`python benchmarks/training.py [--quick]`. A deep decoder with random weights, the tower frozen; forward, backward and
AdamW in float32, each case in a process of its own. Memory is what the process takes beyond its start: the peak
resident set on a CPU, allocated memory on a GPU; beside it stands the estimate of `model/training_costs.py`. On a CPU
memory is measured in a second run in which glibc returns what is freed at once (otherwise the peak holds hundreds of
MiB that nobody uses; but returning takes time).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from common import report

STAGES = ("compress", "temporal")
STEPS = 3
TEXT = 32  # tokens of each text
SIZES = {"full": (16, 64), "quick": (8, 16)}  # decoder layers, segments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case)))
        return
    size = "quick" if options.quick else "full"
    rows: list[tuple[object, ...]] = [("stage", "checkpointing", "peak", "estimate", "s a step", "loss")]
    cases = []
    for stage in STAGES:
        for checkpointing in ("off", "on"):
            case = run_case(size, stage, checkpointing, MALLOC_MMAP_THRESHOLD_="131072")
            case["seconds"] = run_case(size, stage, checkpointing)["seconds"]
            cases.append(case)
            peak, estimate = (f"{case[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "estimated_bytes"))
            rows.append((stage, checkpointing, peak, estimate, f"{case['seconds']:.2f}", f"{case['loss']:.4f}"))
    layers, segments = SIZES[size]
    peaks = {(case["stage"], case["checkpointing"]): case["peak_bytes"] for case in cases}
    ratios = {f"{stage} without over with checkpointing": peaks[stage, False] / peaks[stage, True] for stage in STAGES}
    report("training", rows, {"layers": layers, "segments": segments, "cases": cases}, ratios)


def run_case(*case: str, **environment: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--case", *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(size: str, stage: str, checkpointing: str) -> dict[str, object]:
    """One case: a batch of single segments with a text each, or one row of all segments with eight texts."""
    import torch

    from vococache.model.scratch import byte_tokenizer, small_config
    from vococache.model.training_costs import STATE_BYTES, Step, activation_bytes, parameters

    on_cpu = not torch.cuda.is_available()
    layers, segments = SIZES[size]
    rows, texts = (segments, 1) if stage == "compress" else (1, 8)
    tokenizer = byte_tokenizer()
    # What the first step ever loads is no part of a step.
    train_steps(small_config(tokenizer, layers=1), 1, 1, 1, checkpointing=False)
    start = peak_memory(on_cpu)
    config = small_config(tokenizer, width=256, layers=layers, heads=4)
    loss, seconds = train_steps(config, segments, rows, texts, checkpointing=checkpointing == "on")
    step = Step(segments=segments, rows=rows, text=texts * TEXT, labels=rows * texts * TEXT // 2)
    activations = activation_bytes(config, step, checkpointing=checkpointing == "on", fused=not on_cpu)
    counts = parameters(config)
    states = STATE_BYTES * sum(counts.values()) - 12 * counts["vision_tower"]
    return {
        "stage": stage,
        "checkpointing": checkpointing == "on",
        "peak_bytes": peak_memory(on_cpu) - start,
        "estimated_bytes": states + activations,
        "estimated_activation_bytes": activations,
        "seconds": seconds,
        "loss": loss,
    }


def train_steps(config: Any, segments: int, rows: int, texts: int, *, checkpointing: bool) -> tuple[float, float]:
    """The last loss of a few steps of a random model, and the seconds of the fastest but the first."""
    import torch

    from vococache.model.objective import Objective
    from vococache.model.scratch import random_model
    from vococache.pipeline.training.trainer import fast_attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = random_model(config, seed=0).to(device)
    model.requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing = checkpointing
    objective = Objective(model).train()
    optimizer = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=1e-4)
    ids = torch.randint(3, config.text.vocab_size, (rows, texts * TEXT))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.arange(1, texts + 1).repeat_interleave(TEXT).expand(rows, -1),
        "labels": ids.masked_fill(torch.arange(texts * TEXT) % TEXT < TEXT // 2, -100),
        "frames": torch.randint(0, 256, (segments, 1, 64, 64, 3), dtype=torch.uint8),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    found, seconds = 0.0, []
    with fast_attention(device):
        for _ in range(STEPS):
            began = time.perf_counter()
            loss = objective(**batch, segments=[segments // rows] * rows)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found = loss.item()
            seconds.append(time.perf_counter() - began)
    return found, min(seconds[1:])


def peak_memory(on_cpu: bool) -> int:
    """Bytes at the peak so far: the resident set of this process, or what is allocated on the GPU."""
    if on_cpu:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
