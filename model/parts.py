"""The configs of a model's decoder and tower: what Transformers' own classes write of them, as plain values.

Those classes know defaults and the names of older versions, and say what is malformed. They also take seconds to
import, so what we stored ourselves, complete, is read without them.
"""

import copy
import json
from types import SimpleNamespace
from typing import Any

from vococache.errors import ModelError

TEXT_TYPES = ("llama", "mistral", "qwen2", "qwen3")
VISION_TYPES = ("clip_vision_model", "siglip_vision_model", "idefics3_vision", "smolvlm_vision", "internvl_vision")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# What a decoder is built from, and its kind.
_DECODER: dict[str, type] = {
    "vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int,
    "num_attention_heads": int, "num_key_value_heads": int, "max_position_embeddings": int, "hidden_act": str,
    "rms_norm_eps": float, "rope_parameters": dict, "tie_word_embeddings": bool,
}  # fmt: skip


# How older versions say what is in `rope_parameters` now.
_OLDER = {"rope_theta", "rope_scaling", "partial_rotary_factor"}


class PartConfig(SimpleNamespace):
    """A decoder's or a tower's config, each entry an attribute, named as Transformers names it."""

    model_type: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return copy.deepcopy(vars(self))

    def transformers(self) -> Any:
        """The same as an object of Transformers' own class."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type].from_dict(self.to_dict())


def part_config(data: dict[str, Any]) -> PartConfig:
    """The config of a decoder or a tower from its dictionary, without remote code; what is left out has its default.

    Raises `ModelError` for other architectures and malformed entries.
    """
    model_type = data.get("model_type", "")
    if model_type not in (*TEXT_TYPES, *VISION_TYPES):
        raise ModelError(f"architecture {model_type!r} is not supported; expected one of {TEXT_TYPES + VISION_TYPES}")
    try:
        found = PartConfig(**data).transformers().to_dict()
    except Exception as error:  # whatever the validation of the installed transformers raises
        raise ModelError(f"the config of the {model_type!r} is malformed: {' '.join(str(error).split())}") from None
    return PartConfig(**json.loads(json.dumps(found)))


def stored_part(data: dict[str, Any]) -> PartConfig:
    """The inverse of `PartConfig.to_dict`. Raises `ModelError`, as `part_config` does, where the entries are others."""
    is_ours = "transformers_version" in data and data.get("model_type") in (*TEXT_TYPES, *VISION_TYPES)
    if data.get("model_type") in TEXT_TYPES:
        is_ours = is_ours and all(isinstance(data.get(name), kind) for name, kind in _DECODER.items())
        # Other kinds have parameters of their own, which Transformers checks.
        is_ours = is_ours and data["rope_parameters"].get("rope_type") == "default" and not _OLDER & data.keys()
    return PartConfig(**copy.deepcopy(data)) if is_ours else part_config(data)


def head_dim(text: PartConfig) -> int:
    """Size of an attention head: D."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def sliding_window(text: PartConfig) -> int | None:
    """The decoder's sliding window in positions, or None where every layer sees everything."""
    if getattr(text, "use_sliding_window", True) is False:
        return None
    window = getattr(text, "sliding_window", None)
    return int(window) if window else None


def check_text_config(text: PartConfig) -> None:
    """Refuse, by name, a decoder whose cached keys could not be placed exactly (docs/design/0004-two-stages.md)."""
    if text.model_type not in TEXT_TYPES:
        raise ModelError(f"decoder {text.model_type!r} is not supported; expected one of {TEXT_TYPES}")
    rope = text.rope_parameters
    rope_type = rope.get("rope_type", "default") if "rope_theta" in rope else f"per layer {sorted(rope)}"
    if "mrope_section" in rope:
        rope_type = "mrope (multimodal)"
    if rope_type not in ROPE_TYPES:
        raise ModelError(f"RoPE type {rope_type!r} is not supported; expected one of {ROPE_TYPES}")
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"partial rotary (factor {rope['partial_rotary_factor']}) is not supported")
