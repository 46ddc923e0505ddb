"""A training run: settings in, a checkpoint folder out."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import ConcatDataset, Dataset
from transformers import set_seed

from vococache.errors import InputError
from vococache.model.baselines import with_compression
from vococache.model.checkpoints import load_model, locate, read_layout, save_pretrained
from vococache.model.compose import compose
from vococache.model.decoder import fast_attention
from vococache.model.objective import Objective
from vococache.model.scratch import random_model
from vococache.model.voco import VoCoModel
from vococache.pipeline.training.conversations import read_conversations
from vococache.pipeline.training.examples import Example
from vococache.pipeline.training.media import ConversationExamples, MediaReport
from vococache.pipeline.training.settings import TrainSettings
from vococache.pipeline.training.stored import StoredExamples
from vococache.pipeline.training.trainer import make_trainer, training_arguments
from vococache.pipeline.training.world import WorldExamples
from vococache.storage import open_store
from vococache.workers.reason import ReasonStage
from vococache.workers.video.sampling import FrameSampling

# In a run's folder: the result, the last evaluation, and the rows of the data that were left out.
MODEL, FIGURES, REPORT = "model", "figures.json", "report.jsonl"
logger = logging.getLogger(__name__)


def train(settings: TrainSettings, out: Path, *, resume: bool = False) -> dict[str, float]:
    """Train as `settings` say; the run's folder `out` gets checkpoints, logs, figures, a report and the `model/`.

    `resume`: go on from the last checkpoint there. Returns the last evaluation's figures. Runs as it is under
    torchrun and Ray Train, one process a worker.
    """
    set_seed(settings.seed)
    arguments = training_arguments(settings.trainer, out, settings.seed)
    if arguments.fsdp and arguments.world_size == 1:
        raise InputError("`fsdp` shards between processes, found one: start several with torchrun or --workers")
    model = _starting_model(settings, arguments.device)
    if settings.elastic and model.config.compression != "voco":
        raise InputError(f"`elastic` is about VoCo tokens, which compression {model.config.compression!r} has none of")
    if arguments.fsdp and (model.config.reader or {}).get("kind") == "lora":
        raise InputError("a LoRA reader shares the decoder's weights, which FSDP cannot shard: train it without `fsdp`")
    out.mkdir(parents=True, exist_ok=True)
    train_set = _data(settings.data, model, settings, out, seed=settings.seed)
    evaluation = _data(settings.evaluation, model, settings, out) if settings.evaluation else None
    teacher = _teacher(settings, model, arguments.device)
    objective = Objective(model, elastic=settings.elastic, teacher=teacher, weight=settings.distillation)
    trainer = make_trainer(objective, arguments, train_set, evaluation)
    if trainer.is_world_process_zero():
        (out / "settings.yaml").write_text(yaml.safe_dump(asdict(settings), sort_keys=False))
    checkpoint = last_checkpoint(out) if resume else None
    with fast_attention(arguments.device):
        trainer.train(resume_from_checkpoint=checkpoint)
        figures = trainer.evaluate() if evaluation is not None else {}
    if arguments.fsdp:  # `model` holds shards: the first process gathers the weights into another
        state = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.is_world_process_zero():
            model = _starting_model(settings, torch.device("cpu"))
            Objective(model).load_state_dict(state)
    if trainer.is_world_process_zero():
        save_pretrained(model.eval(), out / MODEL, note=settings.note)
        (out / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def last_checkpoint(out: Path) -> str:
    """The last whole checkpoint in a run's folder; a kill may have left a newer one half-written.

    Raises `InputError` where there is none.
    """
    whole = [state.parent for state in out.glob("checkpoint-*/trainer_state.json")]  # of all files, written last
    if not whole:
        raise InputError(f"nothing to resume: {out} has no checkpoint; start without --resume")
    return str(max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-"))))


def _starting_model(settings: TrainSettings, device: torch.device) -> VoCoModel:
    """The model as training starts, the parts that learn in float32 and marked."""
    changes = {"tokens": settings.voco_tokens, "frames": settings.frames_per_segment}
    if settings.from_scratch:
        layout = read_layout(Path(settings.model), "voco")
        model = random_model(layout.config.with_voco(**changes), settings.seed)
        model.tokenizer = layout.tokenizer
    elif settings.compose is not None:
        try:
            model = compose(settings.model, **settings.compose, seed=settings.seed, dtype="float32", device=device)
        except TypeError as error:
            raise InputError(f"`compose` takes tower, projector and feature_layer: {error}") from None
        model.config = model.config.with_voco(**changes)
        model.config.check_stage1_ids()
    else:
        # Those who do not know VoCo tokens get one: training is for these.
        kind = None if read_layout(locate(settings.model)[0]).config.voco_token_id is not None else "voco"
        model = load_model(settings.model, compression=kind, dtype="float32", device=device)
        model.config = model.config.with_voco(**changes)
        model.config.check_stage1_ids()
    if model.tokenizer is None:
        raise InputError(f"model {settings.model!r} has no tokenizer beside its weights: texts cannot be encoded")
    if settings.compression is not None:
        model = with_compression(model, settings.compression, settings.seed)
    if settings.reader and model.reader is None:
        model.add_reader(settings.reader)
    elif settings.reader and settings.reader != model.config.reader:
        raise InputError(
            f"model {settings.model!r} has a reader already: expected `reader: {model.config.reader}`, which goes on"
            f" learning, found {settings.reader}"
        )
    model.gradient_checkpointing = settings.gradient_checkpointing
    model.requires_grad_(False)
    parts = dict(model.named_children())
    if "vision_tower" in settings.train:
        parts["vision_tower"].requires_grad_(True)
    if "projector" in settings.train:
        # A baseline's own modules stand between the tower and the decoder too.
        for name in parts.keys() - {"vision_tower", "language_model", "lm_head", "reader"}:
            parts[name].requires_grad_(True)
    if "language_model" in settings.train:
        parts["language_model"].requires_grad_(True)
        parts["lm_head"].requires_grad_(True)
    if "reader" in settings.train:
        train_reader(model)
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


def _teacher(settings: TrainSettings, model: VoCoModel, device: torch.device) -> VoCoModel | None:
    if settings.teacher is None:
        return None
    teacher = load_model(settings.teacher, dtype="float32", device=device)
    teacher.config = teacher.config.with_voco(tokens=model.config.num_voco_tokens)
    return with_compression(teacher, "full").eval()


def _data(
    entries: tuple[dict[str, Any], ...], model: VoCoModel, settings: TrainSettings, out: Path, *, seed: int = 0
) -> Dataset[Example]:
    """All entries, one after the other; with a `seed`, other scenes of the same splits."""
    parts = [_entry(entry, model, settings, out, seed) for entry in entries]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _entry(entry: dict[str, Any], model: VoCoModel, settings: TrainSettings, out: Path, seed: int) -> Dataset[Example]:
    if "synthetic" in entry:
        split = f"{entry['synthetic']}, seed {seed}" if seed else entry["synthetic"]
        return WorldExamples(model, split, **{name: value for name, value in entry.items() if name != "synthetic"})
    file = Path(entry["file"])
    conversations = read_conversations(file, Path(entry.get("media", file.parent)))
    report = out / REPORT
    if settings.store is not None:
        stored = StoredExamples(ReasonStage(model, open_store(settings.store)), conversations, report)
        _tell(file, len(conversations), stored.left_out, report)
        return stored
    sampling = FrameSampling(fps=settings.fps, num_frames=settings.num_frames)
    examples = ConversationExamples(model, conversations, sampling, report, max_frames=settings.max_frames)
    _tell(file, len(conversations), examples.check_media(), report)
    return examples


def _tell(file: Path, rows: int, left_out: MediaReport, report: Path) -> None:
    if left_out.counts:
        logger.warning("%s: of %d rows, left out %s; see %s", file, rows, left_out, report)
