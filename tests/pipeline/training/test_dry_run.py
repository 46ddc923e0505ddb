"""`voco train --dry-run`: what a run would take, told before a weight is read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from tests.clips import make_clip

from vococache.errors import InputError
from vococache.model.training_costs import STATE_BYTES, TrainingStep, activation_bytes, step_flops
from vococache.model.voco import IGNORED_LABEL
from vococache.pipeline.cli.train import train_group
from vococache.pipeline.training.dry_run import RATE, SHARE, dry_run, state_bytes
from vococache.pipeline.training.examples import encode_turns
from vococache.pipeline.training.job import train
from vococache.pipeline.training.start import starting_model

TURNS = (("What?", "A ball."),)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Eight usable rows, alike but for their media: four of text, two pictures, two clips of 3 frames at 2 a second."""
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    make_clip(tmp_path / "b.mp4", frames=12)
    plain = {"question": "What?", "answer": "A ball."}
    rows = [plain] * 4 + [plain | {"image": "a.png"}] * 2 + [plain | {"video": "b.mp4"}] * 2
    rows += [plain | {"image": "gone.png"}, plain | {"answer": ""}, {"question": "What?"}, {"question": "Why?"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"file": str(tmp_path / "rows.jsonl")}


def without_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def test_rows_steps_memory_and_hours(settings: Any, data: dict[str, Any], tmp_path: Path) -> None:
    trainer = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 2}
    run = settings(trainer, data=(data,), fps=2.0, train=("projector", "language_model"))
    found = "\n".join(dry_run(run))
    assert "rows.jsonl: 8 rows of 12; left out: 2 odd, expected the fields of one of" in found
    assert "; 1 missing" in found
    assert "; 1 empty" in found
    model = starting_model(run, torch.device("cpu"), torch.float32)
    text = encode_turns(model.tokenizer, model.config.prompt, TURNS)
    labels = sum(label != IGNORED_LABEL for label in text.labels)
    segments = 2 * 1 + 2 * 3  # a picture is one, a clip three
    assert re.search(
        rf"on average: {segments / 8:.1f} segments .* {len(text.ids)} tokens of text, {labels} of them", found
    )
    assert "steps: 12, each of 2 x 1 rows on 1 process; rows seen: 24" in found
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters()) - trained
    longest = TrainingStep(segments=6, rows=2, text=len(text.ids), labels=2 * labels)
    memory = activation_bytes(model.config, longest, checkpointing=False, bytes_per_value=4)
    assert f"{(STATE_BYTES * trained + 4 * frozen) / 1e9:.3g} GB of weights" in found
    assert f"{memory / 1e9:.3g} GB of activations" in found
    flops = 12 * step_flops(
        model.config, TrainingStep(segments=2, rows=2, text=len(text.ids), labels=2 * labels), checkpointing=False
    )
    assert f"{flops / 1e15:.3g} PFLOPs; {flops / (RATE * SHARE) / 3600:.2g} hours on 1 A100" in found


def test_what_is_planned_is_what_starts(settings: Any, tmp_path: Path) -> None:
    """The same weights learn; the plan's have no storage."""
    train(settings({"max_steps": 1}), tmp_path / "run")
    for changes in (
        {"train": ("reader",), "reader": {"kind": "lora", "r": 4}},
        {"train": ("reader",), "reader": {"kind": "full"}},
        {"compression": "qformer", "voco_tokens": 4},
        {"lora": {"r": 4}, "train": ("projector", "language_model")},
    ):
        run = settings(**{"model": str(tmp_path / "run/model"), "from_scratch": False, "voco_tokens": 3, **changes})
        planned, started = (starting_model(run, torch.device(place), torch.float32) for place in ("meta", "cpu"))
        assert planned.config == started.config
        for one, other in zip(planned.named_parameters(), started.named_parameters(), strict=True):
            assert (one[0], one[1].shape, one[1].requires_grad) == (other[0], other[1].shape, other[1].requires_grad)
            assert one[1].is_meta


def test_the_command_reads_no_weight_and_writes_nothing(settings: Any, tmp_path: Path) -> None:
    train(settings({"max_steps": 1}), tmp_path / "run")
    without_weights(tmp_path / "run/model")
    clips = {"synthetic": "train", "count": 64, "asked": 2, "still": True}
    run = {"model": str(tmp_path / "run/model"), "data": [clips], "trainer": {"per_device_train_batch_size": 4}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = ["compress", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(train_group, [*command, "--workers", "2"], catch_exceptions=False)
    assert "steps: 24, each of 4 x 1 rows on 2 processes; rows seen: 192" in result.stdout
    assert "a row, on average: 1.0 segments" in result.stdout
    assert not (tmp_path / "out").exists()


def test_caches_in_a_store_are_counted(settings: Any, corpus: tuple[Path, Path, Path]) -> None:
    model, store, rows = corpus
    run = settings(
        model=str(model), from_scratch=False, store=str(store), train=("reader",), reader={"kind": "full"},
        data=({"file": str(rows)},),
    )  # fmt: skip
    found = "\n".join(dry_run(run))
    assert "3 rows of 4; left out: 1 without a video in the store" in found
    assert "computing: at most, as if with stage 1" in found


def test_a_run_without_rows_is_refused(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "gone.png", "question": "Q", "answer": "A"}))
    with pytest.raises(InputError, match=r"none of the rows can be trained on: .*1 missing"):
        dry_run(settings(data=({"file": str(tmp_path / "rows.jsonl")},)))


def test_frozen_weights_take_what_they_are_held_in(settings: Any, tmp_path: Path) -> None:
    train(settings({"max_steps": 1}), tmp_path / "run")
    run = settings(
        model=str(tmp_path / "run/model"), from_scratch=False, lora={"r": 4}, train=("projector", "language_model")
    )
    model = starting_model(run, torch.device("meta"), torch.bfloat16)
    learn = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    assert state_bytes(model) == 16 * learn + 2 * frozen
    assert state_bytes(model, teacher=2) == state_bytes(model) + 2 * (learn + frozen)
    products = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("base_layer.weight"))
    assert state_bytes(model, in_4bit=True) == state_bytes(model) - (2 - 0.5625) * products
