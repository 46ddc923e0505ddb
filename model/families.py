"""Trained vision-language models of others, from their Hugging Face folders, in our terms.

Their names and defaults are those of Transformers 4.36 to 5.x. Without VoCo tokens they compress untrained; with
`compression="voco"` a `<voco>` token is added: the start of training.
"""

import re
from pathlib import Path
from typing import Any

from vococache.errors import ModelError
from vococache.model.config import UNTRAINED, UNTRAINED_FRAMES, PromptPieces, VoCoConfig
from vococache.model.files import read_json
from vococache.model.foreign import (
    CLIP_MEAN,
    CLIP_STD,
    VOCO_TOKEN,
    vicuna_prompt,
    vision_config,
    vision_name,
)
from vococache.model.images import FrameGeometry
from vococache.model.parts import PartConfig, part_config
from vococache.model.prompts import chat_prompt, voco_prompt
from vococache.model.tokenizer import load_tokenizer

HALF = (0.5, 0.5, 0.5)
# Of each family: the text and vision types where a config leaves them out, its feature layer, and the settings of its
# connector with their defaults.
_MLP = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
FAMILIES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "llava": ("llama", "clip_vision_model", -2, {}),
    "llava_next": ("llama", "clip_vision_model", -2, {}),
    "llava_next_video": (
        "llama", "clip_vision_model", -2,
        _MLP | {"vision_feature_layer": -2, "spatial_pool_mode": "average", "spatial_pool_stride": 2},
    ),
    "llava_onevision": ("qwen2", "siglip_vision_model", -1, _MLP | {"vision_feature_layer": -1}),
    "idefics3": ("llama", "idefics3_vision", -1, {"scale_factor": 2}),
    "smolvlm": ("llama", "smolvlm_vision", -1, {"scale_factor": 2}),
    "internvl": (
        "qwen2", "internvl_vision", -1,
        {"downsample_ratio": 0.5, "projector_hidden_act": "gelu", "vision_feature_layer": -1},
    ),
}  # fmt: skip


def family_config(
    folder: Path, data: dict[str, Any], kind: str | None, stored: set[str], chat_template: str | None = None
) -> tuple[VoCoConfig, Any, int]:
    """Config and tokenizer of a family's folder, and how many embedding rows `<voco>` adds (0 without).

    `kind`: the compression wanted; None is "voco" where the tokenizer knows `<voco>`, else "cover". `stored`: the names
    of the weights. `chat_template`: instead of the folder's own.
    """
    family = data["model_type"]
    text_type, vision_type, layer, defaults = FAMILIES[family]
    text = _text({"model_type": text_type} | data["text_config"])
    # Whatever a config says: an output projection that is stored counts, as in Transformers 5.
    text.tie_word_embeddings = not any(name.endswith("lm_head.weight") for name in stored)
    tokenizer = load_tokenizer(folder, text)
    vision = _vision(
        family, {"model_type": vision_type} | data["vision_config"], data.get("vision_feature_layer", layer)
    )
    _check_features(family, data, vision)
    connector = {name: data.get(name, value) for name, value in defaults.items()}
    if family in ("llava", "llava_next") and not data.get("multimodal_projector_bias", True):
        connector = {"multimodal_projector_bias": False}
    known = tokenizer is not None and VOCO_TOKEN in tokenizer.get_vocab()
    kind = kind or ("voco" if known else "cover")
    untrained = kind in UNTRAINED
    voco_id, new_rows = (None, 0) if untrained else add_voco(text, tokenizer)
    own = chat_prompt if untrained else _voco_prompt
    config = VoCoConfig(
        text=text,
        vision=vision,
        voco_token_id=voco_id,
        prompt=own(folder, data, text, tokenizer, chat_template),
        family="llava" if family == "llava_next" else family,
        connector=connector,
        compression="cover" if untrained else "voco",
        num_voco_tokens=1 if untrained else 2,
        **preprocessing(folder, data, vision, untrained),
    )
    return config.compressing("cover", frames=UNTRAINED_FRAMES) if untrained else config, tokenizer, new_rows


def family_name(name: str) -> str | None:
    """Our name of a weight of a family's folder, as any Transformers version wrote it; None where it is not used."""
    name = name.removeprefix("model.")
    name = re.sub(r"^text_model\.", "language_model.", name)  # SmolVLM, Idefics3
    if name.startswith(("vision_tower.", "vision_model.")):
        return vision_name(name.removeprefix("vision_tower."))
    if name.startswith("multi_modal_projector."):
        return name.replace("multi_modal_projector.", "projector.")
    if name.startswith("connector."):
        return name.replace("connector.", "projector.")
    if name.startswith("vision_resampler."):
        return name.replace("vision_resampler.", "projector.pooler.")
    if name == "image_newline":
        return "projector.newline"
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.model\.", "language_model.", name)


