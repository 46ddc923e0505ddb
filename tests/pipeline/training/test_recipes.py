"""The committed recipes and the document about training say what the code takes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from vococache.model.checkpoints import load_model
from vococache.model.convert import convert
from vococache.pipeline.training import trainer
from vococache.pipeline.training.conversations import read_conversations
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import Source, TrainSettings, check_stage, read_settings, table
from vococache.pipeline.training.trainer import training_arguments

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "pipeline/training/recipes").glob("*.yaml"))
DOCUMENT = (ROOT / "docs/training.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    arguments = training_arguments(recipe["trainer"], tmp_path, seed=0)
    assert arguments.learning_rate == recipe["trainer"]["learning_rate"]
    if "data" in recipe:  # the embedded model's tower has no texts
        check_stage(read_settings(path, {}), "temporal" if "temporal" in path.stem else "compress")


@pytest.mark.parametrize("name", ["compress", "temporal", "temporal-reader"])
def test_the_papers_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: True)  # as the GPUs that it is for
    settings = read_settings(ROOT / f"pipeline/training/recipes/vicuna-7b-{name}.yaml", {})
    arguments = training_arguments(settings.trainer, tmp_path, seed=0)
    assert 8 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 128
    assert arguments.get_warmup_steps(1000) == 30
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.bf16
    assert settings.gradient_checkpointing
    assert "vision_tower" not in settings.train
    assert settings.compose if name == "compress" else not settings.compose
    assert not any("webvid" in str(source.file) for source in settings.data), "which can no longer be fetched"
    if name != "temporal-reader":
        assert arguments.learning_rate == 2e-5
        assert arguments.fsdp_plugin_args["fsdp_version"] == 2
        assert arguments.fsdp_plugin_args["transformer_cls_names_to_wrap"] == "DecoderLayer,CLIPEncoderLayer"


@pytest.mark.parametrize(
    ("recipe", "start"),
    [("smolvlm2-500m", "family"), ("onevision-0.5b", "onevision"), ("vicuna-7b-lora", "parts"), ("vicuna-7b", "parts")],
)
def test_a_recipe_starts_stops_and_goes_on_at_tiny_size(
    recipe: str, start: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    said = [[{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "red " * n}] for n in range(1, 5)]
    rows = [{"id": str(number), "image": "a.png", "conversations": turns} for number, turns in enumerate(said)]
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = request.getfixturevalue(start)
    changes = {"data": f"[{{file: {tmp_path / 'rows.json'}}}]", "model": str(found[0] if start == "parts" else found)}
    if start == "parts":
        changes |= {"compose.tower": str(found[1]), "compose.projector": "null"}
    small = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
             "dataloader_num_workers": 0, "use_cpu": "true", "fsdp": "null", "fsdp_config": "null"}  # fmt: skip
    changes |= {f"trainer.{name}": str(value) for name, value in small.items()}
    run = read_settings(ROOT / f"pipeline/training/recipes/{recipe}-compress.yaml", changes)
    train(run, tmp_path / "run")
    for late in ("model", "checkpoint-2"):  # as if it had been stopped
        shutil.rmtree(tmp_path / "run" / late)
    train(run, tmp_path / "run", resume=True)
    model = tmp_path / "run/model"
    if run.lora:
        convert(model, tmp_path / "merged")
        model = tmp_path / "merged"
    assert load_model(model, device="cpu").config.num_voco_tokens == 2


def test_the_quick_start_is_the_papers_recipe_with_another_start() -> None:
    path = ROOT / "pipeline/training/recipes/vicuna-7b-compress.yaml"
    changes = {"compose": "null", "model": "llava-hf/llava-1.5-7b-hf"}
    told = " ".join(f"--set {name}={value}" for name, value in changes.items())
    assert told in path.read_text()
    assert told in DOCUMENT
    quick, papers = read_settings(path, changes), read_settings(path, {})
    assert quick == papers.model_copy(update={"model": changes["model"], "compose": None})


def test_bf16_is_float32_where_a_cpu_has_no_such_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: False)
    wanted = {"bf16": True, "use_cpu": True}
    assert not trainer.training_arguments(wanted, tmp_path, seed=0).bf16
    assert "training in float32 instead of bf16" in caplog.text
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: True)
    assert trainer.training_arguments(wanted, tmp_path, seed=0).bf16


@pytest.mark.parametrize("model", [TrainSettings, Source])
def test_the_documents_tables_are_those_of_the_settings(model: type[BaseModel]) -> None:
    assert table(model) in DOCUMENT, "python -m vococache.pipeline.training.settings prints them"


def examples(language: str) -> list[str]:
    blocks = DOCUMENT.split("```")[1::2]
    return [block.removeprefix(language + "\n") for block in blocks if block.startswith(language + "\n")]


@pytest.mark.parametrize("text", examples("yaml"))
def test_the_documents_settings_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    training_arguments(read_settings(path, {}).trainer, tmp_path, seed=0)


@pytest.mark.parametrize("text", [*examples("json"), *examples("csv")])
def test_the_documents_data_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(text)
    assert all(row.turns for row in read_conversations(path, tmp_path)[0])
