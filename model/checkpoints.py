"""Loading VoCo models: safetensors only, no remote code, no pickle.

Three layouts are read: our own (`vococache.model.saving`), the official one of VoCo-LLaMA and LLaVA-1.5, and Hugging
Face folders of the families in `vococache.model.families`. A name without a folder is an embedded model, or one on the
Hugging Face hub.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vococache.errors import ModelError
from vococache.model import families, foreign
from vococache.model.baselines import model_class
from vococache.model.config import MODEL_TYPE, VoCoConfig
from vococache.model.files import ADAPTER, read_json
from vococache.model.fingerprint import (
    SEEING,
    dtype_name,
    is_stage1,
    remember_digest,
    tensor_digest,
    weights_digest,
)
from vococache.model.float8 import FLOAT8, use_float8
from vococache.model.reader import own_weights
from vococache.model.tokenizer import TextCodec, stored_codec
from vococache.model.vision import behind_the_feature
from vococache.model.voco import VoCoModel

EMBEDDED = Path(__file__).parent / "embedded"
EMBEDDINGS = ("language_model.embed_tokens.weight", "lm_head.weight")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Well-known models that cannot be loaded, and why.
_MROPE = "its positions are multimodal (M-RoPE), so a cached key has no single place in time"
_SLIDING = "most of its layers see a sliding window alone, so a cache behind it would not be read"
REFUSED = {
    "qwen2_vl": _MROPE, "qwen2_5_vl": _MROPE, "qwen3_vl": _MROPE, "qwen3_vl_moe": _MROPE,
    "gemma3": _SLIDING, "gemma3n": _SLIDING, "paligemma": "its picture and prompt see each other in both directions",
    "mllama": "its pictures enter through cross-attention, not as tokens",
}  # fmt: skip
Rename = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a checkpoint's parts are: its config in our terms, weight folders, and how names map to ours.

    `rename` gives our name for a stored one, None for a weight that VoCo does not use.
    """

    config: VoCoConfig
    sources: tuple[tuple[Path, Rename], ...]
    codec: TextCodec | None = None
    new_rows: int = 0  # embedding rows to add for tokens that the checkpoint does not know
    spare_row: int | None = None  # one that is there for a new token, and may hold zeros
    extra: dict[str, Tensor] = field(default_factory=dict)  # weights, by our names, that no file has


def load_model(
    path_or_name: str | Path,
    *,
    compression: str | None = None,
    num_voco_tokens: int | None = None,
    frames_per_segment: int | None = None,
    prefix_ids: tuple[int, ...] | list[int] | None = None,
    newline_ids: tuple[int, ...] | list[int] | None = None,
    chat_template: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    hashed: bool = True,
    tower: bool = True,
) -> VoCoModel:
    """Load a VoCo model for inference; works without a tokenizer.

    `path_or_name`: a folder in one of the three layouts, an embedded model's name, or a Hugging Face hub id
    (`org/name`, `org/name@revision`). `compression`: "voco", or without VoCo tokens "cover", "pool" or "full"
    (`vococache.model.untrained`; of a checkpoint with VoCo tokens "full" is the upper bound in `baselines`); by default
    the checkpoint's own, "cover" where it knows no VoCo tokens. `num_voco_tokens` (K), `frames_per_segment` (F),
    `newline_ids` (stage 1 with VoCo tokens: who gives them wants these) and `prefix_ids` (without) override the
    checkpoint's. `chat_template`: Jinja text instead of the checkpoint's own; prefix and questions then follow it.
    `dtype`: of weights and computation; by default float32 on a CPU, and on a GPU the checkpoint's own, but bfloat16
    for float32; "float8" is bfloat16 with the compressor's decoder in float8 (`vococache.model.float8`). `device`: by
    default a GPU where there is one; "meta" reads no weight. `hashed`: False spares the digest of the weights as they
    are stored, which takes about as long as loading them; the fingerprint is then of the weights in memory. `tower`:
    False leaves out the vision tower and the projector, for a model that only reads caches.

    Raises `ModelError` where the folder is not such a checkpoint, is not supported, or has missing, extra,
    mis-shaped or non-finite weights.
    """
    folder, name = locate(path_or_name)
    if compression is None and newline_ids is not None and prefix_ids is None:
        compression = "voco" if read_layout(folder).config.voco_token_id is None else None
    layout = read_layout(folder, compression, chat_template)
    config = layout.config
    if newline_ids is not None:
        config = replace(config, prompt=replace(config.prompt, newline_ids=tuple(newline_ids)))
    config = config.compressing(
        compression or config.compression, tokens=num_voco_tokens, frames=frames_per_segment, prefix_ids=prefix_ids
    )
    config.check_stage1_ids()
    reader = config.reader
    config = replace(config, reader=None)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build(layout, config, folder, resolve_dtype(dtype, where), where, hashed=hashed, tower=tower)
    if reader is not None:
        model.add_reader(reader)
        if where.type != "meta":
            _fill_reader(model, reader, folder)
        model.eval().requires_grad_(False)
    if dtype == FLOAT8:
        use_float8(model.language_model.layers)
        remember_digest(model, str(model.weights_digest))  # it is of the checkpoint's values, which are other bits now
    model.name = name
    return model


