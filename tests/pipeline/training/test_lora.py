"""Adapters on the compressor: trained beside frozen weights, kept in PEFT's format, merged into a model."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.pipeline.training.test_job import losses, stored_dtypes

from vococache.errors import InputError, ModelError
from vococache.model.checkpoints import load_model
from vococache.model.convert import convert
from vococache.pipeline.training.dry_run import dry_run
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import TrainSettings
from vococache.pipeline.training.start import starting_model

LORA = {"lora": {"r": 4, "lora_alpha": 8}, "from_scratch": False, "train": ("projector", "language_model")}


@pytest.mark.parametrize("composed", [False, True])
def test_adapters_learn_resume_and_are_merged_into_their_base(
    settings: Any, family: Path, parts: tuple[Path, Path], tmp_path: Path, composed: bool
) -> None:
    start: dict[str, Any] = {"model": str(family)}
    if composed:
        start = {"model": str(parts[0]), "compose": {"tower": str(parts[1])}}
    trainer = {"max_steps": 6, "save_steps": 4, "learning_rate": 1e-2}
    run = settings(trainer, **start, **LORA, voco_tokens=3, note="a note")
    train(run, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[6] < found[1]
    checkpoint = load_file(tmp_path / "run/checkpoint-4/model.safetensors")
    kinds = {"lora" if "lora_" in name else name.split(".")[1] for name in checkpoint}
    assert kinds == {"lora", "projector"}, "what learns alone"
    adapter = load_file(tmp_path / "run/model/adapter_model.safetensors")
    for name in ("checkpoint-6", "model", "log.csv"):
        path = tmp_path / "run" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    train(run, tmp_path / "run", resume=True)
    again = load_file(tmp_path / "run/model/adapter_model.safetensors")
    assert again.keys() == adapter.keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-5, rtol=1e-4, msg=name)

    with pytest.raises(ModelError, match="voco convert"):
        load_model(tmp_path / "run/model")
    convert(tmp_path / "run/model", tmp_path / "merged")
    merged = load_model(tmp_path / "merged", device="cpu")
    assert merged.config.num_voco_tokens == 3
    assert json.loads((tmp_path / "merged/config.json").read_text())["note"] == "a note"
    # PEFT itself reads the adapter, over the base that the run started from.
    base = starting_model(settings(**start, from_scratch=False, voco_tokens=3), torch.device("cpu"), torch.float32)
    over: Any = PeftModel.from_pretrained(base, str(tmp_path / "run/model"))
    pixels = torch.randn(2, 1, 3, base.config.geometry.size, base.config.geometry.size)
    with torch.no_grad():
        expected = over.base_model.model.eval().compress(pixels).data
        torch.testing.assert_close(merged.compress(pixels).data, expected, atol=1e-5, rtol=1e-4)
        plain = load_model(family, compression="voco", device="cpu", num_voco_tokens=3)
        assert composed or not torch.allclose(plain.compress(pixels).data, expected, atol=1e-3)


def test_a_base_in_bfloat16_is_trained_beside_adapters_in_float32(settings: Any, family: Path, tmp_path: Path) -> None:
    clips = {"synthetic": "validation", "count": 8, "asked": 2, "still": True}
    run = settings({"max_steps": 2, "bf16": True}, model=str(family), **LORA, evaluation=(clips,))
    assert "eval_exact_match" in train(run, tmp_path / "run")
    model = starting_model(run, torch.device("cpu"), torch.bfloat16)
    kinds = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    convert(tmp_path / "run/model", tmp_path / "merged")
    assert stored_dtypes(tmp_path / "merged") == {torch.bfloat16}


def test_a_base_in_4_bits(settings: Any, family: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = settings({"max_steps": 2, "bf16": True}, model=str(family), **LORA, load_in_4bit=True)
    train(run, tmp_path / "run")
    convert(tmp_path / "run/model", tmp_path / "merged")
    load_model(tmp_path / "merged", device="cpu")


def test_4_bits_without_bitsandbytes_are_one_line_before_anything_is_loaded(
    settings: Any, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    shutil.copytree(family, tmp_path / "family", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match="load_in_4bit` needs bitsandbytes, which is not installed here"):
        dry_run(settings(model=str(tmp_path / "family"), **LORA, load_in_4bit=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("projector",)}, "`lora` is how the language model learns"),
        ({"from_scratch": True}, "`lora` changes weights that there are"),
        ({"lora": {"rank": 4}}, "lora: not settings of peft's LoraConfig"),
        ({"lora": None, "load_in_4bit": True}, "weights in 4 bits cannot learn"),
        ({"trainer": {"fsdp": True}}, "`lora` is trained without `fsdp`"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings(**{"model": "m", "data": ({"file": "f"},), **LORA, **changes})
