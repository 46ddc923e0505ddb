"""LoRA adapters on a model's decoder (arXiv 2106.09685), kept in PEFT's format and merged into what they learned on.

An adapter's folder has the files that PEFT writes, with a projector that learned too among `modules_to_save`. Beside
them are the whole model's config and tokenizer, and in the config, under `base`, what it started from.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vococache.errors import InputError, ModelError
from vococache.model.baselines import with_compression
from vococache.model.checkpoints import load_model, locate, read_layout
from vococache.model.compose import compose
from vococache.model.config import VoCoConfig
from vococache.model.files import ADAPTER, read_json
from vococache.model.tokenizer import stored_codec
from vococache.model.voco import VoCoModel

TARGETS = r"language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
NAME = "default"  # of the adapter, as PEFT calls one


def base_model(path: str, parts: dict[str, Any] | None, **options: Any) -> VoCoModel:
    """What training starts from: a checkpoint, or a decoder at `path` with the other `parts` that `compose` takes.

    `options`: `chat_template`, `dtype`, `device`, `hashed`, and the `seed` of a new projector.
    """
    if parts is not None:
        return compose(path, **parts, **options)
    options.pop("seed", None)
    # Those who do not know VoCo tokens get one: training is for these.
    kind = None if read_layout(locate(path)[0]).config.voco_token_id is not None else "voco"
    return load_model(path, compression=kind, **options)


def add_adapter(model: VoCoModel, fields: dict[str, Any]) -> None:
    """Put adapters, which change nothing yet, on the decoder's products; `fields` of peft's `LoraConfig`.

    Raises `InputError` where they do not fit.
    """
    from peft import LoraConfig, inject_adapter_in_model

    try:
        inject_adapter_in_model(LoraConfig(**{"target_modules": TARGETS, **fields}), model, adapter_name=NAME)
    except (TypeError, ValueError) as error:
        raise InputError(f"the LoRA settings {fields} do not fit: {error}") from None


def use_4bit(layers: nn.ModuleList) -> None:
    """Hold the products' weights in 4 bits (NF4, arXiv 2305.14314); shapes alone stay.

    Raises `InputError` without bitsandbytes.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        missing = "`load_in_4bit` needs bitsandbytes, which is not installed here: pip install bitsandbytes"
        raise InputError(missing) from None
    for module in list(layers.modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is nn.Linear and not linear.weight.is_meta:
                weight = linear.weight
                small = Linear4bit(
                    linear.in_features, linear.out_features, bias=linear.bias is not None, quant_type="nf4",
                    compute_dtype=weight.dtype, device="meta",
                )  # fmt: skip
                small.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=small)
                small.bias = linear.bias
                setattr(module, name, small.to(weight.device))  # where the weight becomes small


def save_adapter(model: VoCoModel, folder: Path, base: dict[str, Any], dtype: str, *, note: str | None = None) -> None:
    """Write what learned. `base`: the arguments of `base_model`; `dtype`: of the weights once they are merged."""
    folder.mkdir(parents=True, exist_ok=True)
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    whole = sorted({name.split(".")[0] for name in learned if ".lora_" not in name})
    config: Any = model.peft_config[NAME]  # type: ignore[index]
    config.base_model_name_or_path, config.modules_to_save = base["path"], whole or None
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight.detach().cpu().contiguous()
        for name, weight in learned.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    data = model.config.to_dict() | {"dtype": dtype, "base": base} | ({} if note is None else {"note": note})
    (folder / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def is_adapter(folder: Path) -> bool:
    """Did `save_adapter` write this folder?"""
    return (folder / ADAPTER).is_file() and "base" in read_json(folder / "config.json")


def merged(folder: Path, base: str | Path | None = None) -> tuple[VoCoModel, str | None]:
    """The model with the adapter in `folder` merged into its weights, and its note.

    `base`: another place of the checkpoint, or of the decoder, that it learned on. Raises `ModelError`.
    """
    from peft import PeftModel

    data = read_json(folder / "config.json")
    config = VoCoConfig.from_dict(data)
    path = str(base or data["base"]["path"])
    model = base_model(path, data["base"]["parts"], dtype=data["dtype"], device="cpu", hashed=False)
    if config.compression != model.config.compression:
        model = with_compression(model, config.compression)
    model.config = config
    model.codec = stored_codec(folder, config.text)
    model.requires_grad_(False)
    try:
        found: Any = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the adapter in {folder} does not fit its base {path!r}: {reason}") from None
    whole: VoCoModel = found.merge_and_unload()
    return whole.to(getattr(torch, data["dtype"])).eval().requires_grad_(False), data.get("note")
