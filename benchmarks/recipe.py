"""What the paper's recipe for Vicuna-7B takes, by the formulas of `model/training_costs.py`. Nothing is run.

`python benchmarks/recipe.py`. Batch sizes and epochs are those of `pipeline/training/recipes/vicuna-7b-*.yaml`; rows of
data, frames and lengths of texts, GPUs and the share of their rate that a step reaches are the assumptions below.
"""

from pathlib import Path

import yaml
from common import report

from vococache.model.costs import compress_flops, read_flops
from vococache.model.scratch import llava_7b
from vococache.model.training_costs import (
    STATE_BYTES,
    TrainingStep,
    activation_bytes,
    parameters,
    step_flops,
    waiting_gradient_values,
)

RECIPES = Path(__file__).parent.parent / "pipeline/training/recipes"
GPUS, RATE, SHARE = 8, 312e12, 0.4  # A100 in bfloat16; 40% is what trainings of this size report

# A LLaVA-1.5 mix of 665,000 conversations; 178,000 long captions of LLaVA-Video-178K (in place of the paper's WebVid,
# of which it does not say how many) and 100,000 questions of Video-ChatGPT. Segments and tokens of a row, tokens that
# are labelled.
STAGES = {
    "vicuna-7b-compress": {"rows": 665_000, "segments": 1, "text": 300, "labels": 150},
    "vicuna-7b-temporal": {"rows": 278_000, "segments": 32, "text": 300, "labels": 250},
}


def main() -> None:
    table: list[tuple[object, ...]] = [
        (
            "", "PFLOPs a step", "steps", "hours", "weights, gradients, AdamW", "waiting gradients", "activations",
            "without checkpointing",
        )
    ]  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    config = llava_7b(2)
    counts = parameters(config)
    states = STATE_BYTES * (sum(counts.values()) - counts["vision_tower"]) + 4 * counts["vision_tower"]
    for name, data in STAGES.items():
        trainer = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["trainer"]
        rows = trainer["per_device_train_batch_size"]
        accumulated = trainer.get("gradient_accumulation_steps", 1)
        segments, labels = rows * data["segments"], rows * data["labels"]
        step = TrainingStep(segments=segments, rows=rows, text=data["text"], labels=labels)
        flops = accumulated * GPUS * step_flops(config, step, checkpointing=True)
        steps = data["rows"] * trainer["num_train_epochs"] / (rows * accumulated * GPUS)
        sizes = {
            "state_bytes": states / GPUS,
            "waiting_bytes": 2 * waiting_gradient_values(config),
            "activation_bytes": activation_bytes(config, step, checkpointing=True, bytes_per_value=2),
            "unchecked_activation_bytes": activation_bytes(config, step, checkpointing=False, bytes_per_value=2),
        }
        found[name] = {"flops": flops, "steps": steps, "hours": hours(steps * flops), **sizes}
        in_gigabytes = (f"{size / 1e9:.0f} GB" for size in sizes.values())
        table.append((name, f"{flops / 1e15:.0f}", f"{steps:.0f}", f"{hours(steps * flops):.0f}", *in_gigabytes))
    # From a store: each video is compressed once, and the reader's steps see its cache.
    videos = STAGES["vicuna-7b-temporal"]
    once = videos["rows"] * videos["segments"] * compress_flops(config).total
    reading = read_flops(config, entries=videos["segments"] * 2, tokens=videos["text"], logits=videos["labels"])
    for name, flops in (("ingest", once), ("vicuna-7b-temporal-reader", 4 * videos["rows"] * reading.total)):
        found[name] = {"hours": hours(flops)}
        table.append((name, "", "", f"{hours(flops):.1f}"))
    report("recipe", table, {"gpus": GPUS, "share_of_rate": SHARE, "found": found})


def hours(flops: float) -> float:
    """On all GPUs together."""
    return flops / (GPUS * RATE * SHARE) / 3600


if __name__ == "__main__":
    main()
