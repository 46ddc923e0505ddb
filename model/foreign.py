"""Checkpoints of others in our terms: the official VoCo-LLaMA layout and LLaVA-1.5 in Hugging Face form."""

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from vococache.errors import ModelError
from vococache.model.config import PromptPieces, VoCoConfig, hf_config
from vococache.model.images import FrameGeometry

VOCO_TOKEN = "<voco>"
OFFICIAL_VOCO_ID = 32000
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_tokenizer(folder: Path, text: PretrainedConfig) -> Any:
    """The tokenizer beside the weights of a decoder `text`, or None. Never fetched, never remote code."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    try:
        # Nothing is downloaded, so there is no revision to pin.
        return AutoTokenizer.from_pretrained(  # nosec B615
            folder, config=text, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the tokenizer library raises
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from None


def official_config(folder: Path, data: dict[str, Any]) -> tuple[VoCoConfig, Any, Path | None]:
    """Config and tokenizer of an official VoCo-LLaMA folder, and its vision tower's folder if that has weights."""
    tower = data.get("mm_vision_tower") or data.get("vision_tower") or ""
    vision_folder = folder / tower if (folder / tower / "config.json").is_file() else Path(tower)
    if not tower or not (vision_folder / "config.json").is_file():
        raise ModelError(
            f"{folder} names its vision tower {tower!r}; expected a folder beside the weights or on disk:"
            " fetch it and set mm_vision_tower in config.json to its path"
        )
    if data.get("mm_vision_select_feature", "patch") != "patch":
        raise ModelError(f"vision feature {data['mm_vision_select_feature']!r} is not supported; expected 'patch'")
    vision = _vision_config(json.loads((vision_folder / "config.json").read_text()), data["mm_vision_select_layer"])
    text = hf_config(data | {"model_type": "llama"})
    tokenizer = load_tokenizer(folder, text)
    config = VoCoConfig(
        text=text,
        vision=vision,
        voco_token_id=OFFICIAL_VOCO_ID,
        projector=data.get("mm_projector_type", "linear"),
        prompt=_llama_prompt(text, tokenizer),
        **_preprocessing(vision_folder, vision.image_size, pad=data.get("image_aspect_ratio") == "pad"),
    )
    return config, tokenizer, vision_folder if any(vision_folder.glob("*.safetensors")) else None


def official_name(name: str) -> str | None:
    """Our name of an official weight."""
    name = name.removeprefix("base_model.")
    if name.startswith("model.vision_tower.vision_tower."):
        return vision_name(name.removeprefix("model.vision_tower.vision_tower."))
    if name.startswith("model.mm_projector."):
        return name.removeprefix("model.").replace("mm_projector.", "projector.")
    if "rotary_emb.inv_freq" in name:
        return None  # derived from the config
    return re.sub(r"^model\.", "language_model.", name)


def vision_name(name: str) -> str | None:
    """Our name of a weight of a stored CLIP or SigLIP tower (the text half of a whole CLIP is not used)."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_")):
        return None
    name = name.removeprefix("vision_model.")
    return None if name.endswith("position_ids") else f"vision_tower.{name}"


def llava_config(folder: Path, data: dict[str, Any]) -> tuple[VoCoConfig, Any, int]:
    """Config and tokenizer of a LLaVA-1.5 folder with `<voco>` added, and how many embedding rows that adds."""
    text = hf_config(data["text_config"])
    tokenizer = load_tokenizer(folder, text)
    layer = data.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ModelError(f"expected a LLaVA-1.5 model with one vision feature layer, found {layer}")
    vision = _vision_config(data["vision_config"], layer)
    # All patches in both cases: "default" drops the first token, which is CLIP's class token.
    expected = "default" if vision.model_type == "clip_vision_model" else "full"
    strategy = data.get("vision_feature_select_strategy", "default")
    if strategy != expected:
        raise ModelError(f"vision feature strategy {strategy!r} is not supported here; expected {expected!r}")
    if data.get("projector_hidden_act", "gelu") != "gelu":
        raise ModelError(f"projector activation {data['projector_hidden_act']!r} is not supported; expected 'gelu'")
    voco_id = text.vocab_size
    if tokenizer is not None:
        if VOCO_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([VOCO_TOKEN], special_tokens=True)
        voco_id = tokenizer.convert_tokens_to_ids(VOCO_TOKEN)
    new_rows = max(0, voco_id + 1 - text.vocab_size)
    text.vocab_size += new_rows
    text.tie_word_embeddings = bool(data.get("tie_word_embeddings", False))
    config = VoCoConfig(
        text=text,
        vision=vision,
        voco_token_id=voco_id,
        prompt=_llama_prompt(text, tokenizer),
        **_preprocessing(folder, vision.image_size, pad=True),
    )
    return config, tokenizer, new_rows


def llava_name(name: str) -> str | None:
    """Our name of a weight of a LLaVA-1.5 folder, as any transformers version wrote it."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return vision_name(name.removeprefix("vision_tower."))
    if name.startswith("multi_modal_projector."):
        layer = {"linear_1": "0", "linear_2": "2"}
        return re.sub(r"multi_modal_projector\.(linear_[12])", lambda m: f"projector.{layer[m.group(1)]}", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.model\.", "language_model.", name)


def _vision_config(data: dict[str, Any], feature_layer: int) -> PretrainedConfig:
    """A tower cut behind the layer whose output is the feature (-1: all layers, -2: all but one)."""
    if data.get("model_type") == "clip":
        data = data["vision_config"] | {"model_type": "clip_vision_model"}
    config = hf_config(data)
    depth = feature_layer if feature_layer >= 0 else config.num_hidden_layers + 1 + feature_layer
    if not 1 <= depth <= config.num_hidden_layers:
        raise ModelError(f"vision feature layer {feature_layer} of a tower of {config.num_hidden_layers} layers")
    config.num_hidden_layers = depth
    return config


def _preprocessing(folder: Path, image_size: int, *, pad: bool) -> dict[str, Any]:
    """Geometry, mean and std from a folder's preprocessor_config.json (CLIP's where there is none)."""
    path = folder / "preprocessor_config.json"
    data = json.loads(path.read_text()) if path.is_file() else {}
    mean = tuple(data.get("image_mean", CLIP_MEAN))
    red, green, blue = (int(value * 255) for value in mean)
    geometry = FrameGeometry(
        size=image_size,
        pad=pad,
        background=(red, green, blue),
        resample=data.get("resample", FrameGeometry(size=1).resample),
    )
    return {"geometry": geometry, "image_mean": mean, "image_std": tuple(data.get("image_std", CLIP_STD))}


def _llama_prompt(text: PretrainedConfig, tokenizer: Any) -> PromptPieces:
    """Prompt pieces of a Llama checkpoint; the newlines as its own tokenizer splits `<image>\\n<voco>\\n`."""
    stop = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    before, after = (29871, 13), (13,)  # the official vocabulary
    if tokenizer is not None and VOCO_TOKEN in tokenizer.get_vocab():
        ids = tokenizer.encode(f"\n{VOCO_TOKEN}\n", add_special_tokens=False)
        at = ids.index(tokenizer.convert_tokens_to_ids(VOCO_TOKEN))
        before, after = tuple(ids[:at]), tuple(ids[at + 1 :])
    return PromptPieces(
        bos_id=text.bos_token_id,
        newline_ids=before,
        text_newline_ids=after,
        stop_ids=tuple(token for token in stop if token is not None),
    )
