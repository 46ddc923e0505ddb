"""A folder to train from scratch from, and settings that take seconds."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.stages import fill_store
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from vococache.model.scratch import byte_tokenizer, small_config
from vococache.pipeline.synthetic.render import write_clip
from vococache.pipeline.synthetic.scene import make_scene
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import TrainSettings

SIDE = 60  # pixels of a picture


@pytest.fixture(scope="session", autouse=True)
def little_garbage() -> Iterator[None]:
    """Each run of the Trainer collects garbage: not also among what stood here before any run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with its config and tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("blank")
    words = [f"is there a {colour} object? left right above below" for colour in ("red", "green", "blue")]
    tokenizer = byte_tokenizer(words * 10, 320)
    config = small_config(tokenizer, width=32, layers=2, heads=2, size=60, tower_layers=1)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(blank: Path) -> Any:
    """Make settings of a short run; keyword arguments change them, `trainer` those of the Trainer."""

    def make(trainer: dict[str, Any] | None = None, **changes: Any) -> TrainSettings:
        short = {
            "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
            "warmup_steps": 2, "logging_steps": 1, "save_steps": 6, "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        defaults: dict[str, Any] = {
            "model": str(blank),
            "from_scratch": True,
            "data": ({"synthetic": "train", "count": 96, "asked": 3, "still": True},),
            "train": ("vision_tower", "projector", "language_model"),
        }
        return TrainSettings(**defaults | changes, trainer=short | (trainer or {}))

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, blank: Path) -> tuple[Path, Path, Path]:
    """(model folder, store, conversations about its videos); the videos themselves are gone."""
    root = tmp_path_factory.mktemp("corpus")
    settings = TrainSettings(
        model=str(blank), from_scratch=True, data=({"synthetic": "train", "count": 8, "asked": 1, "still": True},),
        trainer={"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": []},
    )  # fmt: skip
    train(settings, root / "start")
    (root / "videos").mkdir()
    names = [f"clip{number}" for number in range(3)]
    clips = {
        name: write_clip(make_scene(f"train {number}"), root / f"videos/{name}.mp4")
        for number, name in enumerate(names)
    }
    rows = [
        {"video": f"{name}.mp4", "question": f"which one is it, {number}?", "answer": "red left"}
        for number, name in enumerate(names)
    ]
    rows.append({"video": "gone.mp4", "question": "where is it?", "answer": "nowhere"})
    fill_store(str(root / "store"), clips, fps=2.0, model=str(root / "start/model"))
    for path in clips.values():
        path.unlink()
    (root / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    return root / "start/model", root / "store", root / "rows.json"


def text(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SmolVLM with a tokenizer that does not know `<voco>`."""
    folder = tmp_path_factory.mktemp("family")
    tokenizer = byte_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": 10}  # fmt: skip
    config = SmolVLMConfig(vision_config=vision, text_config=text(tokenizer).to_dict(), scale_factor=2)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny text-only decoder with a tokenizer, and a tower."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(text(tokenizer)).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                              image_size=SIDE, patch_size=10)  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    return folder / "decoder", folder / "tower"


@pytest.fixture(scope="session")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA-OneVision with a tokenizer that does not know `<voco>`."""
    folder = tmp_path_factory.mktemp("onevision")
    tokenizer = byte_tokenizer()
    vision = SiglipVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                                image_size=SIDE, patch_size=10, vision_use_head=False)  # fmt: skip
    language = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(), text_config=language.to_dict(), image_token_index=1, video_token_index=0,
        vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
