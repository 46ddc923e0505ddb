"""Training with sharded weights (FSDP), between two processes on CPUs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.pipeline.training.test_job import TORCHRUN, in_process, losses, weights

from vococache.errors import InputError
from vococache.model.checkpoints import load_model, read_layout
from vococache.model.fingerprint import compressor_fingerprint
from vococache.model.saving import save_pretrained
from vococache.model.scratch import random_model
from vococache.pipeline.training.job import train
from vococache.pipeline.training.trainer import training_arguments

SHARDED = {
    "ddp_backend": "gloo", "fsdp": True, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 1,
    "fsdp_config": {"transformer_layer_cls_to_wrap": ["DecoderLayer", "CLIPEncoderLayer"]},
}  # fmt: skip


@pytest.fixture
def run(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train in two processes; keyword arguments change the settings, `trainer` those of the Trainer."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else FSDP looks for its shards on the GPU

    def start(out: Path, trainer: dict[str, Any], *, resume: bool = False, **changes: Any) -> None:
        process = in_process(
            settings(trainer=SHARDED | trainer, **changes), out, *TORCHRUN, "--no-python", resume=resume
        )
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output

    return start


@pytest.fixture
def mostly_text(tmp_path: Path) -> dict[str, Any]:
    """Rows of which only one has a picture, so that a process can meet texts alone."""
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    rows = [{"question": "is there a red object?", "answer": "left"} for _ in range(15)]
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "red.png", **rows[0]}, *rows]))
    return {"file": str(tmp_path / "rows.json")}


def assert_close(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_shards_train_what_one_process_does_with_twice_the_batch(
    settings: Any, run: Any, blank: Path, mostly_text: dict[str, Any], tmp_path: Path
) -> None:
    """With a teacher, whose weights are sharded too: the second process loads none."""
    layout = read_layout(blank, "voco")
    teacher = random_model(layout.config, 7)
    teacher.codec = layout.codec
    save_pretrained(teacher, tmp_path / "teacher")
    changes = {"teacher": str(tmp_path / "teacher"), "data": (mostly_text,)}
    train(settings(trainer={"max_steps": 5, "per_device_train_batch_size": 8}, **changes), tmp_path / "one")
    # In evaluation too, a process whose rows are all text must gather the layers as often as the other.
    run(tmp_path / "two", {"max_steps": 5, "save_steps": 4}, evaluation=(mostly_text,), **changes)
    assert (tmp_path / "two/checkpoint-4/pytorch_model_fsdp.bin").exists(), "the weights were sharded"
    assert_close(tmp_path / "one/model", tmp_path / "two/model")


@pytest.mark.slow
def test_a_sharded_run_with_checkpointing_resumes_to_the_same_weights(settings: Any, run: Any, tmp_path: Path) -> None:
    train(settings(trainer={"max_steps": 6, "per_device_train_batch_size": 8}), tmp_path / "one")
    out = tmp_path / "two"
    sharded = SHARDED["fsdp_config"] | {"state_dict_type": "SHARDED_STATE_DICT"}
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = {"max_steps": 6, "save_steps": 3, "fsdp_config": sharded} | accumulated
    run(out, trainer, gradient_checkpointing=True)
    assert_close(tmp_path / "one/model", out / "model")
    (out / "model").rename(tmp_path / "straight")
    run(out, trainer, gradient_checkpointing=True, resume=True)  # of which nothing is left to do
    assert_close(tmp_path / "straight", out / "model")
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoint-6")
    run(out, trainer, gradient_checkpointing=True, resume=True)
    assert_close(tmp_path / "straight", out / "model")


@pytest.mark.slow
def test_shards_of_a_checkpoint_with_tied_embeddings_and_a_reader(
    settings: Any, run: Any, blank: Path, tmp_path: Path
) -> None:
    """One process reads it; what both save is one table, and the compressor as it was."""
    config = read_layout(blank, "voco").config
    config.text.tie_word_embeddings = True
    model = random_model(config, 0)
    model.codec = read_layout(blank, "voco").codec
    save_pretrained(model, tmp_path / "start")
    changes = {"model": str(tmp_path / "start"), "from_scratch": False, "train": ("reader",)}
    changes |= {"reader": {"kind": "full"}}
    train(settings(trainer={"max_steps": 3, "per_device_train_batch_size": 8}, **changes), tmp_path / "one")
    run(tmp_path / "two", {"max_steps": 3}, **changes)
    assert_close(tmp_path / "one/model", tmp_path / "two/model")
    assert (tmp_path / "one/model/model.safetensors").stat().st_size == (
        (tmp_path / "two/model/model.safetensors").stat().st_size
    )
    first, second = (load_model(folder, device="cpu") for folder in (tmp_path / "start", tmp_path / "two/model"))
    assert compressor_fingerprint(first) == compressor_fingerprint(second)
    assert not first.state_dict()["lm_head.weight"].equal(second.state_dict()["lm_head.weight"])


@pytest.mark.slow
def test_bfloat16_shards_keep_float32_weights_and_losses(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "two", {"max_steps": 8, "bf16": True}, save_dtype="float32")
    found = losses(tmp_path / "two")
    assert found[8] < found[1]
    assert any(loss != torch.tensor(loss).bfloat16().item() for loss in found.values())
    assert {weight.dtype for weight in weights(tmp_path / "two/model").values()} == {torch.float32}


@pytest.mark.slow
def test_a_lora_reader_is_refused(settings: Any, tmp_path: Path) -> None:
    chosen = settings(trainer=SHARDED, train=("reader",), reader={"kind": "lora", "r": 2})
    process = in_process(chosen, tmp_path / "two", *TORCHRUN, "--no-python")
    output, _ = process.communicate(timeout=280)
    assert process.returncode
    assert "a LoRA reader shares the decoder's weights" in output


def test_gradients_stay_sharded_while_they_accumulate(tmp_path: Path) -> None:
    """Unless told: then they wait in each process, whole, for the last batch."""
    told = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": False}}}
    for trainer, sync in (({}, True), (told, False)):
        accelerator: Any = training_arguments({"fsdp": True} | trainer, tmp_path, 0).accelerator_config
        assert accelerator.gradient_accumulation_kwargs == {"sync_each_batch": sync}


def test_one_process_has_nothing_to_shard_with(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shards between processes, found one"):
        train(settings(trainer={"fsdp": True}), tmp_path)
