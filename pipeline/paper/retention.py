"""The paper's comparison (section 4.2) at small scale: methods trained alike from one checkpoint, then asked alike.

A folder holds it all: `base.yaml`, the settings of a training run; `plan.yaml`, the runs and what each changes; and of
each run and seed `NAME/seed-N/weights` (float16) and `NAME/seed-N/result.json`.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from vococache.errors import InputError
from vococache.model.baselines import with_compression
from vococache.model.checkpoints import load_model
from vococache.model.generate import GenerationOptions, generate
from vococache.model.saving import save_pretrained
from vococache.model.voco import VoCoModel
from vococache.pipeline.files import whole_file
from vococache.pipeline.machine import machine
from vococache.pipeline.synthetic.questions import Question, questions
from vococache.pipeline.synthetic.render import as_recorded
from vococache.pipeline.synthetic.scene import LOOKS, make_scene
from vococache.pipeline.synthetic.trial import ANSWER_TOKENS, Trial, TrialAnswer
from vococache.pipeline.training.settings import TrainSettings, read_settings
from vococache.workers.reason import answer_text, question_ids
from vococache.workers.video.whole import as_segments

PLAN, BASE, WEIGHTS, RESULT = "plan.yaml", "base.yaml", "weights", "result.json"
SPLIT = "test"
BATCH = 64  # pictures or clips compressed at once
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionRun:
    """One run of a plan with one seed, in the plan's folder `root`.

    `settings`: as the files say; `model` is a folder in `root`, `teacher` the name of another run. `weights_of`: the
    run whose weights it takes, untrained. `continues`: the run from whose weights its own training starts. `read`: the
    tokens of a segment that questions see (None: all).
    """

    root: Path
    name: str
    settings: TrainSettings
    weights_of: str | None
    continues: str | None
    read: tuple[int | None, ...]

    @property
    def folder(self) -> Path:
        return self.root / self.name / f"seed-{self.settings.seed}"

    @property
    def weights(self) -> Path:
        return self.weights_from(self.weights_of or self.name)

    @property
    def trained(self) -> bool:
        return (self.weights / "config.json").is_file()  # written last

    def weights_from(self, name: str) -> Path:
        """The weights of the run `name` with the same seed."""
        return self.root / name / self.folder.name / WEIGHTS

    @property
    def evaluated(self) -> bool:
        return (self.folder / RESULT).exists()


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionPlan:
    """All runs in the order in which they are trained, and how many unseen pictures and questions each answers."""

    runs: tuple[RetentionRun, ...]
    pictures: int
    asked: int

    def results(self) -> Iterator[tuple[RetentionRun, dict[str, Any]]]:
        """The runs that were evaluated, with what was found (`evaluate_run`)."""
        for run in self.runs:
            if run.evaluated:
                yield run, json.loads((run.folder / RESULT).read_text())


def read_plan(root: Path) -> RetentionPlan:
    """The plan in a folder. Raises `InputError` where it cannot be understood."""
    path = root / PLAN
    try:
        data = yaml.safe_load(path.read_text())
        seeds, entries, pictures, asked = (data[name] for name in ("seeds", "runs", "pictures", "asked"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"the plan {path} cannot be read as YAML: {error}") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"the plan {path} lacks `seeds`, `runs`, `pictures` or `asked`: {error}") from None
    runs = tuple(_run(root, name, entry or {}, seed) for seed in seeds for name, entry in entries.items())
    names = list(entries)
    for run in runs:
        for other in (run.settings.teacher, run.weights_of, run.continues):
            if other is not None and other not in names[: names.index(run.name)]:
                raise InputError(f"the plan {path}: run {run.name!r} needs {other!r}, which is no run before it")
    return RetentionPlan(runs=runs, pictures=pictures, asked=asked)


def _run(root: Path, name: str, entry: dict[str, Any], seed: int) -> RetentionRun:
    """A run from its entry in the plan: `weights_of`, `continues`, `read`, and changes of the base's settings."""
    changes = dict(entry)
    weights_of, continues = changes.pop("weights_of", None), changes.pop("continues", None)
    read = tuple(changes.pop("read", (None,)))
    changes["seed"] = seed
    settings = read_settings(root / BASE, {key: json.dumps(value) for key, value in changes.items()})
    return RetentionRun(root=root, name=name, settings=settings, weights_of=weights_of, continues=continues, read=read)


def compare(root: Path, *, train: bool = False, again: bool = False, say: Say) -> RetentionPlan:
    """Evaluate the runs of the plan in `root` that have weights and no result, and leave the others for later.

    `train`: first train those without weights; one that was interrupted goes on from its last checkpoint. `again`:
    evaluate also those that have a result. `say` is told what is being done.
    """
    plan = read_plan(root)
    for run in plan.runs:
        where = f"{run.name}, seed {run.settings.seed}"
        if train and not run.trained:
            say(f"{where}: training")
            train_run(run)
        if run.evaluated and not again:
            continue
        if not run.trained:
            say(f"{where}: no weights, --train makes them")
        else:
            result = evaluate_run(run, plan)
            found = ", ".join(f"{100 * part['accuracy']:.1f}% at {part['tokens']}" for part in result["readings"])
            say(f"{where}: {found} tokens ({result['seconds']:.0f} s)")
    return plan


