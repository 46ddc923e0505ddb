"""What the recipes for real checkpoints take, by the formulas of `model/training_costs.py`. Nothing is run.

`python benchmarks/recipe.py`. What learns, batch sizes and epochs are those of `pipeline/training/recipes/`; shapes of
the checkpoints, rows of data, frames and lengths of texts and cards are the assumptions below; the share of a card's
rate is what an H100 reached (docs/results/2026-11-efficiency.md).
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import report
from transformers import LlamaConfig, Qwen2Config

from vococache.model.adapter import add_adapter
from vococache.model.checkpoints import build, read_layout
from vococache.model.config import VoCoConfig
from vococache.model.costs import compress_flops, read_flops
from vococache.model.scratch import llava_7b
from vococache.model.training_costs import TrainingStep, activation_bytes, step_flops, waiting_gradient_values
from vococache.model.voco import VoCoModel
from vococache.pipeline.training.dry_run import SHARE, state_bytes
from vococache.pipeline.training.settings import TrainSettings, read_settings

RECIPES = Path(__file__).parent.parent / "pipeline/training/recipes"
COMPRESS_SHARE = 0.59  # of a maker's rate, what stage 1 alone reached at 7B's shape


@dataclass(frozen=True)
class Card:
    """Makers' figures: dense bfloat16 with sums in float32."""

    name: str
    rate: float


A100, RTX4090, RTX4070 = Card("A100 80 GB", 312e12), Card("RTX 4090 24 GB", 165e12), Card("RTX 4070 12 GB", 58e12)

# A LLaVA-1.5 mix of 665,000 conversations; 178,000 long captions of LLaVA-Video-178K (in place of the paper's WebVid,
# of which it does not say how many) and 100,000 questions of Video-ChatGPT. Segments and tokens of a row, tokens that
# are labelled.
PICTURES = {"rows": 665_000, "segments": 1, "text": 300, "labels": 150}
VIDEOS = {"rows": 278_000, "segments": 32, "text": 300, "labels": 250}
BATCHES = {"trainer.per_device_train_batch_size": "4", "trainer.gradient_accumulation_steps": "32"}
SMALLER = {"load_in_4bit": "true"} | BATCHES
RUNS: list[tuple[str, dict[str, str], Card, int, dict[str, int]]] = [
    ("smolvlm2-500m-compress", {}, RTX4070, 1, PICTURES),
    ("onevision-0.5b-compress", {}, RTX4090, 1, PICTURES),
    ("vicuna-7b-lora-compress", {}, A100, 1, PICTURES),
    ("vicuna-7b-lora-compress", SMALLER, RTX4090, 1, PICTURES),
    ("vicuna-7b-compress", {}, A100, 8, PICTURES),
    ("vicuna-7b-temporal", {}, A100, 8, VIDEOS),
]  # fmt: skip

# As published, what their folders say of shapes.
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
          "num_attention_heads": 16, "image_size": 384, "patch_size": 14}  # fmt: skip
ONEVISION = {
    "model_type": "llava_onevision", "image_token_index": 151646, "video_token_index": 151647,
    "vision_feature_layer": -1, "vision_config": SIGLIP | {"vision_use_head": False}, "tie_word_embeddings": True,
    "text_config": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=152_000, max_position_embeddings=32_768, tie_word_embeddings=True,
    ).to_dict(),
}  # fmt: skip
SMOLVLM2 = {
    "model_type": "smolvlm", "image_token_id": 49_190, "scale_factor": 4, "tie_word_embeddings": False,
    "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                      "image_size": 512, "patch_size": 16},
    "text_config": LlamaConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5,
        vocab_size=49_280, max_position_embeddings=8192, head_dim=64,
    ).to_dict(),
}  # fmt: skip


def main() -> None:
    table: list[tuple[object, ...]] = [
        (
            "", "cards", "PFLOPs a step", "steps", "hours", "weights, gradients, AdamW", "waiting gradients",
            "activations", "without checkpointing",
        )
    ]  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, changes, card, cards, data in RUNS:
        settings = read_settings(RECIPES / f"{name}.yaml", changes)
        model = shapes(settings)
        config, trainer = model.config, settings.trainer
        rows, accumulated = trainer["per_device_train_batch_size"], trainer.get("gradient_accumulation_steps", 1)
        step = TrainingStep(
            segments=rows * data["segments"], rows=rows, text=data["text"], labels=rows * data["labels"]
        )
        adapters = settings.lora is not None
        flops = accumulated * cards * step_flops(config, step, checkpointing=True, adapters=adapters)
        steps = data["rows"] * trainer["num_train_epochs"] / (rows * accumulated * cards)
        sizes = {
            "state_bytes": state_bytes(model, in_4bit=settings.load_in_4bit) / (cards if trainer.get("fsdp") else 1),
            "waiting_bytes": 0 if adapters else 2 * waiting_gradient_values(config),
            "activation_bytes": activation_bytes(config, step, checkpointing=True, bytes_per_value=2),
            "unchecked_activation_bytes": activation_bytes(config, step, checkpointing=False, bytes_per_value=2),
        }
        hours = steps * flops / (cards * card.rate * SHARE) / 3600
        found.append({"recipe": name, "changes": changes, "hours": hours, **sizes})
        in_gigabytes = (f"{size / 1e9:.1f} GB" for size in sizes.values())
        where = f"{cards} x {card.name}{', 4 bits' if settings.load_in_4bit else ''}"
        table.append((name, where, f"{flops / 1e15:.2g}", f"{steps:.0f}", f"{hours:.3g}", *in_gigabytes))
    # From a store: each video is compressed once, and the reader's steps see its cache.
    config = llava_7b(2)
    once = VIDEOS["rows"] * VIDEOS["segments"] * compress_flops(config).total
    reading = read_flops(config, entries=VIDEOS["segments"] * 2, tokens=VIDEOS["text"], logits=VIDEOS["labels"])
    for name, flops, share in (
        ("ingest", once, COMPRESS_SHARE),
        ("vicuna-7b-temporal-reader", 4 * VIDEOS["rows"] * reading.total, SHARE),
    ):
        hours = flops / (8 * A100.rate * share) / 3600
        found.append({"recipe": name, "hours": hours})
        table.append((name, f"8 x {A100.name}", "", "", f"{hours:.3g}"))
    report("recipe", table, {"share_of_rate": SHARE, "share_of_rate_compress": COMPRESS_SHARE, "found": found})


def shapes(settings: TrainSettings) -> VoCoModel:
    """The recipe's model on the meta device, what learns in it marked."""
    published = {"onevision": ONEVISION, "SmolVLM2": SMOLVLM2}
    data = next((data for name, data in published.items() if name in settings.model), None)
    with tempfile.TemporaryDirectory() as folder:
        config: VoCoConfig
        if data is None:
            config = llava_7b(2)
            layout: Any = None
            with torch.device("meta"):
                model = VoCoModel(config)
        else:
            (Path(folder) / "config.json").write_text(json.dumps(data))
            layout = read_layout(Path(folder), "voco")
            config = layout.config.with_voco(tokens=settings.voco_tokens)
            model = build(layout, config, Path(folder), torch.float32, torch.device("meta"))
    model.requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    if settings.lora is not None:
        model.to(torch.bfloat16)
        add_adapter(model, settings.lora.given())
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name or name.startswith("projector."))
    return model


if __name__ == "__main__":
    main()