def build(
    layout: Layout,
    config: VoCoConfig,
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    hashed: bool = True,
    tower: bool = True,
) -> VoCoModel:
    """A model of `config` with a layout's weights, for inference; `folder` is named where they do not fit."""
    with torch.device("meta"):
        model = model_class(config)(config, tower=tower)
    if device.type == "meta":
        _restore_buffers(model.to(dtype), torch.device("cpu"))
    else:
        _fill(model, layout, folder, dtype, device, hashed)
    model.codec = layout.codec
    return model.eval().requires_grad_(False)


def locate(path_or_name: str | Path) -> tuple[Path, str]:
    """The folder of a checkpoint, an embedded model or one of the hub, and the name that loads the same again.

    Raises `ModelError`.
    """
    path, name = Path(path_or_name), str(path_or_name)
    embedded = EMBEDDED / path.name
    if not path.exists() and name == path.name and (embedded / "config.json").is_file():
        return embedded, name
    if not path.exists() and "/" in name:
        from vococache.model import hub

        if hub.is_hub_id(name):
            return hub.fetch(name)
    if not (path / "config.json").is_file():
        names = sorted(entry.parent.name for entry in EMBEDDED.glob("*/config.json"))
        raise ModelError(
            f"unknown model {name!r}: expected a folder with a config.json, one of the embedded models {names}, or"
            " a Hugging Face hub id like org/name"
        )
    return path, name


def read_layout(folder: Path, compression: str | None = None, chat_template: str | None = None) -> Layout:
    """Recognise a checkpoint's layout by its `model_type`; one that knows no `<voco>` gets it for "voco" alone.

    `chat_template`: instead of the checkpoint's own. Raises `ModelError`.
    """
    data = read_json(folder / "config.json")
    try:
        return _layout(folder, data, compression, chat_template)
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # whatever a foreign value leads to
        raise ModelError(f"the configs in {folder} are malformed: {error}") from None


def _layout(folder: Path, data: dict[str, Any], compression: str | None, chat_template: str | None) -> Layout:
    kind = data.get("model_type")
    if kind == MODEL_TYPE:
        if (folder / ADAPTER).is_file():
            raise ModelError(f"{folder} holds an adapter alone: `voco convert {folder} OUT` merges it into its base")
        config = VoCoConfig.from_dict(data)
        if chat_template not in (None, config.prompt.chat_template):
            raise ModelError(f"{folder} has its prompt in config.json: no chat template replaces it")
        return Layout(config, ((folder, lambda name: name),), stored_codec(folder, config.text))
    if kind == "llava_llama" or "mm_vision_tower" in data:
        official = foreign.official_config(folder, data, compression, chat_template)
        sources: tuple[tuple[Path, Rename], ...] = ((folder, foreign.official_name),)
        if official.tower is not None:
            sources = ((official.tower, foreign.vision_name), *sources)
        return Layout(official.config, sources, TextCodec.of(official.tokenizer), official.new_rows)
    if kind in families.FAMILIES:
        stored = _stored_names(folder)
        config, tokenizer, new_rows = families.family_config(folder, data, compression, stored, chat_template)
        renames = {"llava": families.llava_name, "llava_next_video": families.next_video_name}
        rename = renames.get(config.family, families.family_name)
        spare = config.voco_token_id if not new_rows else None
        return Layout(config, ((folder, rename),), TextCodec.of(tokenizer), new_rows, spare)
    if kind in REFUSED:
        raise ModelError(f"{folder} holds a {kind!r} model, which is not supported: {REFUSED[kind]}")
    raise ModelError(
        f"{folder} holds a {kind!r} model; expected 'voco' (ours), 'llava_llama' (official VoCo-LLaMA and LLaVA-1.5) or"
        f" a Hugging Face folder of {sorted(families.FAMILIES)}"
    )


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype to load in; None keeps the checkpoint's, but for float32."""
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
    files = _weight_files(folder)
    if not files:
        found = sorted(entry.name for entry in folder.glob("*.bin"))
        pickles = f"; {found} is pickle, which is never read" if found else ", and pickles are never read"
        raise ModelError(f"{folder} has no *.safetensors file{pickles}: `voco convert` makes safetensors of a folder's")
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a sound safetensors file: {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: those that its index names, `model.safetensors`, or all that there are."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            return sorted({folder / name for name in read_json(index)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not an index of weights: {error}") from None
    return sorted(folder.glob("*.safetensors"))


def stored_dtype(path_or_name: str | Path) -> str:
    """The dtype that a checkpoint's embeddings are stored in: the one to write its weights in again.

    Raises `ModelError`.
    """
    folder, name = locate(path_or_name)
    for stored, tensor in _tensors(folder):
        if stored.endswith("embed_tokens.weight"):
            return dtype_name(tensor.dtype)
    raise ModelError(f"model {name!r} has no embeddings among its weights")


