"""The official layout of VoCo-LLaMA and LLaVA-1.5 in our terms, and what it shares with the Hugging Face folders."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vococache.errors import ModelError
from vococache.model.config import UNTRAINED, UNTRAINED_FRAMES, VICUNA_FOLLOWUP, PromptPieces, VoCoConfig
from vococache.model.files import read_json
from vococache.model.images import FrameGeometry
from vococache.model.parts import PartConfig, part_config
from vococache.model.prompts import chat_prompt, voco_prompt
from vococache.model.tokenizer import load_tokenizer

VOCO_TOKEN = "<voco>"
END = "</s>"  # in the Vicuna prompt, behind an earlier answer
OFFICIAL_VOCO_ID = 32000
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Official:
    """An official folder: its config in our terms, its tokenizer, its tower's folder if that has weights.

    `new_rows`: how many embedding rows `<voco>` adds.
    """

    config: VoCoConfig
    tokenizer: Any
    tower: Path | None
    new_rows: int


def official_config(folder: Path, data: dict[str, Any], kind: str | None, chat_template: str | None = None) -> Official:
    """An official VoCo-LLaMA folder, or LLaVA-1.5's in the same layout, which has no `<voco>`.

    `kind`: the compression wanted; None is "voco" where the vocabulary has `<voco>`, else "cover".
    `chat_template`: instead of the folder's own, or of the paper's prompt with VoCo tokens.
    """
    tower = data.get("mm_vision_tower") or data.get("vision_tower") or ""
    vision_folder = folder / tower if (folder / tower / "config.json").is_file() else Path(tower)
    if not tower or not (vision_folder / "config.json").is_file():
        raise ModelError(
            f"{folder} names its vision tower {tower!r}; expected a folder beside the weights or on disk:"
            " fetch it and set mm_vision_tower in config.json to its path"
        )
    if data.get("mm_use_im_start_end"):
        raise ModelError("mm_use_im_start_end, tokens of its own around a picture, is not supported")
    if data.get("mm_vision_select_feature", "patch") != "patch":
        raise ModelError(f"vision feature {data['mm_vision_select_feature']!r} is not supported; expected 'patch'")
    vision = vision_config(read_json(vision_folder / "config.json"), data["mm_vision_select_layer"])
    text = part_config(data | {"model_type": "llama"})
    tokenizer = load_tokenizer(folder, text)
    known = text.vocab_size > OFFICIAL_VOCO_ID
    kind = kind or ("voco" if known else "cover")
    untrained = not known and kind in UNTRAINED
    new_rows = 0 if known or untrained else OFFICIAL_VOCO_ID + 1 - text.vocab_size
    text.vocab_size += new_rows
    if new_rows and tokenizer is not None:
        tokenizer.add_tokens([VOCO_TOKEN], special_tokens=True)
    chat = partial(chat_prompt, folder, {"model_type": "llava"}, text, tokenizer, chat_template)
    pieces = vicuna_prompt(text, tokenizer)
    config = VoCoConfig(
        text=text,
        vision=vision,
        voco_token_id=None if untrained else OFFICIAL_VOCO_ID,
        projector=data.get("mm_projector_type", "linear"),
        prompt=chat() if untrained else pieces if chat_template is None else voco_prompt(chat(), pieces, tokenizer),
        compression="cover" if untrained else "voco",
        num_voco_tokens=1 if untrained else 2,
        **tower_preprocessing(vision_folder, vision.image_size, pad=data.get("image_aspect_ratio") == "pad"),
    )
    if untrained:
        config = config.compressing("cover", frames=UNTRAINED_FRAMES)
    return Official(config, tokenizer, vision_folder if any(vision_folder.glob("*.safetensors")) else None, new_rows)


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


def vision_config(data: dict[str, Any], feature_layer: int) -> PartConfig:
    """A tower cut behind the layer whose output is the feature (-1: all layers, -2: all but one)."""
    if data.get("model_type") == "clip":
        data = data["vision_config"] | {"model_type": "clip_vision_model"}
    config = part_config(data)
    depth = feature_layer if feature_layer >= 0 else config.num_hidden_layers + 1 + feature_layer
    if not 1 <= depth <= config.num_hidden_layers:
        raise ModelError(f"vision feature layer {feature_layer} of a tower of {config.num_hidden_layers} layers")
    config.num_hidden_layers = depth
    return config


def tower_preprocessing(folder: Path, image_size: int, *, pad: bool) -> dict[str, Any]:
    """Geometry, mean and std from a folder's preprocessor_config.json (CLIP's where there is none)."""
    data = read_json(folder / "preprocessor_config.json")
    mean = tuple(data.get("image_mean", CLIP_MEAN))
    red, green, blue = (int(value * 255) for value in mean)
    geometry = FrameGeometry(
        size=image_size,
        pad=pad,
        background=(red, green, blue),
        resample=data.get("resample", FrameGeometry(size=1).resample),
    )
    return {"geometry": geometry, "image_mean": mean, "image_std": tuple(data.get("image_std", CLIP_STD))}


def vicuna_prompt(text: PartConfig, tokenizer: Any) -> PromptPieces:
    """Prompt pieces of a Llama checkpoint; the newlines as its own tokenizer splits `<image>\\n<voco>\\n`."""
    stop = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    before, after = (29871, 13), (13,)  # the official vocabulary
    if tokenizer is not None and VOCO_TOKEN in tokenizer.get_vocab():
        ids = tokenizer.encode(f"\n{VOCO_TOKEN}\n", add_special_tokens=False)
        at = ids.index(tokenizer.convert_tokens_to_ids(VOCO_TOKEN))
        before, after = tuple(ids[:at]), tuple(ids[at + 1 :])
    followup = VICUNA_FOLLOWUP
    if tokenizer is not None and END not in tokenizer.get_vocab():  # which would type it in letters
        followup = followup.replace(END, tokenizer.eos_token or "")
    return PromptPieces(
        bos_id=text.bos_token_id,
        newline_ids=before,
        text_newline_ids=after,
        stop_ids=tuple(token for token in stop if token is not None),
        followup=followup,
    )
