"""How a frame becomes vision tokens: the tower's layers, then the family's connector, by its own video path.

Towers and connectors are Transformers' own modules. LLaVA-NeXT has no video path; a frame is its base view. SmolVLM,
Idefics3 and InternVL take a frame as one tile.

Letters: N frames, n vision tokens of each, W vision width, E hidden size.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.model import decoder
from vococache.model.config import VoCoConfig


def build_tower(config: VoCoConfig) -> Any:
    """The vision tower, without what lies behind the feature and is never used."""
    from transformers import AutoModel  # seconds, which a model that only reads caches does without

    build: Any = AutoModel.from_config
    # Not in the dtype that a checkpoint's config may name.
    tower = build(config.vision.transformers(), dtype=torch.get_default_dtype())
    for name in behind_the_feature(config):
        if name.endswith(".") and hasattr(tower, name[:-1]):
            setattr(tower, name[:-1], nn.Identity())
    return tower


def behind_the_feature(config: VoCoConfig) -> tuple[str, ...]:
    """How the names of a tower's weights begin that its features do not need; a module's with its dot."""
    if config.vision.model_type in ("clip_vision_model", "siglip_vision_model"):
        return ("post_layernorm.", "head.")
    if config.vision.model_type == "internvl_vision":
        masked = () if config.vision.use_mask_token else ("embeddings.mask_token",)
        return masked if config.connector["vision_feature_layer"] == -1 else (*masked, "layernorm.")
    return ()


def frame_features(config: VoCoConfig, tower: Any, pixels: Tensor, *, recompute: bool = False) -> Tensor:
    """Pixels [N, 3, H, W] as the tower's patch features [N, patches, W]; no layer behind them is run."""
    kind = config.vision.model_type
    if kind in ("idefics3_vision", "smolvlm_vision"):
        shape = (len(pixels), config.patches_per_side, config.patches_per_side)
        x = tower.embeddings(pixels, patch_attention_mask=torch.ones(shape, dtype=torch.bool, device=pixels.device))
        for layer in tower.encoder.layers:
            x = decoder.call(layer, x, None, recompute=recompute)
        out: Tensor = tower.post_layernorm(x)
        return out
    x = tower.embeddings(pixels)
    if kind == "internvl_vision":
        for layer in tower.encoder.layer:
            x = decoder.call(layer, x, recompute=recompute)
        return tower.layernorm(x)[:, 1:]  # type: ignore[no-any-return]
    if kind == "clip_vision_model":
        x = tower.pre_layrnorm(x)
    for layer in tower.encoder.layers:
        x = decoder.call(layer, x, None, recompute=recompute)
    return x[:, 1:] if config.has_class_token else x  # type: ignore[no-any-return]


def build_projector(config: VoCoConfig) -> nn.Module:
    """The connector: features [N, patches, W] in, vision tokens [N, n, E] out."""
    width, size = config.vision.hidden_size, config.text.hidden_size
    if config.family != "llava":
        from vococache.model.connectors import CONNECTORS  # the families' own code: a second, for these alone

        settings = SimpleNamespace(vision_config=config.vision, text_config=config.text, **config.connector)
        connector: nn.Module = CONNECTORS[config.family](settings)
        return connector
    bias = bool(config.connector.get("multimodal_projector_bias", True))
    if config.projector == "linear":
        return nn.Sequential(nn.Linear(width, size, bias=bias))
    return nn.Sequential(nn.Linear(width, size, bias=bias), nn.GELU(), nn.Linear(size, size, bias=bias))


def as_grid(tokens: Tensor) -> Tensor:
    """[N, rows * rows, E] as [N, rows, rows, E]."""
    rows = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), rows, rows, tokens.shape[2])


def halved(tokens: Tensor) -> Tensor:
    """A frame's tokens [N, rows * rows, E] as half the rows and columns, rounded up, bilinearly."""
    grid = as_grid(tokens).permute(0, 3, 1, 2)
    half = -(-grid.shape[2] // 2)
    return F.interpolate(grid, size=(half, half), mode="bilinear").flatten(2).transpose(1, 2)


def pooled(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """A frame's tokens [N, rows * rows, E] as the means of the cells of a smaller grid."""
    return F.adaptive_avg_pool2d(as_grid(tokens).permute(0, 3, 1, 2), grid).flatten(2).transpose(1, 2)
