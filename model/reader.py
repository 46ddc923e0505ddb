"""A reader of its own: weights that stage 2 alone uses, so that training it leaves every stored cache valid.

Without one, the compressor's decoder reads its own caches. With one, `compress` goes on as before, bit for bit, and
`read` runs the reader: a full copy of the decoder, or the same decoder with LoRA adapters (arXiv 2106.09685), whose
base weights are held once.
"""

import copy
from typing import Any

from torch import nn

from vococache.errors import ModelError

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_reader(language_model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A reader that answers like `language_model` until it is trained.

    `settings`: `{"kind": "full"}`, or `{"kind": "lora", ...}` with any fields of peft's `LoraConfig`. Raises
    `ModelError` for other kinds.
    """
    kind = settings.get("kind")
    if kind == "full":
        return copy.deepcopy(language_model)
    if kind != "lora":
        raise ModelError(f"unknown kind of reader {kind!r}; expected 'full' or 'lora'")
    from peft import LoraConfig, inject_adapter_in_model

    fields = {"target_modules": LORA_TARGETS} | {name: value for name, value in settings.items() if name != "kind"}
    # The copy's parameters are the original's; only the modules around them are new.
    shared = copy.deepcopy(language_model, {id(weight): weight for weight in language_model.parameters()})
    try:
        return inject_adapter_in_model(LoraConfig(**fields), shared, adapter_name="reader")
    except (TypeError, ValueError) as error:
        raise ModelError(f"the reader's LoRA settings {settings} do not fit: {error}") from None


def own_weights(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without the names under which a weight appears again (LoRA's base weights, tied embeddings)."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    own = {}
    # The compressor's names first, so that what is shared keeps them.
    for name in sorted(state, key=lambda name: 2 * (name == "lm_head.weight") + name.startswith("reader.")):
        key = (state[name].data_ptr(), tuple(state[name].shape))
        if key not in seen:
            own[name] = state[name]
        seen.add(key)
    return own
