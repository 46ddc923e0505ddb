"""What a training run is: read from a YAML file, checked before any work starts."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vococache.errors import InputError

PARTS = ("vision_tower", "projector", "language_model", "reader")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """One run. `trainer` goes to Hugging Face's `TrainingArguments` as it is.

    `model`: a checkpoint folder, an embedded model's name, a hub id, or (`from_scratch`) a folder with a `config.json`
    and a tokenizer but no weights. `compose`: `model` is a text-only decoder, to which come a `tower` and a `projector`
    (`vococache.model.compose`). `data`, `evaluation`: mappings with `file` and `media` (`conversations.py` lists the
    formats) or with `synthetic`, `count`, `asked`,
    `still`, `least`, `most` and `blinking` (`world.py`). `train`: the parts that learn. `compression`: "voco",
    "full" (the text sees every vision token: the paper's upper bound, and a first stage before compression), "mean" or
    "qformer" (`vococache.model.baselines`); by default the checkpoint's own. `elastic`:
    train for reading with any power of two of the K tokens. `teacher`: a checkpoint read with full attention, for
    the distillation term of weight `distillation`. `store`: take the caches of `data`'s videos from this store; only
    the `reader` (`{kind: full}`, or `{kind: lora}` with LoRA settings) learns. `fps`, `num_frames`, `max_frames`: how
    videos are sampled. `max_length`: tokens of a text, beyond which it is cut. `note`: kept in the checkpoint and told
    to whoever asks it.
    """

    model: str
    data: tuple[dict[str, Any], ...]
    evaluation: tuple[dict[str, Any], ...] = ()
    from_scratch: bool = False
    compose: dict[str, Any] | None = None
    seed: int = 0
    voco_tokens: int | None = None
    frames_per_segment: int | None = None
    train: tuple[str, ...] = ("projector", "language_model")
    compression: str | None = None
    elastic: bool = False
    teacher: str | None = None
    distillation: float = 0.5
    store: str | None = None
    reader: dict[str, Any] | None = None
    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    max_length: int | None = None
    gradient_checkpointing: bool = False
    note: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no training data: expected `data` with at least one entry")
        for entry in (*self.data, *self.evaluation):
            drawn = {"synthetic", "count", "asked", "still", "least", "most", "blinking"}
            known = {"file", "media"} if "file" in entry else drawn
            if not ({"file", "synthetic"} & entry.keys()) or entry.keys() - known:
                raise InputError(
                    f"data entry {entry} is not understood: expected `file` and `media`, or `synthetic`, `count`,"
                    " `asked`, `still`, `least`, `most` and `blinking`"
                )
        if unknown := set(self.train) - set(PARTS):
            raise InputError(f"unknown parts {sorted(unknown)} to train; expected some of {PARTS}")
        if self.store and self.train != ("reader",):
            raise InputError("training from a store has no pixels: only `train: [reader]` can learn")
        if self.store and self.teacher:
            raise InputError("a store holds what the teacher should see more of: `teacher` needs pixels, not `store`")
        if "reader" in self.train and not self.reader:
            raise InputError("to train a reader, say which: `reader: {kind: lora, r: 16}` or `reader: {kind: full}`")
        if {"gradient_checkpointing", "output_dir", "seed"} & self.trainer.keys():
            raise InputError("`gradient_checkpointing`, `seed` and the folder are settings of their own, not trainer's")


def read_settings(path: Path, changes: dict[str, str]) -> TrainSettings:
    """Settings from a YAML file with `changes` ("trainer.learning_rate": "1e-4") applied. Raises `InputError`."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"settings {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"settings {path} hold {type(data).__name__}; expected names and values")
    for name, value in changes.items():
        *outer, last = name.split(".")
        place = data
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = yaml.safe_load(value)
    known = {entry.name: entry for entry in fields(TrainSettings)}
    if unknown := sorted(data.keys() - known.keys()):
        raise InputError(f"settings {path} have unknown names {unknown}; expected some of {sorted(known)}")
    if missing := sorted({"model", "data"} - data.keys()):
        raise InputError(f"settings {path} lack {missing}")
    data = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return TrainSettings(**data)


def check_stage(settings: TrainSettings, stage: str) -> None:
    """Refuse settings that do not belong to `stage` ("compress" or "temporal") with `InputError`."""
    if stage == "compress" and settings.store is not None:
        raise InputError("a store holds compressed segments: `store` belongs to `voco train temporal`")
    moving = [entry for entry in (*settings.data, *settings.evaluation) if not entry.get("still", "file" in entry)]
    if stage == "compress" and moving:
        raise InputError(f"the first stage learns from single segments, but {moving[0]} has clips: set `still: true`")
