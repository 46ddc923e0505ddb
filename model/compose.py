"""A model put together: a text-only decoder, a vision tower and a projector, trained or new (LLaVA's own start)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vococache.model.checkpoints import Layout, build, locate, resolve_dtype
from vococache.model.config import VoCoConfig
from vococache.model.families import add_voco
from vococache.model.files import read_json
from vococache.model.foreign import (
    official_name,
    tower_preprocessing,
    vicuna_prompt,
    vision_config,
    vision_name,
)
from vococache.model.initialise import initialise
from vococache.model.parts import check_text_config, part_config
from vococache.model.prompts import text_prompt
from vococache.model.tokenizer import TextCodec, load_tokenizer
from vococache.model.vision import build_projector
from vococache.model.voco import VoCoModel


def compose(
    decoder: str | Path,
    tower: str | Path,
    projector: str | Path | None = None,
    *,
    feature_layer: int = -2,
    chat_template: str | None = None,
    newline_ids: Sequence[int] | None = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    hashed: bool = True,
) -> VoCoModel:
    """A model with VoCo tokens that knows no picture yet, unless its projector does.

    `decoder`, `tower`: folders or hub ids of a text model and of CLIP or SigLIP; `feature_layer`: whose output is the
    feature (-1: the last). `projector`: a folder with official `mm_projector` weights as safetensors (`voco convert`),
    by default new random ones of `seed`. `chat_template`: Jinja text instead of the decoder's own. `newline_ids` and
    `hashed` as `load_model`'s. Raises `ModelError` where the parts do not fit.
    """
    folder, name = locate(decoder)
    tower_folder, _ = locate(tower)
    text = part_config(read_json(folder / "config.json"))
    check_text_config(text)
    vision = vision_config(read_json(tower_folder / "config.json"), feature_layer)
    tokenizer = load_tokenizer(folder, text)
    voco_id, new_rows = add_voco(text, tokenizer)
    pieces = vicuna_prompt(text, tokenizer)
    if tokenizer is not None:
        pieces = text_prompt(folder, text, tokenizer, pieces, chat_template)
    if newline_ids is not None:
        pieces = replace(pieces, newline_ids=tuple(newline_ids))
    config = VoCoConfig(
        text=text, vision=vision, voco_token_id=voco_id, prompt=pieces,
        **tower_preprocessing(tower_folder, vision.image_size, pad=True),
    )  # fmt: skip
    config.check_stage1_ids()
    sources: list[Any] = [(tower_folder, vision_name), (folder, official_name)]
    extra: dict[str, Tensor] = {}
    if projector is None:
        fresh = build_projector(config)
        initialise(fresh, seed)
        extra = {f"projector.{part}": weight.detach() for part, weight in fresh.named_parameters()}
    else:
        sources.append((Path(projector), _projector_name))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layout = Layout(config, tuple(sources), TextCodec.of(tokenizer), new_rows, None if new_rows else voco_id, extra)
    model = build(layout, config, folder, resolve_dtype(dtype, where), where, hashed=hashed)
    model.name = name
    return model


def _projector_name(name: str) -> str | None:
    """Of a folder that may hold more, as a whole LLaVA, only the projector."""
    ours = official_name(name if name.startswith("model.") else f"model.{name}")
    return ours if ours is not None and ours.startswith("projector.") else None
