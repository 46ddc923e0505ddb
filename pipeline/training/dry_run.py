"""What a run would take, from configs, tokenizer and data alone: rows, tokens, steps, memory, hours."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from vococache.errors import ContextLimitError, InputError, VideoError
from vococache.model.training_costs import (
    STATE_BYTES,
    TrainingStep,
    activation_bytes,
    cast_bytes,
    step_flops,
    waiting_gradient_values,
)
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import Conversation, read_conversations
from vococache.pipeline.training.examples import Text, encode_turns, fit
from vococache.pipeline.training.media import room
from vococache.pipeline.training.report import MediaReport
from vococache.pipeline.training.settings import Source, TrainSettings
from vococache.pipeline.training.start import computed_dtype, starting_model
from vococache.pipeline.training.trainer import training_arguments
from vococache.pipeline.training.world import WorldExamples
from vococache.storage import open_store
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import MediaReader

SAMPLE = 400  # rows of a source whose texts are encoded, and videos whose headers are read
RATE = 312e12  # an A100 in bfloat16, by its maker
SHARE = 0.29  # of a maker's rate, what a step at 7B's shape reached: docs/results/2026-11-efficiency.md


@dataclass(frozen=True, slots=True)
class Sized:
    """A row: segments, and the lengths of its texts and of their labels, in tokens."""

    segments: float
    text: float
    labels: float


@dataclass(frozen=True, slots=True)
class Found:
    """A source: its rows that can be trained on, a sample of them, and what is said of the others."""

    rows: int
    sample: list[Sized]
    line: str


def dry_run(settings: TrainSettings, *, processes: int | None = None) -> list[str]:
    """Lines to be said. `processes`: by default those that torchrun started, or one. Raises what a run would.

    Videos' lengths are taken from their headers, and no weight is loaded; whether files are broken shows in training.
    """
    world = processes or int(os.environ.get("WORLD_SIZE", "1"))
    arguments = training_arguments(settings.trainer, Path(), settings.seed)
    computed = computed_dtype(arguments)
    model = starting_model(settings, torch.device("meta"), computed)
    found = [_found(source, model, settings) for source in settings.data]
    rows = sum(source.rows for source in found)
    if not any(source.sample for source in found):
        raise InputError("every row of the sample is too long for the model, or its video has no readable header")
    mean, longest = _mean(found), _longest(found)
    steps = _steps(arguments, rows, world)
    batch, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    seen = steps * batch * accumulated * world
    lines = [source.line for source in found]
    lines.append(
        f"a row, on average: {mean.segments:.1f} segments of {model.config.tokens_per_frame} vision tokens a frame,"
        f" {mean.text:.0f} tokens of text, {mean.labels:.0f} of them learned"
    )
    lines.append(
        f"steps: {steps}, each of {batch} x {accumulated} rows on {world} process{'es' * (world > 1)}; rows seen:"
        f" {seen}, tokens of text: {seen * mean.text:.2g}, segments: {seen * mean.segments:.2g}"
    )
    checkpointing, stored = settings.gradient_checkpointing, settings.store is not None
    flops = (
        steps
        * accumulated
        * world
        * step_flops(model.config, _step(mean, batch), checkpointing=checkpointing, adapters=settings.lora is not None)
    )
    values = computed.itemsize
    states = state_bytes(model, in_4bit=settings.load_in_4bit, teacher=values if settings.teacher else 0)
    states /= world if arguments.fsdp else 1
    activations = activation_bytes(
        model.config, _step(longest, batch), checkpointing=checkpointing, bytes_per_value=values, stored=stored
    )
    if values == 2 and not checkpointing:
        activations += cast_bytes((*model.reading.layers.parameters(), *model.lm_head.parameters()))
    shared = checkpointing and not stored and "language_model" in settings.train and settings.lora is None
    waiting = values * waiting_gradient_values(model.config) if shared else 0
    lines.append(
        f"memory a process, by the formulas: {states / 1e9:.3g} GB of weights, gradients and AdamW's moments,"
        f" {waiting / 1e9:.3g} GB of gradients that wait for stage 1's part, and {activations / 1e9:.3g} GB of"
        " activations where every row is as long as the longest of the sample"
    )
    what = "at most, as if with stage 1, " if stored else ""
    lines.append(
        f"computing: {what}{flops / 1e15:.3g} PFLOPs; {flops / (world * RATE * SHARE) / 3600:.2g} hours on"
        f" {world} A100 at {SHARE:.0%} of {RATE / 1e12:.0f} TFLOPS"
    )
    return lines


def _found(source: Source, model: VoCoModel, settings: TrainSettings) -> Found:
    if source.file is None:
        return _drawn(source, model)
    file = Path(source.file)
    conversations, odd = read_conversations(file, Path(source.media or file.parent))
    reasons: Counter[str] = Counter(MediaReport.of(odd).counts)
    stored = _stored_segments(settings.store) if settings.store else None
    usable: list[Conversation] = []
    for row in conversations:
        if not all(question and answer for question, answer in row.turns):
            reasons["empty"] += 1
        elif stored is not None and (row.kind != "video" or row.media[0].stem not in stored):
            reasons["without a video in the store"] += 1
        elif stored is None and not all(path.exists() for path in row.media):
            reasons["missing"] += 1
        else:
            usable.append(row)
    left_out = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    line = f"{file}: {len(usable)} rows of {len(conversations) + len(odd)}; left out: {left_out or 'none'}"
    if not usable:
        raise InputError(f"none of the rows can be trained on: {line}")
    spread = usable[:: math.ceil(len(usable) / SAMPLE)]
    return Found(len(usable), list(_sized(spread, model, settings, stored)), line)


def _sized(
    rows: list[Conversation], model: VoCoModel, settings: TrainSettings, stored: dict[str, int] | None
) -> Iterator[Sized]:
    sampling = FrameSampling(fps=settings.fps, num_frames=settings.num_frames)
    media = MediaReader(model.config, sampling, max_frames=settings.max_frames)
    try:
        for row in rows:
            text = encode_turns(model.tokenizer, model.config.prompt, row.turns, alone=not row.media)
            if stored is not None:
                segments = stored[row.media[0].stem]
            elif row.kind == "video":
                try:
                    segments = math.ceil(media.expected_frames(row.media) / model.config.frames_per_segment)
                except VideoError:  # which training will report
                    continue
            else:
                segments = len(row.media)
            left = room(model.config.max_positions, segments * model.segment_entries, settings.max_length)
            with suppress(ContextLimitError):  # which training will report too
                yield _of([fit(text, left)], segments)
    finally:
        media.close()


def _drawn(source: Source, model: VoCoModel) -> Found:
    assert source.synthetic is not None
    assert source.count is not None
    assert source.asked is not None
    few = min(source.count, 20)
    clips = WorldExamples(
        model, source.synthetic, few, asked=source.asked, still=source.still, least=source.least, most=source.most,
        blinking=source.blinking,
    )  # fmt: skip
    drawn = [clips[number] for number in range(few)]
    sample = [_of(clip.texts, 0 if clip.frames is None else len(clip.frames)) for clip in drawn]
    return Found(source.count, sample, f"synthetic clips {source.synthetic!r}: {source.count} rows")


def _of(texts: list[Text], segments: int) -> Sized:
    labels = sum(label != IGNORED_LABEL for text in texts for label in text.labels)
    return Sized(segments, sum(len(text.ids) for text in texts), labels)


def _stored_segments(url: str) -> dict[str, int]:
    return {info.id: info.segments for info in open_store(url).list() if info.status == "complete"}


def _mean(found: list[Found]) -> Sized:
    """Over all rows, each source by its own sample."""
    weights = [source.rows / max(1, len(source.sample)) for source in found for _ in source.sample]
    sample = [row for source in found for row in source.sample]
    segments, text, labels = (
        float(np.average(values, weights=weights)) for values in zip(*map(astuple, sample), strict=True)
    )
    return Sized(segments, text, labels)


def _longest(found: list[Found]) -> Sized:
    sample = [astuple(row) for source in found for row in source.sample]
    return Sized(*map(max, zip(*sample, strict=True)))


def _step(row: Sized, batch: int) -> TrainingStep:
    segments, labels = math.ceil(row.segments * batch), math.ceil(row.labels * batch)
    return TrainingStep(segments=segments, rows=batch, text=math.ceil(row.text), labels=labels)


def _steps(arguments: TrainingArguments, rows: int, world: int) -> int:
    """As the Trainer counts them."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * world))
    return math.ceil(arguments.num_train_epochs * math.ceil(batches / arguments.gradient_accumulation_steps))


def state_bytes(model: VoCoModel, *, in_4bit: bool = False, teacher: int = 0) -> float:
    """Of all weights, with a gradient and AdamW's moments for those that learn.

    `in_4bit`: frozen layers as NF4, with a float32 scale for each 64 values. `teacher`: bytes of each weight of a
    teacher of the same shape beside them.
    """
    total = 0.0
    for name, weight in model.named_parameters():  # each once
        if weight.requires_grad:
            total += STATE_BYTES * weight.numel()
        elif in_4bit and name.startswith("language_model.layers.") and weight.dim() == 2:
            total += (1 / 2 + 4 / 64) * weight.numel()
        else:
            total += weight.element_size() * weight.numel()
        total += teacher * weight.numel()
    return total
