"""What a training run is: read from a YAML file, checked before any work starts.

`python -m vococache.pipeline.training.settings` prints the tables of docs/training.md.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vococache.errors import InputError

Count = Annotated[int, Field(ge=1)]
Part = Literal["vision_tower", "projector", "language_model", "reader"]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The values that were given, as plain JSON ones."""
        return self.model_dump(mode="json", exclude_unset=True)


class Source(_Described):
    """Rows of a data file, or clips of the synthetic world."""

    file: str | None = Field(None, description="a data file, in one of the forms below")
    media: str | None = Field(None, description="the folder of its images and videos; by default the file's own")
    synthetic: str | None = Field(None, description="instead of `file`: clips of the synthetic world, of that split")
    count: Count | None = Field(None, description="of `synthetic`: how many clips")
    asked: Count | None = Field(None, description="of `synthetic`: questions a clip")
    still: bool = Field(False, description="of `synthetic`: single pictures")
    least: int = Field(1, description="of `synthetic`: objects in a scene, at least")
    most: int = Field(4, description="of `synthetic`: and at most")
    blinking: bool = Field(False, description="of `synthetic`: more objects blink, and are asked about")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Source":
        given = self.model_fields_set
        if self.file is not None and given <= {"file", "media"}:
            return self
        if self.synthetic is not None and not given & {"file", "media"}:
            if self.count is None or self.asked is None:
                raise ValueError("`synthetic` needs `count` and `asked`")
            return self
        raise ValueError(
            "expected `file` and `media`, or `synthetic` with `count`, `asked`, `still`, `least`, `most`, `blinking`;"
            f" found {sorted(given)}"
        )

    @property
    def single_segments(self) -> bool:
        """Could every row be one segment?"""
        return self.file is not None or self.still


class Compose(_Described):
    """What a text-only decoder needs to see."""

    tower: str = Field(description="CLIP or SigLIP: a folder or hub id")
    projector: str | None = Field(
        None, description="a folder with a trained projector's safetensors (`voco convert`); by default a new one"
    )
    feature_layer: int = Field(-2, description="of the tower; -1 is the last")


def _check_lora(fields: dict[str, Any]) -> None:
    """Raise `ValueError` for what peft's `LoraConfig` does not take."""
    from peft import LoraConfig  # with PyTorch: seconds, for adapters alone

    try:
        LoraConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not settings of peft's LoraConfig: {error}") from None


class Lora(_Described):
    """Adapters; all fields are peft's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _fits_peft(self) -> "Lora":
        _check_lora(self.model_extra or {})
        return self


class Reader(_Described):
    """A reader of its own; other fields than `kind` are peft's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["lora", "full"] = Field(description="`full`, or `lora` with any field of peft's `LoraConfig`")

    @model_validator(mode="after")
    def _fits_peft(self) -> "Reader":
        more = self.model_extra or {}
        if self.kind == "full" and more:
            raise ValueError(f"a full reader has no further settings, found {sorted(more)}")
        _check_lora(more)
        return self


