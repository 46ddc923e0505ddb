"""Loading and saving VoCo models: safetensors only, no remote code, no pickle.

Three layouts are read: our own (`save_pretrained`), the official VoCo-LLaMA one, and a LLaVA-1.5 Hugging Face
folder (the start of training; `<voco>` is added). A name without a folder is an embedded model.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vococache.errors import ModelError
from vococache.model import foreign
from vococache.model.baselines import COMPRESSIONS
from vococache.model.config import MODEL_TYPE, VoCoConfig
from vococache.model.fingerprint import (
    compressor_fingerprint,
    compute_dtype,
    current_weights_digest,
    dtype_name,
    is_stage1,
    tensor_digest,
    weights_digest,
)
from vococache.model.float8 import FLOAT8, use_float8
from vococache.model.reader import own_weights
from vococache.model.voco import VoCoModel

EMBEDDED = Path(__file__).parent / "embedded"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Rename = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a checkpoint's parts are: its config in our terms, weight folders, and how names map to ours.

    `rename` gives our name for a stored one, None for a weight that VoCo does not use.
    """

    config: VoCoConfig
    sources: tuple[tuple[Path, Rename], ...]
    tokenizer: Any = None
    new_rows: int = 0  # embedding rows to add for tokens that the checkpoint does not know


def load_model(
    path_or_name: str | Path,
    *,
    num_voco_tokens: int | None = None,
    newline_ids: tuple[int, ...] | list[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> VoCoModel:
    """Load a VoCo model for inference; works without a tokenizer.

    `path_or_name`: a folder in one of the three layouts, or an embedded model's name. `num_voco_tokens` (K)
    and `newline_ids` (stage 1) override the checkpoint's. `dtype`: of weights and computation; by default
    float32 on a CPU, the checkpoint's own on a GPU; "float8" is bfloat16 with the compressor's decoder in float8
    (`vococache.model.float8`). `device`: by default a GPU where there is one.

    Raises `ModelError` where the folder is not such a checkpoint, is not supported, or has missing, extra,
    mis-shaped or non-finite weights.
    """
    folder = resolve(path_or_name)
    layout = read_layout(folder)
    config = layout.config.with_voco(tokens=num_voco_tokens)
    if newline_ids is not None:
        config = replace(config, prompt=replace(config.prompt, newline_ids=tuple(newline_ids)))
    config.check_stage1_ids()
    reader = config.reader
    config = replace(config, reader=None)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.device("meta"):
        model = COMPRESSIONS[config.compression](config)
    _fill(model, layout, folder, _resolve_dtype(dtype, where), where)
    if reader is not None:
        _fill_reader(model, reader, folder)
    if dtype == FLOAT8:
        use_float8(model.language_model.layers)
    model.name = str(path_or_name)
    model.tokenizer = layout.tokenizer
    return model.eval().requires_grad_(False)


def resolve(path_or_name: str | Path) -> Path:
    """The folder of a checkpoint, or of an embedded model by its name. Raises `ModelError`."""
    path = Path(path_or_name)
    embedded = EMBEDDED / path.name
    if not path.exists() and str(path_or_name) == path.name and (embedded / "config.json").is_file():
        return embedded
    if not (path / "config.json").is_file():
        names = sorted(entry.parent.name for entry in EMBEDDED.glob("*/config.json"))
        raise ModelError(
            f"unknown model {str(path_or_name)!r}: expected a folder with a config.json, or one of the"
            f" embedded models {names}"
        )
    return path


def read_layout(folder: Path) -> Layout:
    """Recognise a checkpoint's layout by its `model_type`. Raises `ModelError`."""
    try:
        data = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} is not readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object")
    try:
        return _layout(folder, data)
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error}") from None


def _layout(folder: Path, data: dict[str, Any]) -> Layout:
    kind = data.get("model_type")
    if kind == MODEL_TYPE:
        config = VoCoConfig.from_dict(data)
        return Layout(config, ((folder, lambda name: name),), foreign.load_tokenizer(folder, config.text))
    if kind == "llava_llama":
        config, tokenizer, vision_folder = foreign.official_config(folder, data)
        sources: tuple[tuple[Path, Rename], ...] = ((folder, foreign.official_name),)
        if vision_folder is not None:
            sources = ((vision_folder, foreign.vision_name), *sources)
        return Layout(config, sources, tokenizer)
    if kind == "llava":
        config, tokenizer, new_rows = foreign.llava_config(folder, data)
        return Layout(config, ((folder, foreign.llava_name),), tokenizer, new_rows)
    raise ModelError(
        f"{folder} holds a {kind!r} model; expected 'voco' (ours), 'llava_llama' (official VoCo-LLaMA) or"
        " 'llava' (LLaVA-1.5 in Hugging Face form)"
    )


