"""The compressor fingerprint: a hash over everything that changes a cache's numbers."""

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor

from vococache.model.voco import VoCoModel

# What the last layer computes behind its keys and values never reaches a cache.
_BEHIND_LAST_KEYS = ("self_attn.q_proj", "self_attn.q_norm", "self_attn.o_proj", "post_attention_layernorm", "mlp")


def stage1_weights(model: VoCoModel) -> Iterator[tuple[str, Tensor]]:
    """The weights that stage 1 uses, by name, in a fixed order."""
    last = f"language_model.layers.{model.config.layers - 1}."
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("lm_head.", "language_model.norm.", "language_model.embed_tokens.")):
            continue
        if name.startswith(last) and name.removeprefix(last).startswith(_BEHIND_LAST_KEYS):
            continue
        yield name, tensor
    config = model.config
    ids = [config.prompt.bos_id] if config.prompt.bos_id is not None else []
    ids += [*config.prompt.newline_ids, config.voco_token_id]
    yield "language_model.embed_tokens.rows", model.language_model.embed_tokens.weight[ids]


def compressor_fingerprint(model: VoCoModel) -> str:
    """sha256, hex, over weights, architecture, prompt pieces, preprocessing, K, frames and compute dtype.

    What only the reader uses (the question's template, stop ids, the output projection) is left out: a new
    reader may read old caches.
    """
    config = model.config
    settings = {
        "text": _numeric(config.text.to_dict()),
        "vision": _numeric(config.vision.to_dict()),
        "projector": config.projector,
        "bos_id": config.prompt.bos_id,
        "newline_ids": config.prompt.newline_ids,
        "voco_token_id": config.voco_token_id,
        "num_voco_tokens": config.num_voco_tokens,
        "frames_per_segment": config.frames_per_segment,
        "geometry": config.geometry.to_dict(),
        "image_mean": config.image_mean,
        "image_std": config.image_std,
        "dtype": str(model.dtype),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in stage1_weights(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _numeric(hf_config: dict[str, object]) -> dict[str, object]:
    """The entries of a Hugging Face config that decide numbers: not names, versions or training settings."""
    deciding = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_parameters",
        "image_size", "patch_size", "num_channels", "attention_bias", "mlp_bias",
    )  # fmt: skip
    return {key: hf_config[key] for key in deciding if key in hf_config}