class TrainSettings(_Described):
    """One run. Raises `InputError` where values do not fit."""

    model: str = Field(description="a checkpoint folder, an embedded model's name, or a hub id")
    data: tuple[Source, ...] = Field(min_length=1, description="what is trained on: a list of sources, below")
    evaluation: tuple[Source, ...] = Field((), description="what is evaluated on")
    from_scratch: bool = Field(False, description="the folder has a config and a tokenizer, no weights")
    compose: Compose | None = Field(
        None,
        description="`model` is a text-only decoder; `{tower, projector, feature_layer}` make it see. Without"
        " `projector`, a new one: train that first",
    )
    chat_template: str | None = Field(
        None, description="a Jinja file, of the prompt, instead of what `model` brings; kept in the checkpoint"
    )
    voco_tokens: Count | None = Field(None, description="K; by default the checkpoint's own")
    frames_per_segment: Count | None = Field(
        None, description="frames compressed together; by default the checkpoint's own"
    )
    train: tuple[Part, ...] = Field(
        ("projector", "language_model"),
        min_length=1,
        description="a list of the parts that learn: `vision_tower`, `projector`, `language_model`, `reader`",
    )
    compression: Literal["voco", "full", "mean", "qformer", "cover", "pool"] | None = Field(
        None, description="`voco`, or `full`, `mean`, `qformer` for the comparison; by default the checkpoint's own"
    )
    lora: Lora | None = Field(
        None, description="`{r: 64}`: the language model learns by adapters, beside frozen weights (above)"
    )
    load_in_4bit: bool = Field(False, description="with `lora`: the frozen layers in 4 bits, by bitsandbytes")
    elastic: bool = Field(False, description="train for reading with any power of two of the K tokens (below)")
    teacher: str | None = Field(None, description="a checkpoint read with full attention, to learn from (below)")
    distillation: float = Field(0.5, ge=0, le=1, description="the teacher's weight in the loss")
    store: str | None = Field(None, description="train from the caches in this store (below)")
    reader: Reader | None = Field(None, description="`{kind: lora, r: 16}` or `{kind: full}` (below)")
    fps: float | None = Field(None, gt=0, le=1000, description="how videos are sampled, as in `voco ingest`")
    num_frames: Count | None = Field(None, description="instead of `fps`: so many frames of each video")
    max_frames: Count | None = Field(None, description="of a longer video, so many frames, spread evenly")
    max_length: Count | None = Field(
        None,
        description="tokens of a text; what is longer, or does not fit the model behind its cache, is cut and counted"
        ' ("cut")',
    )
    gradient_checkpointing: bool = Field(
        False, description="compute layers again in the backward pass; works in both stages, under FSDP too"
    )
    seed: int = Field(0, ge=0, description="of weights that are new, of shuffling, of elastic K")
    note: str | None = Field(None, description="kept in the checkpoint, told to whoever asks it")
    save_dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="of the saved `model/`; by default what was computed in: `bfloat16` with `bf16: true`"
    )
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Hugging Face's `TrainingArguments`, as they are; but `bf16` is float32, with a warning, on a CPU"
        " without bfloat16 products",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError("; ".join(map(_line, error.errors()[:3]))) from None

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainSettings":
        if self.store and self.train != ("reader",):
            raise ValueError("training from a store has no pixels: only `train: [reader]` can learn")
        if self.store and self.teacher:
            raise ValueError("a store holds what the teacher should see more of: `teacher` needs pixels, not `store`")
        if "reader" in self.train and not self.reader:
            raise ValueError("to train a reader, say which: `reader: {kind: lora, r: 16}` or `reader: {kind: full}`")
        if self.reader and "reader" not in self.train:
            raise ValueError("`reader` would never learn: expected `train: [reader]` beside it")
        if self.lora and ("language_model" not in self.train or "reader" in self.train):
            raise ValueError("`lora` is how the language model learns: expected it in `train`, and no `reader`")
        if self.lora and self.from_scratch:
            raise ValueError("`lora` changes weights that there are: expected no `from_scratch`")
        if self.load_in_4bit and not self.lora:
            raise ValueError("weights in 4 bits cannot learn: `load_in_4bit` belongs to `lora`")
        if self.lora and self.trainer.get("fsdp"):
            raise ValueError("`lora` is trained without `fsdp`: each process holds the whole base")
        if self.from_scratch and self.compose:
            raise ValueError("expected one of `from_scratch` and `compose`, found both")
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("expected one of `fps` and `num_frames`, found both")
        if {"gradient_checkpointing", "output_dir", "seed"} & self.trainer.keys():
            raise ValueError("`gradient_checkpointing`, `seed` and the folder are settings of their own, not trainer's")
        return self


def read_settings(path: Path, changes: dict[str, str]) -> TrainSettings:
    """Settings from a YAML file with `changes` ("trainer.learning_rate": "1e-4") applied. Raises `InputError`."""
    try:
        data = yaml.safe_load(path.read_text())
        if not isinstance(data, dict):
            raise InputError(f"it holds {type(data).__name__}; expected names and values")
        for name, value in changes.items():
            _change(data, name, yaml.safe_load(value))
        return TrainSettings(**data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"settings {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    except (InputError, TypeError) as error:  # a name that is no text
        raise InputError(f"settings {path}: {error}") from None


def check_stage(settings: TrainSettings, stage: str) -> None:
    """Refuse settings that do not belong to `stage` ("compress" or "temporal") with `InputError`."""
    if stage == "compress" and settings.store is not None:
        raise InputError("a store holds compressed segments: `store` belongs to `voco train temporal`")
    moving = [entry.given() for entry in (*settings.data, *settings.evaluation) if not entry.single_segments]
    if stage == "compress" and moving:
        raise InputError(f"the first stage learns from single segments, but {moving[0]} has clips: set `still: true`")


def table(model: type[BaseModel]) -> str:
    """The fields of `model` with their descriptions, in Markdown."""
    rows = [f"| `{name}` | {field.description} |" for name, field in model.model_fields.items()]
    return "\n".join(["| setting | meaning |", "|---|---|", *rows])


def _change(data: dict[str, Any], name: str, value: Any) -> None:
    *outer, last = name.split(".")
    for part in outer:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise InputError(f"{name} cannot be set: {part} holds {data!r:.60}")
    data[last] = value


def _line(error: Any) -> str:
    """One of pydantic's errors: the key's path, what is expected, what was found."""
    steps = error["loc"]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    if error["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"data": Source, "evaluation": Source, "compose": Compose}
        known = parts.get(str(steps[0]), TrainSettings)
        return f"{path} is unknown; expected some of {', '.join(known.model_fields)}"
    if error["type"] == "missing":
        return f"{path} is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, found {error['input']!r:.60}"


if __name__ == "__main__":
    print(table(TrainSettings), table(Source), sep="\n\n")
