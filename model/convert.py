"""Checkpoints in pickle files, and LoRA adapters, as folders of safetensors that `load_model` reads.

The one place that opens a pickle, with `torch.load(weights_only=True)`: it builds tensors and refuses all else.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vococache.errors import ModelError
from vococache.model.adapter import is_adapter, merged
from vococache.model.checkpoints import locate
from vococache.model.families import family_name
from vococache.model.files import ADAPTER, read_json
from vococache.model.saving import save_pretrained

SHARD_BYTES = 4 << 30
PROJECTOR = "mm_projector.bin"  # the official code's, where it alone was trained
CARD = "README.md"
INDEX = "pytorch_model.bin.index.json"
_TOKENIZER = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_NOT_COPIED = (INDEX, ADAPTER, "model.safetensors.index.json", "trainer_state.json")
_WRAPPED = "base_model.model."  # what PEFT puts in front of a name


def convert(folder: str | Path, out: str | Path, base: str | Path | None = None) -> list[str]:
    """Write the checkpoint in `folder` to `out`, an adapter merged into its base; the names of the pickles it opened.

    `base`: folder or hub id of what an adapter (PEFT's, or the official code's with its `non_lora_trainables.bin`) was
    trained on; by default as the adapter says. Raises `ModelError` where something is missing or does not fit.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: expected a new folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _convert(folder, out, base)
    except BaseException as error:
        shutil.rmtree(out)  # no half of a checkpoint
        if isinstance(error, ModelError | OSError) or not isinstance(error, Exception):
            raise
        # Whatever a foreign file leads to.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} cannot be converted: {type(error).__name__}: {reason}") from None


def _convert(folder: Path, out: Path, base: str | Path | None) -> list[str]:
    if is_adapter(folder):  # of `voco train`: the result is a model of ours
        model, note = merged(folder, base)
        save_pretrained(model, out, note=note)
        if (folder / CARD).is_file():
            shutil.copyfile(folder / CARD, out / CARD)
        return []
    changes: dict[str, tuple[str, Tensor]] = {}
    opened: list[str] = []
    source = folder
    if settings := read_json(folder / ADAPTER):
        source, _ = locate(base or settings.get("base_model_name_or_path") or "")
        changes = _changes(folder, settings, opened)
    for place in dict.fromkeys((source, folder)):  # the adapter's own configs and tokenizer win
        for pattern in _TOKENIZER:
            for file in place.glob(pattern):
                if file.name not in _NOT_COPIED:
                    shutil.copyfile(file, out / file.name)
    if not (out / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json")
    _write(out, _merged(_tensors(source, opened), changes, folder))
    return opened


def _tensors(folder: Path, opened: list[str]) -> Iterator[tuple[str, Tensor]]:
    """All weights of a folder, a file at a time; safetensors before pickles."""
    safe = sorted(folder.glob("model*.safetensors"))
    for file in safe:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a dictionary)
                yield name, handle.get_tensor(name)
    if safe:
        return
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        names = sorted(file.name for file in folder.glob("pytorch_model*.bin")) or [PROJECTOR]
    if not all((folder / name).is_file() for name in names):
        raise ModelError(f"{folder} has neither safetensors nor pytorch_model*.bin, or not all that its index names")
    for name in names:
        yield from _unpickled(folder / name, opened).items()


def _unpickled(file: Path, opened: list[str]) -> dict[str, Tensor]:
    """The tensors of a pickle. Raises `ModelError` where it holds, or asks for, anything else."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{file} cannot be read as tensors alone: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{file} does not hold tensors by name")
    opened.append(str(file))
    return found


def _changes(folder: Path, settings: dict[str, Any], opened: list[str]) -> dict[str, tuple[str, Tensor]]:
    """What an adapter adds to weights (under `+KEY`) and which it replaces (under `KEY`), each with its name."""
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ModelError(f"{folder} holds an adapter of another kind than LoRA: it cannot be merged")
    patterns = ("fan_in_fan_out", "alpha_pattern", "rank_pattern")
    if any(settings.get(name) for name in patterns) or settings.get("bias", "none") != "none":
        raise ModelError(f"the adapter in {folder} has biases or patterns, which are not merged")
    rank = float(settings["r"])
    scale = float(settings["lora_alpha"]) / (rank**0.5 if settings.get("use_rslora") else rank)
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        with safe_open(adapter, framework="pt") as handle:
            stored = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    else:
        stored = _unpickled(folder / "adapter_model.bin", opened)
    if (folder / "non_lora_trainables.bin").is_file():
        stored = stored | _unpickled(folder / "non_lora_trainables.bin", opened)
    changes: dict[str, tuple[str, Tensor]] = {}
    for stored_name, tensor in stored.items():
        name = stored_name.removeprefix(_WRAPPED).replace(".modules_to_save.", ".").replace(".default.", ".")
        if ".lora_B." in name:
            continue
        if ".lora_A." in name:
            name = name.replace(".lora_A.", ".")
            other = stored.get(stored_name.replace(".lora_A.", ".lora_B."))
            if other is None:
                raise ModelError(f"the adapter in {folder} has {stored_name!r} without its other half")
            changes["+" + _key(name)] = name, scale * (other.float() @ tensor.float())
        else:
            changes[_key(name)] = name, tensor
    return changes


def _key(name: str) -> str:
    """A weight's name without what versions of Transformers put in front of it or leave out."""
    return family_name(name) or name


def _merged(
    tensors: Iterator[tuple[str, Tensor]], changes: dict[str, tuple[str, Tensor]], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """The base's tensors with an adapter's changes; what replaces none is new."""
    left = set(changes)
    for name, tensor in tensors:
        key = _key(name)
        if key in changes:
            left.discard(key)
            yield name, changes[key][1].to(tensor.dtype)
        elif f"+{key}" in changes:
            left.discard(f"+{key}")
            _, addition = changes[f"+{key}"]
            if addition.shape != tensor.shape:
                raise ModelError(f"the adapter in {folder} does not fit {name!r} of its base")
            yield name, (tensor.float() + addition).to(tensor.dtype)
        else:
            yield name, tensor
    if unknown := sorted(name for name in left if name.startswith("+")):
        raise ModelError(f"the adapter in {folder} changes {changes[unknown[0]][0]!r}, which its base has not")
    yield from (changes[key] for key in sorted(left))


def _write(out: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Safetensors of at most `SHARD_BYTES`, so that no more than one is held, and their index, written last."""
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    size = 0
    for name, tensor in tensors:
        if size and size + tensor.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shard[name] = tensor.clone().contiguous()  # files share no memory
        size += tensor.nbytes
    flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
