"""The compressor fingerprint: a hash over everything that changes a cache's numbers.

Weights are hashed by value in float32, so the fingerprint does not depend on the dtype that a checkpoint is
stored in; the dtype that the compressor computes in is part of it, because that changes the numbers.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vococache.errors import ModelError
from vococache.model.config import VoCoConfig
from vococache.model.float8 import E4M3, FLOAT8
from vococache.model.voco import VoCoModel

EMBEDDING = "language_model.embed_tokens.weight"
SEEING = ("vision_tower.", "projector.")  # weights of what makes frames tokens
# What the last layer computes behind its keys and values never reaches a cache.
_BEHIND_LAST_KEYS = (
    "self_attn.q_proj",
    "self_attn.q_norm",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp",
)


def is_stage1(name: str, config: VoCoConfig) -> bool:
    """Does stage 1 use the weight of that name?"""
    if name.startswith(("lm_head.", "language_model.norm.", "reader.")):
        return False
    if name == "projector.newline":  # behind all tokens of a segment, where all are kept
        return config.untrained and config.compression == "full"
    last = f"language_model.layers.{config.layers - 1}."
    return not (name.startswith(last) and name.removeprefix(last).startswith(_BEHIND_LAST_KEYS))


def tensor_digest(name: str, tensor: Tensor, config: VoCoConfig) -> bytes:
    """sha256 of a weight's values; of the embedding, only the rows that stage 1 looks up."""
    if name == EMBEDDING:
        tensor = tensor[looked_up(config)]
    return _values_digest(name, tensor)


def looked_up(config: VoCoConfig) -> list[int]:
    """The ids whose embeddings stage 1 looks up."""
    if config.untrained or config.voco_token_id is None:
        return list(config.stage1_ids)
    return [*config.stage1_ids, config.voco_token_id]


def _values_digest(name: str, tensor: Tensor) -> bytes:
    values = tensor.detach().float().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def weights_digest(digests: Iterable[tuple[str, bytes]]) -> str:
    """One hex sha256 of all (name, `tensor_digest`), whatever their order."""
    return hashlib.sha256(b"".join(digest for _, digest in sorted(digests))).hexdigest()


def weights_sum(model: VoCoModel) -> int:
    """The sum of the bits that stage 1 uses, read as whole numbers: another one once a weight was changed in place.

    As fast as memory is read, where a digest is not: a loaded model's digest is taken for good while this stays.
    """
    rows, total = looked_up(model.config), 0
    for name, tensor in model.state_dict().items():
        if is_stage1(name, model.config):
            data = (tensor[rows] if name == EMBEDDING else tensor).contiguous().flatten().view(torch.uint8)
            data = data.clone() if data.storage_offset() % 8 else data
            whole = len(data) - len(data) % 8
            total += int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum())
    return total


def remember_digest(model: VoCoModel, digest: str) -> None:
    """Take `digest` for that of the model's weights as they are now; of shapes alone, for those they stand for."""
    model.weights_digest, model.weights_sum = digest, 0 if model.device.type == "meta" else weights_sum(model)


def current_weights_digest(model: VoCoModel) -> str:
    """The digest of the weights as the model holds them now (training changes them).

    Raises `ModelError` where it has not all of them.
    """
    if model.vision_tower is None:
        raise ModelError(f"model {model.name!r} was loaded without its vision tower: its weights have no digest")
    used = [(name, tensor) for name, tensor in model.state_dict().items() if is_stage1(name, model.config)]
    return weights_digest((name, tensor_digest(name, tensor, model.config)) for name, tensor in used)


def known_digest(model: VoCoModel) -> str | None:
    """The digest that was remembered, unless a weight has changed since; of shapes alone, what they were told."""
    if model.weights_digest is None or model.device.type == "meta":
        return model.weights_digest
    return model.weights_digest if model.weights_sum == weights_sum(model) else None


def model_digest(model: VoCoModel) -> str:
    """sha256, hex, over all weights that read, the reader's included: models of one digest read alike."""
    reading = ((name, tensor) for name, tensor in model.state_dict().items() if not name.startswith(SEEING))
    return weights_digest((name, _values_digest(name, tensor)) for name, tensor in reading)


def compressor_fingerprint(model: VoCoModel, *, config: VoCoConfig | None = None, dtype: str | None = None) -> str:
    """sha256, hex, over weights, architecture, prompt pieces, preprocessing, K, frames and compute dtype.

    `config`, `dtype`: as if the model compressed with those (by default its own). What only the reader uses
    (the question's template, stop ids, the output projection) is left out: a new reader may read old caches.
    """
    config = config or model.config
    settings = {
        "weights": known_digest(model) or current_weights_digest(model),
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
        "dtype": dtype or compute_dtype(model),
    }
    # Named only where they differ from what all models were at first: older stores keep their fingerprints.
    if config.family != "llava" or config.connector:
        settings |= {"family": config.family, "connector": config.connector}
    if config.untrained:
        prompt = config.prompt
        settings |= {
            "compression": config.compression, "prefix_ids": prompt.prefix_ids, "between_ids": prompt.between_ids,
            "bos_id": None, "newline_ids": (), "voco_token_id": None,
        }  # fmt: skip
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def compute_dtype(model: VoCoModel) -> str:
    """What the compressor computes in, by name; "float8" where its decoder's matrix products do."""
    first: Any = model.language_model.layers[0]
    return FLOAT8 if first.self_attn.k_proj.weight.dtype == E4M3 else dtype_name(model.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


def _numeric(hf_config: dict[str, object]) -> dict[str, object]:
    """The entries of a Hugging Face config that decide numbers: not names, versions or training settings."""
    deciding = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_parameters",
        "image_size", "patch_size", "num_channels", "attention_bias", "mlp_bias",
        "norm_type", "use_qk_norm", "use_mean_pooling",
    )  # fmt: skip
    return {key: hf_config[key] for key in deciding if key in hf_config}