def llava_name(name: str) -> str | None:
    """`family_name` for LLaVA-1.5 and LLaVA-NeXT, whose projector we keep under its first names."""
    ours = family_name(name)
    if ours == "projector.newline":
        return None  # of images cut into tiles, which a frame is not
    if ours is not None:
        ours = ours.replace("projector.linear_1.", "projector.0.").replace("projector.linear_2.", "projector.2.")
    return ours


def next_video_name(name: str) -> str | None:
    """`family_name` for LLaVA-NeXT-Video, whose videos have no newline."""
    ours = family_name(name)
    return None if ours == "projector.newline" else ours


def _text(data: dict[str, Any]) -> PartConfig:
    """The decoder's config; dynamic RoPE, which InternVL's have, as the default.

    It is the default up to `max_position_embeddings`, and more positions are never used.
    """
    for name in ("rope_scaling", "rope_parameters"):
        rope = data.get(name)
        if rope and rope.get("rope_type", rope.get("type")) == "dynamic":
            theta = rope.get("rope_theta", data.get("rope_theta", 10000.0))
            plain = {"rope_type": "default", "rope_theta": theta}
            data = {key: value for key, value in data.items() if key != name} | {"rope_parameters": plain}
    return part_config(data)


def _vision(family: str, data: dict[str, Any], layer: Any) -> PartConfig:
    if family in ("idefics3", "smolvlm"):
        data = data | {"model_type": FAMILIES[family][1]}  # some folders name the whole model
    if not isinstance(layer, int):
        raise ModelError(f"expected one vision feature layer, found {layer}")
    return vision_config(data, layer)


def _check_features(family: str, data: dict[str, Any], vision: PartConfig) -> None:
    if family in ("idefics3", "smolvlm"):
        return
    # All patches in both cases: "default" drops the first token, which is the class token of towers that have one.
    expected = "full" if vision.model_type == "siglip_vision_model" else "default"
    strategy = data.get("vision_feature_select_strategy", "full" if family == "llava_onevision" else "default")
    if strategy != expected:
        raise ModelError(f"vision feature strategy {strategy!r} is not supported here; expected {expected!r}")
    act = data.get("projector_hidden_act", "gelu")
    if family in ("llava", "llava_next") and act != "gelu":
        raise ModelError(f"projector activation {act!r} is not supported; expected 'gelu'")


def add_voco(text: PartConfig, tokenizer: Any) -> tuple[int, int]:
    """`<voco>`'s id, added to the tokenizer where it is new, and the embedding rows that are missing for it."""
    voco_id = int(text.vocab_size)
    if tokenizer is not None:
        if VOCO_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([VOCO_TOKEN], special_tokens=True)
        voco_id = tokenizer.convert_tokens_to_ids(VOCO_TOKEN)
    new_rows = max(0, voco_id + 1 - text.vocab_size)
    text.vocab_size += new_rows
    return voco_id, new_rows


def _voco_prompt(
    folder: Path, data: dict[str, Any], text: PartConfig, tokenizer: Any, chat_template: str | None
) -> PromptPieces:
    """The paper's layout: its prompt for LLaVA-1.5, else the checkpoint's own chat template without the medium."""
    prompt = vicuna_prompt(text, tokenizer)
    papers = data["model_type"] == "llava" and text.model_type == "llama"
    if chat_template is None and (tokenizer is None or papers):
        return prompt
    return voco_prompt(chat_prompt(folder, data, text, tokenizer, chat_template), prompt, tokenizer)


def preprocessing(folder: Path, data: dict[str, Any], vision: PartConfig, untrained: bool) -> dict[str, Any]:
    """Geometry, mean, std and sampling as the family's video processor has them, or its image processor."""
    family = data["model_type"]
    processor = read_json(folder / "processor_config.json")
    image = read_json(folder / "preprocessor_config.json") or processor.get("image_processor") or {}
    video = read_json(folder / "video_preprocessor_config.json") or processor.get("video_processor") or {}
    found = image | video
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    idefics = family in ("idefics3", "smolvlm")
    mean = tuple(found.get("image_mean", HALF if idefics else CLIP_MEAN))
    red, green, blue = (int(value * 255) for value in mean)
    square = family in ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm") or (
        untrained and "height" in found.get("size", {}) and not found.get("do_center_crop")
    )
    sampling = found.get("video_sampling", found)
    longest = sampling.get("video_size", found.get("size", {})).get("longest_edge") if idefics else None
    # LLaVA-1.5 pads by its authors' own code; its Hugging Face processor only where told.
    pad = family == "llava" and (not untrained or not image or bool(image.get("do_pad", False)))
    rate = {"fps": float(sampling["fps"])} if sampling.get("fps") else None
    if rate is None and sampling.get("num_frames"):
        rate = {"num_frames": int(sampling["num_frames"])}
    return {
        "geometry": FrameGeometry(
            size=side,
            pad=pad,
            background=(red, green, blue),
            resample=found.get("resample", 1 if idefics else FrameGeometry(size=1).resample),
            stretch=square,
            longest=longest,
        ),
        "image_mean": mean,
        "image_std": tuple(found.get("image_std", HALF if idefics else CLIP_STD)),
        "sampling": rate if untrained else None,
    }
