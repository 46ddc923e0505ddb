"""The decoder that reads, as the folder that vLLM loads, with all that the service needs to know beside it.

`OUT` is a Hugging Face folder of a plain decoder; `OUT/voco` says which compressor it reads.
"""

import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vococache.errors import ModelError
from vococache.model.baselines import model_class
from vococache.model.config import PromptPieces, VoCoConfig
from vococache.model.files import read_json
from vococache.model.fingerprint import current_weights_digest, dtype_name, known_digest
from vococache.model.reader import own_weights
from vococache.model.tokenizer import stored_codec
from vococache.model.voco import VoCoModel
from vococache.workers.reason import question_ids

OWN = "voco"  # the folder beside the weights: what is in it no loader of weights comes upon
PREFIX = "prefix.safetensors"
# Conversations by which a chat template is tried.
TRIALS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("What happens?", ()),
    ("  and {question} {{ then }}\nwhat? ", (("Who is it?", "A dog."),)),
    ("Why?", (("Who?", ""), ("When?", "At 3 o'clock, </s> \u00e9."))),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """An exported decoder: the model that it was part of, by its configuration."""

    folder: Path
    name: str  # of the model
    config: VoCoConfig
    weights_digest: str  # of the compressor
    placeholder: int  # the id that stands for a cached entry
    dtype: str  # of the weights

    @classmethod
    def at(cls, folder: str | Path) -> "Decoder":
        """The decoder that `export_decoder` wrote to `folder`. Raises `ModelError`."""
        folder = Path(folder)
        data = read_json(folder / OWN / "config.json")
        if not data:
            raise ModelError(
                f"{folder} is not an exported decoder: `voco export-decoder MODEL {folder}` writes one, which"
                " --model then names"
            )
        try:
            return cls(
                folder=folder, name=data["name"], config=VoCoConfig.from_dict(data["model"]), dtype=data["dtype"],
                weights_digest=data["weights_digest"], placeholder=data["placeholder"],
            )  # fmt: skip
        except KeyError as error:
            raise ModelError(f"{folder / OWN / 'config.json'} lacks {error}") from None

    def prefix(self) -> Tensor | None:
        """The prompt's own entries in front of all segments, keys before RoPE: [Y, 2, G, p, D]; None without any."""
        if not self.config.prefix_entries:
            return None
        return load_file(self.folder / OWN / PREFIX)["prefix"]

    def shapes(self) -> VoCoModel:
        """The model that reads, without its weights: what questions are checked and encoded with."""
        with torch.device("meta"):
            model = model_class(self.config)(self.config, tower=False).to(getattr(torch, self.dtype))
        model.name, model.weights_digest = self.name, self.weights_digest
        model.codec = stored_codec(self.folder, self.config.text)
        return model.eval()


def export_decoder(model: VoCoModel, out: str | Path) -> bool:
    """Write the decoder with which `model` reads to the new folder `out`, a LoRA of its own merged.

    Returns whether a chat template is with it: one whose ids are those of `question_ids`, behind as many placeholders
    as `voco` says. Some tokenizers let none be; `voco serve` needs none. Raises `ModelError`.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: expected a new folder")
    if model.codec is None:
        raise ModelError(f"model {model.name!r} has no tokenizer beside its weights: questions cannot be encoded")
    placeholder = placeholder_id(model)
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(model, out, placeholder)
    except BaseException:
        shutil.rmtree(out)  # no half of a decoder
        raise


def placeholder_id(model: VoCoModel) -> int:
    """The token that stands for a cached entry: `<voco>`, or the chat template's placeholder for a medium."""
    config = model.config
    if config.voco_token_id is not None:
        return config.voco_token_id
    ids = model.encode_text(config.prompt.medium)
    if len(ids) != 1:
        raise ModelError(f"model {model.name!r} has neither a VoCo token nor a placeholder for a medium")
    return ids[0]


def _export(model: VoCoModel, out: Path, placeholder: int) -> bool:
    prompt, text = model.config.prompt, model.config.text.transformers()
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.dtype, text.eos_token_id = dtype_name(model.dtype), list(prompt.stop_ids)
    text.save_pretrained(out)
    ends: Any = GenerationConfig  # has no types
    ends(bos_token_id=prompt.bos_id, eos_token_id=list(prompt.stop_ids)).save_pretrained(out)
    save_torch_state_dict(own_weights(decoder_weights(model)), out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # written private; a checkpoint is as readable as its folder
    own = out / OWN
    own.mkdir()
    if model.config.prefix_entries:
        with torch.inference_mode():
            prefix = model.entries(model.prefix_embeddings()).data[0]
        save_file({"prefix": prefix.cpu().contiguous()}, own / PREFIX)
    tokenizer = copy.deepcopy(model.tokenizer)
    template = chat_template(prompt, model.tokenizer, placeholder)
    is_exact = has_ids_of(model, template, placeholder)
    tokenizer.chat_template = template if is_exact else None
    tokenizer.save_pretrained(out)
    data = {
        "name": model.name, "model": replace(model.config, reader=None).to_dict(), "dtype": dtype_name(model.dtype),
        "weights_digest": known_digest(model) or current_weights_digest(model), "placeholder": placeholder,
    }  # fmt: skip
    (own / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    return is_exact


def decoder_weights(model: VoCoModel) -> dict[str, Tensor]:
    """The weights of the decoder that reads, by Transformers' names, what a LoRA adds included."""
    weights = {"lm_head.weight": model.lm_head.weight}
    for name, weight in model.reading.state_dict().items():
        module, adapted, rest = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        if adapted:
            merged = copy.deepcopy(model.reading.get_submodule(module))
            merged.merge()
            weights[f"model.{module}.{rest}"] = merged.get_base_layer().state_dict()[rest]
        else:
            weights[f"model.{name}"] = weight.contiguous()
    return weights


def chat_template(prompt: PromptPieces, tokenizer: Any, placeholder: int) -> str:
    """Jinja text that puts a conversation as `prompt_text` does, behind `voco` placeholders and the newline."""

    def quoted(piece: str) -> str:
        return json.dumps(piece, ensure_ascii=False)

    def turn(template: str) -> str:
        before, _, after = template.partition("{question}")
        return f"{quoted(before)} + message.content + {quoted(after)}"

    newline = tokenizer.decode(
        list(prompt.text_newline_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    entry = tokenizer.convert_ids_to_tokens(placeholder)
    return (
        f"{{{{- {quoted(entry)} * (voco | default(0)) + {quoted(newline)} -}}}}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}"
        f"{{{{- ({turn(prompt.template)}) if loop.first else ({turn(prompt.followup)}) -}}}}"
        f"{{%- elif message.content -%}}{{{{- {quoted(prompt.before_answer)} + message.content -}}}}"
        "{%- endif -%}{%- endfor -%}"
    )


def has_ids_of(model: VoCoModel, template: str, placeholder: int) -> bool:
    """Are the ids of `template` those of `question_ids` in all trials?"""
    for question, history in TRIALS:
        turns = [
            {"role": role, "content": text}
            for turn in history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        ids = model.tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": question}], chat_template=template, tokenize=True, return_dict=False,
            voco=3,
        )  # fmt: skip
        if list(ids) != [placeholder] * 3 + question_ids(model, question, history).tolist():
            return False
    return True
