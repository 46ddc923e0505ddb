"""Where training may start: a family's checkpoint without VoCo tokens, or parts put together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from vococache.errors import InputError
from vococache.model.checkpoints import load_model
from vococache.model.scratch import byte_tokenizer
from vococache.pipeline.training.job import train

SIDE = 60


def text(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A tiny random SmolVLM with a tokenizer that does not know `<voco>`."""
    tokenizer = byte_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": 10}  # fmt: skip
    config = SmolVLMConfig(vision_config=vision, text_config=text(tokenizer).to_dict(), scale_factor=2)
    SmolVLMForConditionalGeneration(config).save_pretrained(tmp_path / "family")
    tokenizer.save_pretrained(tmp_path / "family")
    return tmp_path / "family"


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny text-only decoder with a tokenizer, and a tower."""
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(text(tokenizer)).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                              image_size=SIDE, patch_size=10)  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(tmp_path / "tower")
    return tmp_path / "decoder", tmp_path / "tower"


def check_trained(out: Path, before: torch.nn.Module) -> None:
    """The result is a checkpoint with VoCo tokens; what was to learn has, the tower has not."""
    model = load_model(out / "model", device="cpu")
    assert (model.config.compression, model.config.prompt.prefix_ids) == ("voco", None)
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(before.state_dict()[name])}
    assert any(name.startswith("projector.") for name in moved)
    assert any(name.startswith("language_model.") for name in moved)
    assert not any(name.startswith("vision_tower.") for name in moved)


def test_a_familys_checkpoint(settings: Any, family: Path, tmp_path: Path) -> None:
    run = settings({"max_steps": 2}, model=str(family), from_scratch=False, train=("projector", "language_model"))
    train(run, tmp_path / "out")
    check_trained(tmp_path / "out", load_model(family, compression="voco", device="cpu"))


def test_parts_put_together(settings: Any, parts: tuple[Path, Path], tmp_path: Path) -> None:
    from vococache.model.compose import compose

    decoder, tower = parts
    run = settings(
        {"max_steps": 2}, model=str(decoder), compose={"tower": str(tower)}, from_scratch=False,
        train=("projector", "language_model"),
    )  # fmt: skip
    train(run, tmp_path / "out")
    check_trained(tmp_path / "out", compose(decoder, tower, device="cpu"))


def test_what_parts_are_not_is_refused(settings: Any, parts: tuple[Path, Path], tmp_path: Path) -> None:
    run = settings(model=str(parts[0]), compose={"eyes": str(parts[1])}, from_scratch=False)
    with pytest.raises(InputError, match="`compose` takes tower, projector and feature_layer"):
        train(run, tmp_path / "out")
