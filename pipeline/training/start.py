"""The model that a run starts with, and what it is saved as."""

from pathlib import Path
from typing import Any

import torch

from vococache.errors import InputError
from vococache.model.adapter import add_adapter, base_model, use_4bit
from vococache.model.baselines import with_compression
from vococache.model.checkpoints import DTYPES, build, load_model, read_layout
from vococache.model.fingerprint import is_stage1
from vococache.model.scratch import random_model
from vococache.model.voco import VoCoModel
from vococache.pipeline.training.settings import TrainSettings


def computed_dtype(arguments: Any) -> torch.dtype:
    """What the products of a run are computed in."""
    return DTYPES["bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"]


def saved_dtype(settings: TrainSettings, arguments: Any, model: VoCoModel) -> torch.dtype:
    """The dtype of the saved model: what is computed in, unless that would round a compressor which does not learn.

    Its weights decide which stores are valid. Raises `InputError` where `save_dtype` asks for that.
    """
    dtype = computed_dtype(arguments) if settings.save_dtype is None else DTYPES[settings.save_dtype]
    if set(settings.train) != {"reader"} or all(
        weight.is_meta or weight.to(dtype).to(weight.dtype).equal(weight)
        for name, weight in model.state_dict().items()
        if is_stage1(name, model.config)
    ):
        return dtype
    if settings.save_dtype is not None:
        raise InputError(
            f"`save_dtype: {settings.save_dtype}` would round the compressor's weights, and no store of"
            f" {settings.model} would be valid any more: leave it out, or take float32"
        )
    return torch.float32


def starting_model(
    settings: TrainSettings, device: torch.device, computed: torch.dtype, *, hashed: bool = False
) -> VoCoModel:
    """The model as training starts, the parts that learn marked and in float32; on "meta" no weight is read.

    Beside adapters the weights that do not learn are in the dtype that is `computed` in. `hashed`: as for `load_model`.
    Raises `InputError`.
    """
    changes = {"tokens": settings.voco_tokens, "frames": settings.frames_per_segment}
    template = chat_template(settings)
    if settings.from_scratch:
        folder = Path(settings.model)
        layout = read_layout(folder, "voco", template)
        config = layout.config.with_voco(**changes)
        if device.type == "meta":
            model = build(layout, config, folder, torch.float32, device)
        else:
            model = random_model(config, settings.seed)
        model.codec = layout.codec
    else:
        dtype = torch.float32 if settings.lora is None else computed
        model = base_model(
            **base_of(settings), chat_template=template, seed=settings.seed, dtype=dtype, device=device, hashed=hashed
        )
        model.config = model.config.with_voco(**changes)
        model.config.check_stage1_ids()
    return _prepared(model, settings)


def base_of(settings: TrainSettings) -> dict[str, Any]:
    """What a run starts from, as `base_model` takes it."""
    return {"path": settings.model, "parts": settings.compose and settings.compose.model_dump()}


def _prepared(model: VoCoModel, settings: TrainSettings) -> VoCoModel:
    """The model with the compression and the reader of the settings, and the parts that learn marked."""
    if model.codec is None:
        raise InputError(f"model {settings.model!r} has no tokenizer beside its weights: texts cannot be encoded")
    if settings.compression is not None:
        model = with_compression(model, settings.compression, settings.seed)
    reader = settings.reader and settings.reader.given()
    if reader and model.reader is None:
        model.add_reader(reader)
    elif reader and reader != model.config.reader:
        raise InputError(
            f"model {settings.model!r} has a reader already: expected `reader: {model.config.reader}`, which goes on"
            f" learning, found {reader}"
        )
    if settings.load_in_4bit:
        use_4bit(model.language_model.layers)
    if settings.lora is not None:
        add_adapter(model, settings.lora.given())
    model.gradient_checkpointing = settings.gradient_checkpointing
    model.requires_grad_(False)
    children = dict(model.named_children())
    if "vision_tower" in settings.train:
        children["vision_tower"].requires_grad_(True)
    if "projector" in settings.train:
        # A baseline's own modules stand between the tower and the decoder too.
        for name in children.keys() - {"vision_tower", "language_model", "lm_head", "reader"}:
            children[name].requires_grad_(True)
    if settings.lora is not None:
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.requires_grad_(True)
    elif "language_model" in settings.train:
        children["language_model"].requires_grad_(True)
        children["lm_head"].requires_grad_(True)
    if "reader" in settings.train:
        train_reader(model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def train_reader(model: VoCoModel) -> None:
    """Let the reader's own weights learn, and no weight that stage 1 uses."""
    assert model.reader is not None
    assert model.config.reader is not None
    if model.config.reader["kind"] == "full":
        model.reader.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    for name, weight in model.reader.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(True)


def teacher_model(
    settings: TrainSettings, model: VoCoModel, device: torch.device, computed: torch.dtype
) -> VoCoModel | None:
    """The teacher of the settings, reading with full attention, in the dtype that is `computed` in."""
    if settings.teacher is None:
        return None
    teacher = load_model(settings.teacher, dtype=computed, device=device, hashed=False)
    teacher.config = teacher.config.with_voco(tokens=model.config.num_voco_tokens)
    return with_compression(teacher, "full").eval()


def chat_template(settings: TrainSettings) -> str | None:
    """The text of the settings' template. Raises `InputError` where it cannot be read."""
    if settings.chat_template is None:
        return None
    try:
        return Path(settings.chat_template).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"chat_template {settings.chat_template} cannot be read: {error}") from None
