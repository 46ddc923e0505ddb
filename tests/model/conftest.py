"""Tiny random models, and the reference they are held to: one masked forward of the stock Hugging Face decoder.

Letters: T segments, K VoCo tokens of each, L length of the one sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.families import MEDIUM, build_family
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from vococache.model.config import PromptPieces, VoCoConfig
from vococache.model.foreign import CLIP_MEAN, CLIP_STD
from vococache.model.images import FrameGeometry
from vococache.model.parts import part_config
from vococache.model.voco import VoCoModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
VOCABULARY = 48
VOCO_ID = 47


def text_config(family: str, rope: str = "default", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_theta": 1000.0, **ROPE[rope]},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "mistral":
        settings["sliding_window"] = None
    if family == "qwen2":
        del settings["head_dim"]  # Qwen2 derives it
    return part_config({"model_type": family, **settings, **changes})


def vision_config(tower: str, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 4,
    }
    return part_config({"model_type": f"{tower}_vision_model", **settings, **changes})


def make_config(
    family: str = "llama",
    *,
    rope: str = "default",
    tower: str = "clip",
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **changes: Any,
) -> VoCoConfig:
    seen = vision_config(tower, **(vision or {}))
    settings: dict[str, Any] = {
        "text": text_config(family, rope, **(text or {})),
        "vision": seen,
        "voco_token_id": VOCO_ID,
        "prompt": PromptPieces(bos_id=1, newline_ids=(5, 6), text_newline_ids=(6,), stop_ids=(2,)),
        "geometry": FrameGeometry(size=seen.image_size),
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "num_voco_tokens": 3,
    }
    return VoCoConfig(**(settings | changes))


def fill(model: nn.Module, seed: int) -> None:
    """Weights large enough that attention is far from uniform, norms that scale and biases that shift."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3, generator=generator)
            elif weight.dim() == 1 and "class_embedding" not in name:  # a norm
                weight.normal_(1, 0.2, generator=generator)
            elif "embed" in name:
                weight.normal_(0, 1, generator=generator)
            else:
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5, generator=generator)


@dataclass(frozen=True)
class Kit:
    """Builders for the tests (they cannot import each other's modules)."""

    families = FAMILIES
    rope_types = tuple(ROPE)
    config = staticmethod(make_config)
    text_config = staticmethod(text_config)
    vision_config = staticmethod(vision_config)
    fill = staticmethod(fill)

    def model(self, family: str = "llama", *, seed: int = 0, **config: Any) -> VoCoModel:
        return self.build(make_config(family, **config), seed)

    def build(self, config: VoCoConfig, seed: int = 0) -> VoCoModel:
        model = VoCoModel(config)
        fill(model, seed)
        return model.eval().requires_grad_(False)

    def pixels(self, config: VoCoConfig, segments: int = 1, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = config.geometry.size
        return torch.randn(segments, config.frames_per_segment, 3, size, size, generator=generator)

    def ids(self, *lengths: int, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(3, VOCO_ID, (length,), generator=generator) for length in lengths]

    def stock(self, model: VoCoModel) -> Any:
        """The stock Hugging Face decoder with the weights of `model`, in its dtype, eager attention."""
        config = model.config.text.transformers()
        config._attn_implementation = "eager"
        stock = AutoModelForCausalLM.from_config(config)
        state = {
            name.replace("language_model.", "model."): weight
            for name, weight in model.state_dict().items()
            if name.startswith(("language_model.", "lm_head."))
        }
        rope = stock.model.rotary_emb
        stock.load_state_dict(state)
        stock = stock.to(model.dtype).eval()
        stock.model.rotary_emb = rope  # its frequencies stay float32, as `from_pretrained` leaves them
        return stock

    def one_sequence(
        self, model: VoCoModel, stock: Any, pixels: Tensor, text: Tensor, leak: Callable[..., None] | None = None
    ) -> Tensor:
        """Logits [N, V] of `text` behind the T segments of `pixels`, from a single masked forward.

        One row: every segment's stage 1, then the text. A segment sees itself; the text sees VoCo tokens. VoCo
        tokens of segment t stand at positions t * K.. and the text from T * K (all shifted by the same number,
        because vision tokens stand before them). `leak(mask, vision, voco)` may spoil the mask.
        """
        stage1 = model.stage1_embeddings(pixels, model.config.num_voco_tokens)
        segments, length = stage1.shape[:2]
        tokens = model.config.num_voco_tokens
        sequence = torch.cat((stage1.flatten(0, 1), model.language_model.embed_tokens(text)))[None]
        segment = torch.arange(segments).repeat_interleave(length)
        within = torch.arange(length).repeat(segments)
        voco = torch.cat((within >= length - tokens, torch.zeros(len(text), dtype=torch.bool)))
        owner = torch.cat((segment, torch.full((len(text),), -1)))
        mask = (owner[:, None] == owner[None, :]) | ((owner[:, None] == -1) & voco[None, :])
        mask = mask.tril()
        if leak is not None:
            leak(mask, segments * length, voco)
        positions = torch.cat(
            (segment * tokens + within, segments * tokens + length - tokens + torch.arange(len(text)))
        )
        out = stock(
            inputs_embeds=sequence,
            attention_mask=torch.zeros(mask.shape, dtype=sequence.dtype).masked_fill(
                ~mask, torch.finfo(sequence.dtype).min
            )[None, None],
            position_ids=positions[None],
            use_cache=False,
        )
        logits: Tensor = out.logits[0, segments * length :]
        return logits


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "data" / "golden_a"


@pytest.fixture(scope="session")
def config_with() -> Callable[..., Any]:
    """`dataclasses.replace`: a config with other values."""
    return replace


@pytest.fixture
def make(kit: Kit, tmp_path: Path) -> Callable[..., Any]:
    """Build a family's stock model in a folder of the test's."""
    return partial(build_family, kit, tmp_path)


@pytest.fixture
def inputs(kit: Kit) -> Callable[..., tuple[Tensor, Tensor]]:
    """Draw pixels for a family's model, and ids of a text that names no medium."""

    def draw(model: VoCoModel, segments: int = 1, length: int = 7) -> tuple[Tensor, Tensor]:
        return kit.pixels(model.config, segments), kit.ids(length)[0].clamp(max=MEDIUM - 2)

    return draw