def _stored_names(folder: Path) -> set[str]:
    """The names of a folder's weights; none of them is read."""
    names: set[str] = set()
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                names.update(handle.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a sound safetensors file: {error}") from None
    return names


def _with_start(table: Tensor, row: int) -> Tensor:
    """An embedding whose `row` is a new token's: the zeros that pad vocabularies become the mean of the known rows."""
    if table[row].any():
        return table
    known = table[table.float().abs().sum(1) > 0]
    table = table.clone()
    table[row] = known.float().mean(0).to(table.dtype)
    return table


def _fill(
    model: VoCoModel, layout: Layout, folder: Path, dtype: torch.dtype | None, device: torch.device, hashed: bool
) -> None:
    """Give the model, built without storage, the checkpoint's weights; check each."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.text.tie_word_embeddings:
        del wanted["lm_head.weight"]
    layers = re.compile(r"vision_tower\.encoder\.layers?\.(\d+)\.")
    state: dict[str, Tensor] = {}
    digests: dict[str, bytes] = {}
    sources: list[tuple[Iterable[tuple[str, Tensor]], Rename]] = [(_tensors(at), name) for at, name in layout.sources]
    sources.append((layout.extra.items(), str))
    for weights, rename in sources:
        for stored, tensor in weights:
            name = rename(stored)
            if name is None or name.startswith("reader.") or _unused(name, layers, model.config):
                continue
            left_out = model.vision_tower is None and name.startswith(SEEING)  # a part of the fingerprint all the same
            if name not in wanted and not left_out:
                raise ModelError(f"{folder}: weight {stored!r} has no place in this model")
            if layout.new_rows and name in EMBEDDINGS:
                # A new token starts as the mean of the known ones.
                mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
                tensor = torch.cat((tensor, mean.expand(layout.new_rows, -1)))
            elif layout.spare_row is not None and name in EMBEDDINGS:
                tensor = _with_start(tensor, layout.spare_row)
            if not left_out:
                state[name] = _checked(f"{folder}: weight {stored!r}", tensor, wanted[name], dtype, device)
            if hashed and is_stage1(name, model.config):
                digests[name] = tensor_digest(name, tensor, model.config)
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
    if hashed:
        remember_digest(model, weights_digest(digests.items()))


def _fill_reader(model: VoCoModel, settings: dict[str, Any], folder: Path) -> None:
    """Give the reader the weights that a checkpoint of ours has."""
    wanted = own_weights(model.state_dict())
    wanted = {name: tensor for name, tensor in wanted.items() if name.startswith("reader.")}
    state = {name: tensor for name, tensor in _tensors(folder) if name.startswith("reader.")}
    if state.keys() != wanted.keys():
        odd = sorted(state.keys() ^ wanted.keys())
        raise ModelError(f"{folder}: the reader's weights do not fit its settings {settings}: {odd[0]!r} first")
    for name, tensor in state.items():
        wanted[name].copy_(
            _checked(f"{folder}: weight {name!r}", tensor, wanted[name].shape, model.dtype, model.device)
        )


def _checked(what: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """A stored weight on `device` in `dtype` (None: as stored, float32 as bfloat16).

    It goes there as it is stored, from the file's mapped pages, and is converted there. Raises `ModelError` where it
    is no use.
    """
    if tensor.shape != shape:
        raise ModelError(f"{what} should have the shape {tuple(shape)}, found {tuple(tensor.shape)}")
    if tensor.dtype not in DTYPES.values():
        raise ModelError(f"{what} has the dtype {dtype_name(tensor.dtype)}; expected one of {sorted(DTYPES)}")
    # On a GPU float32 would take twice the bytes of weights and caches, and no tensor core.
    cast = tensor.to(device).to(dtype or (torch.bfloat16 if tensor.dtype == torch.float32 else tensor.dtype))
    if not torch.isfinite(cast).all():
        raise ModelError(f"{what} holds NaN or infinite values, as {dtype_name(cast.dtype)}")
    return cast


def _unused(name: str, layers: re.Pattern[str], config: VoCoConfig) -> bool:
    """Vision weights behind the layer whose output is the feature, and a copy of tied embeddings."""
    if name == "lm_head.weight" and config.text.tie_word_embeddings:
        return True
    if name.startswith(tuple(f"vision_tower.{part}" for part in behind_the_feature(config))):
        return True
    match = layers.match(name)
    return match is not None and int(match.group(1)) >= config.vision.num_hidden_layers


def _restore_buffers(model: VoCoModel, device: torch.device) -> None:
    """Position indices of the vision tower are no weights, so building without storage left them empty."""
    embeddings: Any = getattr(model.vision_tower, "embeddings", None)
    if hasattr(embeddings, "position_ids"):
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise ModelError(f"buffers {left} of this architecture are not known to the loader")