def save_pretrained(model: VoCoModel, folder: str | Path, *, note: str | None = None) -> None:
    """Write `model` as a folder that `load_model` reads: config.json, safetensors, tokenizer, fingerprint."""
    if compute_dtype(model) == FLOAT8:
        raise ModelError(f"model {model.name!r} is in float8, which is not saved: load it in another dtype")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in own_weights(model.state_dict()).items()}
    save_torch_state_dict(state, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written private; a checkpoint is as readable as its folder
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    model.weights_digest = current_weights_digest(model)
    config = model.config.to_dict() | {
        "dtype": dtype_name(model.dtype),
        "fingerprint": compressor_fingerprint(model),
    }
    if note is not None:
        config["note"] = note
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype to load in; None keeps the checkpoint's."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    if isinstance(dtype, torch.dtype):
        dtype = dtype_name(dtype)
    if dtype == FLOAT8:
        return torch.bfloat16
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; expected one of {[FLOAT8, *sorted(DTYPES)]}")
    return DTYPES[dtype]


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder's safetensors files, one at a time."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = sorted(entry.name for entry in folder.glob("*.bin"))
        hint = f"; {found} is pickle, which is never read: convert it to safetensors" if found else ""
        raise ModelError(f"{folder} has no *.safetensors file{hint}")
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, handle.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{file} is not a sound safetensors file: {error}") from None


def _fill(model: VoCoModel, layout: Layout, folder: Path, dtype: torch.dtype | None, device: torch.device) -> None:
    """Give the model, built without storage, the checkpoint's weights; check each."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.text.tie_word_embeddings:
        del wanted["lm_head.weight"]
    layers = re.compile(r"vision_tower\.encoder\.layers\.(\d+)\.")
    state: dict[str, Tensor] = {}
    digests: dict[str, bytes] = {}
    for source, rename in layout.sources:
        for stored, tensor in _tensors(source):
            name = rename(stored)
            if name is None or name.startswith("reader.") or _unused(name, layers, model.config):
                continue
            if name not in wanted:
                raise ModelError(f"{folder}: weight {stored!r} has no place in this model")
            if layout.new_rows and name in ("language_model.embed_tokens.weight", "lm_head.weight"):
                # A new token starts as the mean of the known ones.
                mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
                tensor = torch.cat((tensor, mean.expand(layout.new_rows, -1)))
            cast = _checked(f"{folder}: weight {stored!r}", tensor, wanted[name], dtype)
            if is_stage1(name, model.config):
                digests[name] = tensor_digest(name, tensor, model.config)
            state[name] = cast.to(device)
    if missing := sorted(wanted.keys() - state.keys()):
        raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]!r} first")
    if model.config.text.tie_word_embeddings:
        state["lm_head.weight"] = state["language_model.embed_tokens.weight"]
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) > 1:  # a checkpoint of mixed dtypes computes in the output projection's
        state = {name: tensor.to(state["lm_head.weight"].dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    if model.config.text.tie_word_embeddings:
        model.lm_head.weight = model.language_model.embed_tokens.weight
    _restore_buffers(model, device)
    model.weights_digest = weights_digest(digests.items())


def _fill_reader(model: VoCoModel, settings: dict[str, Any], folder: Path) -> None:
    """Add the reader that a checkpoint of ours has, with its weights."""
    model.add_reader(settings)
    wanted = own_weights(model.state_dict())
    wanted = {name: tensor for name, tensor in wanted.items() if name.startswith("reader.")}
    state = {name: tensor for name, tensor in _tensors(folder) if name.startswith("reader.")}
    if state.keys() != wanted.keys():
        odd = sorted(state.keys() ^ wanted.keys())
        raise ModelError(f"{folder}: the reader's weights do not fit its settings {settings}: {odd[0]!r} first")
    for name, tensor in state.items():
        cast = _checked(f"{folder}: weight {name!r}", tensor, wanted[name].shape, model.dtype)
        wanted[name].copy_(cast.to(model.device))


def _checked(what: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype | None) -> Tensor:
    """A stored weight in `dtype` (None: as stored). Raises `ModelError` where it cannot be used."""
    if tensor.shape != shape:
        raise ModelError(f"{what} should have the shape {tuple(shape)}, found {tuple(tensor.shape)}")
    if tensor.dtype not in DTYPES.values():
        raise ModelError(f"{what} has the dtype {dtype_name(tensor.dtype)}; expected one of {sorted(DTYPES)}")
    cast = tensor.to(dtype=dtype)
    if not torch.isfinite(cast).all():
        raise ModelError(f"{what} holds NaN or infinite values, as {dtype_name(cast.dtype)}")
    return cast


def _unused(name: str, layers: re.Pattern[str], config: VoCoConfig) -> bool:
    """Vision weights behind the layer whose output is the feature, and a copy of tied embeddings."""
    if name == "lm_head.weight" and config.text.tie_word_embeddings:
        return True
    if name.startswith(("vision_tower.post_layernorm.", "vision_tower.head.")):
        return True
    match = layers.match(name)
    return match is not None and int(match.group(1)) >= config.vision.num_hidden_layers


def _restore_buffers(model: VoCoModel, device: torch.device) -> None:
    """Position indices of the vision tower are no weights, so building without storage left them empty."""
    embeddings: Any = model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise ModelError(f"buffers {left} of this architecture are not known to the loader")