def train_run(run: RetentionRun) -> None:
    """Train a run and keep its weights as float16."""
    from vococache.pipeline.training.folder import MODEL
    from vococache.pipeline.training.job import train as train_model

    teacher = None if run.settings.teacher is None else str(run.weights_from(run.settings.teacher))
    start = run.root / run.settings.model if run.continues is None else run.weights_from(run.continues)
    settings = run.settings.model_copy(update={"model": str(start), "teacher": teacher})
    if not (run.folder / MODEL / "config.json").is_file():  # else it was interrupted just before its end
        train_model(settings, run.folder, resume=any(run.folder.glob("checkpoint-*/trainer_state.json")))
    save_pretrained(load_model(run.folder / MODEL, dtype="float16", device="cpu"), run.weights)


def evaluate_run(run: RetentionRun, plan: RetentionPlan) -> dict[str, Any]:
    """Ask a trained run about the plan's pictures and write its `result.json`.

    `readings` has an entry for each number of tokens to `read` (None: all, as many as `tokens`): accuracy, its 95%
    interval, right answers and questions of each type (`by_type`) and of each picture in turn (`pictures`).
    """
    started = time.perf_counter()
    model = load_run(run)
    readings = []
    for tokens in run.read:
        trial = ask_unseen(model, unseen_pictures(plan.pictures, plan.asked, model.config.geometry.size), tokens)
        readings.append(
            {
                "read": tokens,
                "tokens": tokens or visible_tokens(model),
                "accuracy": trial.accuracy,
                "interval": trial.interval(),
                "by_type": trial.by_type(),
                "pictures": by_picture(trial),
            }
        )
    result = {
        "run": run.name,
        "questions": len(trial.rows),
        "readings": readings,
        "weights_of": run.weights_of,
        "continues": run.continues,
        "settings": run.settings.given(),
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    with whole_file(run.folder / RESULT) as unfinished:
        unfinished.write_text(json.dumps(result) + "\n")
    return result


def load_run(run: RetentionRun) -> VoCoModel:
    """A run's weights, compressing as its settings say: the lower bound takes another run's and cuts the text off."""
    kind = run.settings.compression
    if kind in ("cover", "pool"):  # a checkpoint that was not trained for it: a picture is a segment
        tokens = run.settings.voco_tokens
        return load_model(run.weights, dtype="float32", compression=kind, num_voco_tokens=tokens, frames_per_segment=1)
    model = load_model(run.weights, dtype="float32")
    return model if kind is None else with_compression(model, kind).eval()


def visible_tokens(model: VoCoModel) -> int:
    """How many tokens stand for a picture in front of a question, all of them read."""
    config = model.config
    return config.tokens_per_frame if config.compression == "full" else config.num_voco_tokens


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or clip that no training run saw, uint8 [frames, side, side, 3], and questions about it."""

    name: str
    frames: npt.NDArray[np.uint8]
    questions: list[Question]


@cache
def unseen_pictures(count: int, asked: int, side: int) -> list[Shown]:
    """`count` pictures as an encoder leaves them, `side` pixels wide, with up to `asked` questions each."""
    return _unseen(count, asked, side, still=True)


@cache
def unseen_clips(count: int, asked: int, side: int) -> list[Shown]:
    """The same with clips of 8 frames, in which things move."""
    return _unseen(count, asked, side, still=False)


def _unseen(count: int, asked: int, side: int, *, still: bool) -> list[Shown]:
    scenes = [make_scene(f"{SPLIT} {index}", still=still) for index in range(count)]
    instants = (0.0,) if still else LOOKS
    return [
        Shown(scene.seed, as_recorded(scene, instants, side), questions(scene, asked, Random(f"{scene.seed} asked")))
        for scene in scenes
    ]


@torch.inference_mode()
def ask_unseen(model: VoCoModel, shown: Sequence[Shown], tokens: int | None = None) -> Trial:
    """The model's greedy answers; the questions about a picture or clip go in one pass over its cache.

    `tokens`: they see only the first so many of each segment's tokens.
    """
    rows = []
    for first in range(0, len(shown), BATCH):
        batch = shown[first : first + BATCH]
        segments = [as_segments(list(item.frames), model.config.frames_per_segment) for item in batch]
        caches = model.compress(model.pixel_values(np.concatenate(segments)))
        if tokens is not None:
            caches = caches.first_tokens(tokens)
        start = 0
        for item, own in zip(batch, segments, strict=True):
            texts = [question_ids(model, question.text) for question in item.questions]
            placed = model.place(caches.slice(start, start + len(own)))
            start += len(own)
            answers = generate(model, placed, texts, ANSWER_TOKENS, GenerationOptions()).ids
            for asked, ids in zip(item.questions, answers, strict=True):
                said = answer_text(model, ids)
                rows.append(TrialAnswer(item.name, asked.text, asked.answer, said, asked.type, asked.template))
    return Trial(tuple(rows))


def by_picture(trial: Trial) -> list[tuple[int, int]]:
    """Of each picture in turn: right answers, questions."""
    found: dict[str, tuple[int, int]] = {}
    for row in trial.rows:
        right, asked = found.get(row.video, (0, 0))
        found[row.video] = (right + row.right, asked + 1)
    return list(found.values())
