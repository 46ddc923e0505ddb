"""A run's folder belongs to its settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from vococache.errors import InputError
from vococache.pipeline.training.job import train

SHORT = {"max_steps": 2, "save_steps": 1}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_run_is_refused_and_changes_nothing(settings: Any, tmp_path: Path) -> None:
    train(settings(trainer=SHORT), tmp_path)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    before = files(tmp_path)
    other = settings(voco_tokens=4, trainer=SHORT | {"learning_rate": 1e-4})
    for resume in (True, False):
        with pytest.raises(InputError, match=r"another voco_tokens, trainer.learning_rate .*take another --out, or"):
            train(other, tmp_path, resume=resume)
    with pytest.raises(InputError, match=r"has checkpoints of a run: go on with --resume, or .*--overwrite"):
        train(settings(trainer=SHORT), tmp_path)
    (tmp_path / "settings.yaml").unlink()
    with pytest.raises(InputError, match=r"holds checkpoint-1, but no settings.yaml .*take another --out"):
        train(other, tmp_path, overwrite=True)
    del before[str(tmp_path / "settings.yaml")]
    assert files(tmp_path) == before


def test_a_finished_model_is_overwritten_only_when_asked(settings: Any, tmp_path: Path) -> None:
    train(settings(trainer=SHORT), tmp_path)
    before = files(tmp_path)
    for resume in (True, False):
        with pytest.raises(InputError, match=r"the run in .* is finished: take another --out, or .*--overwrite"):
            train(settings(trainer=SHORT), tmp_path, resume=resume)
    assert files(tmp_path) == before
    train(settings(voco_tokens=4, trainer=SHORT | {"max_steps": 1}), tmp_path, overwrite=True)
    assert json.loads((tmp_path / "model/config.json").read_text())["num_voco_tokens"] == 4
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (tmp_path / "log.csv").read_text().count(",loss,") == 1


def test_a_folder_of_other_things_keeps_them(settings: Any, tmp_path: Path) -> None:
    """`--out .` in a project that has a folder called model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.py").touch()
    train(settings(trainer={"max_steps": 1}), tmp_path, overwrite=True)
    assert (tmp_path / "model/mine.py").exists()
