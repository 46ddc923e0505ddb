"""A training run: settings in, a checkpoint folder out."""

import json
import logging
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import fsdp2_prepare_model
from torch.utils.data import ConcatDataset, Dataset
from transformers import set_seed

from vococache.errors import InputError
from vococache.model.adapter import save_adapter
from vococache.model.decoder import fast_attention
from vococache.model.fingerprint import dtype_name
from vococache.model.objective import Objective
from vococache.model.saving import save_pretrained
from vococache.model.voco import VoCoModel
from vococache.pipeline.training.card import write_card
from vococache.pipeline.training.conversations import Conversation, read_conversations
from vococache.pipeline.training.examples import Example
from vococache.pipeline.training.folder import FIGURES, MODEL, REPORT, ROWS, claim, last_checkpoint
from vococache.pipeline.training.media import ConversationExamples
from vococache.pipeline.training.report import MediaReport, record, settle
from vococache.pipeline.training.rows import MappedRows, write_rows
from vococache.pipeline.training.settings import Source, TrainSettings
from vococache.pipeline.training.sharding import give_storage, loading_device, share_digest, whole_weights
from vococache.pipeline.training.start import base_of, computed_dtype, saved_dtype, starting_model, teacher_model
from vococache.pipeline.training.stored import StoredExamples
from vococache.pipeline.training.trainer import make_trainer, run_to_the_end, training_arguments
from vococache.pipeline.training.world import WorldExamples
from vococache.storage import open_store
from vococache.workers.reason import ReasonStage
from vococache.workers.video.sampling import FrameSampling

# Of a source, what `WorldExamples` takes.
WORLD = {"count", "asked", "still", "least", "most", "blinking"}
logger = logging.getLogger(__name__)


def train(settings: TrainSettings, out: Path, *, resume: bool = False, overwrite: bool = False) -> dict[str, float]:
    """Train as `settings` say; the run's folder `out` gets checkpoints, logs, figures, a report and the `model/`.

    `resume`: go on from the last checkpoint there. `overwrite`: start anew where a run has been. Returns the last
    evaluation's figures. Runs as it is under torchrun and Ray Train, one process a worker. Raises `InputError` where
    the folder is another run's (`claim`).
    """
    set_seed(settings.seed)
    arguments = training_arguments(settings.trainer, out, settings.seed)
    if arguments.fsdp and arguments.world_size == 1:
        raise InputError("`fsdp` shards between processes, found one: start several with torchrun or --workers")
    with arguments.main_process_first(local=False):
        claim(out, settings, resume=resume, overwrite=overwrite, main=arguments.process_index == 0)
    computed = computed_dtype(arguments)
    stored = settings.store is not None  # only a store asks for the fingerprint of what training starts from
    model = starting_model(
        settings, loading_device(arguments), computed, hashed=stored and arguments.process_index == 0
    )
    if stored:
        share_digest(model)
    dtype = saved_dtype(settings, arguments, model)
    if settings.elastic and model.config.compression != "voco":
        raise InputError(f"`elastic` is about VoCo tokens, which compression {model.config.compression!r} has none of")
    if arguments.fsdp and (model.config.reader or {}).get("kind") == "lora":
        raise InputError("a LoRA reader shares the decoder's weights, which FSDP cannot shard: train it without `fsdp`")
    train_set = _data(settings.data, model, settings, out, seed=settings.seed)
    evaluation = _data(settings.evaluation, model, settings, out) if settings.evaluation else None
    teacher = teacher_model(settings, model, loading_device(arguments), computed)
    objective = Objective(model, elastic=settings.elastic, teacher=teacher, weight=settings.distillation)
    if arguments.fsdp:
        give_storage(objective)
        objective.tie_weights()
    trainer = make_trainer(objective, arguments, train_set, evaluation)
    if arguments.fsdp and teacher is not None:  # as the Trainer will shard the model
        fsdp2_prepare_model(trainer.accelerator, teacher)
    with fast_attention(arguments.device):
        run_to_the_end(trainer, last_checkpoint(out) if resume else None)
        figures = trainer.evaluate() if evaluation is not None else {}
    if arguments.fsdp:  # `model` holds shards: the first process gathers the weights into another
        state = whole_weights(objective, dtype, keep=trainer.is_world_process_zero())
        if trainer.is_world_process_zero():
            model = starting_model(settings, torch.device("meta"), computed)
            whole = Objective(model)
            whole.load_state_dict(state, assign=True)
            whole.tie_weights()
    if trainer.is_world_process_zero():
        (out / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
        if (left_out := settle(out / REPORT)).counts:
            logger.warning("left out in all: %s; see %s", left_out, out / REPORT)
        if settings.elastic:
            model.config = replace(model.config, elastic=True)
        # At last: with it the run is finished.
        if settings.lora is not None:
            save_adapter(model, out / MODEL, base_of(settings), dtype_name(dtype), note=settings.note)
        else:
            save_pretrained(model.eval().to(dtype), out / MODEL, note=settings.note)
        write_card(out / MODEL, settings, figures)
    trainer.accelerator.wait_for_everyone()  # the run is over when the model is there
    return figures


def _data(
    sources: tuple[Source, ...], model: VoCoModel, settings: TrainSettings, out: Path, *, seed: int = 0
) -> Dataset[Example]:
    """All sources, one after the other; with a `seed`, other scenes of the same splits."""
    parts = [_source(source, model, settings, out, seed) for source in sources]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _source(source: Source, model: VoCoModel, settings: TrainSettings, out: Path, seed: int) -> Dataset[Example]:
    if source.file is None:
        split = f"{source.synthetic}, seed {seed}" if seed else source.synthetic
        return WorldExamples(model, split, **source.model_dump(include=WORLD))  # type: ignore[arg-type]
    file = Path(source.file)
    conversations = _conversations(file, Path(source.media or file.parent), out)
    if settings.store is not None:
        stage = ReasonStage(model, open_store(settings.store))
        stored = StoredExamples(stage, conversations, out / REPORT, max_length=settings.max_length)
        _tell(file, len(conversations), stored.left_out, out)
        return stored
    sampling = FrameSampling(fps=settings.fps, num_frames=settings.num_frames)
    examples = ConversationExamples(
        model, conversations, sampling, out / REPORT, max_frames=settings.max_frames, max_length=settings.max_length
    )
    _tell(file, len(conversations), examples.check_media(), out)
    return examples


def _conversations(file: Path, media: Path, out: Path) -> MappedRows[Conversation]:
    """Read by one process into the run's folder, mapped into memory by all."""
    path = out / ROWS / f"{file.stem}-{zlib.crc32(f'{file} {media}'.encode()):08x}.arrow"
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            path.unlink(missing_ok=True)  # of data that may have changed
            conversations, odd = read_conversations(file, media)
            write_rows(path, conversations, Conversation)
            record(out / REPORT, odd)
            _tell(file, len(conversations) + len(odd), MediaReport.of(odd), out)
    return MappedRows(path, Conversation)


def _tell(file: Path, rows: int, left_out: MediaReport, out: Path) -> None:
    if left_out.counts and PartialState().is_main_process:
        logger.warning("%s: of %d rows, left out %s; see %s", file, rows, left_out, out / REPORT)
