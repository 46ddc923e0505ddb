"""Saving VoCo models: folders that `load_model` reads."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from transformers import GenerationConfig

from vococache.errors import ModelError
from vococache.model.fingerprint import (
    compressor_fingerprint,
    compute_dtype,
    current_weights_digest,
    dtype_name,
    remember_digest,
)
from vococache.model.float8 import FLOAT8
from vococache.model.reader import own_weights
from vococache.model.voco import VoCoModel


def save_pretrained(model: VoCoModel, folder: str | Path, *, note: str | None = None) -> None:
    """Write `model` as a folder that `load_model` reads: config.json, safetensors, tokenizer, fingerprint."""
    if compute_dtype(model) == FLOAT8:
        raise ModelError(f"model {model.name!r} is in float8, which is not saved: load it in another dtype")
    if model.vision_tower is None:
        raise ModelError(f"model {model.name!r} was loaded without its vision tower: there is no whole to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in own_weights(model.state_dict()).items()}
    save_torch_state_dict(state, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written private; a checkpoint is as readable as its folder
    if model.codec is not None:
        model.tokenizer.save_pretrained(folder)
    remember_digest(model, current_weights_digest(model))
    config = model.config.to_dict() | {
        "dtype": dtype_name(model.dtype),
        "fingerprint": compressor_fingerprint(model),
    }
    if note is not None:
        config["note"] = note
    prompt = model.config.prompt
    ends: Any = GenerationConfig  # has no types
    ends(bos_token_id=prompt.bos_id, eos_token_id=list(prompt.stop_ids)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
