"""Settings: what is taken, and what is refused in one line with the key's path."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vococache.errors import InputError
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import TrainSettings, check_stage, read_settings
from vococache.pipeline.training.trainer import training_arguments

GOOD: dict[str, Any] = {"model": "m", "data": [{"file": "a"}]}


def written(path: Path, text: str | dict[str, Any]) -> Path:
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a", "holds list; expected names and values"),
        ("1: 2", "keywords must be strings"),
        ({"model": "m"}, "data is missing"),
        (GOOD | {"layers": 3}, "layers is unknown; expected some of model, data"),
        (GOOD | {"model": 5}, "model: expected a valid string, found 5"),
        (GOOD | {"data": []}, r"data: Tuple should have at least 1 item"),
        (GOOD | {"data": 5}, "data: expected a valid tuple, found 5"),
        (GOOD | {"data": [{"file": "a"}, {"file": 3}]}, r"data\[1\].file: expected a valid string, found 3"),
        (GOOD | {"data": [{"url": "x"}]}, r"data\[0\].url is unknown; expected some of file, media"),
        (GOOD | {"data": [{"file": "a", "count": 3}]}, r"data\[0\]: expected `file` and `media`, or `synthetic`"),
        (GOOD | {"data": [{"synthetic": "train"}]}, r"data\[0\]: `synthetic` needs `count` and `asked`"),
        (GOOD | {"voco_tokens": "two"}, "voco_tokens: expected a valid integer, .*found 'two'"),
        (GOOD | {"seed": "a"}, "seed: expected a valid integer"),
        (GOOD | {"elastic": 1.5}, "elastic: expected a valid boolean"),
        (GOOD | {"fps": -1}, "fps: expected greater than 0, found -1"),
        (GOOD | {"max_frames": 0}, "max_frames: expected greater than or equal to 1, found 0"),
        (GOOD | {"distillation": 2}, "distillation: expected less than or equal to 1"),
        (GOOD | {"save_dtype": "int8"}, "save_dtype: expected 'bfloat16', 'float16' or 'float32', found 'int8'"),
        (GOOD | {"train": "reader"}, "train: expected a valid tuple, found 'reader'"),
        (GOOD | {"train": ["head"]}, r"train\[0\]: expected 'vision_tower', .* found 'head'"),
        (GOOD | {"trainer": 3}, "trainer: expected a valid dictionary, found 3"),
        (GOOD | {"trainer": {"seed": 3}}, "settings of their own"),
        (GOOD | {"store": "s"}, r"only `train: \[reader\]` can learn"),
        (GOOD | {"store": "s", "train": ["reader"], "reader": {"kind": "full"}, "teacher": "t"}, "`teacher` needs pix"),
        (GOOD | {"train": ["reader"]}, "say which"),
        (GOOD | {"reader": {"kind": "full"}}, r"would never learn: expected `train: \[reader\]`"),
        (GOOD | {"train": ["reader"], "reader": {"kind": "half"}}, "reader.kind: expected 'lora' or 'full'"),
        (GOOD | {"train": ["reader"], "reader": {"kind": "full", "r": 4}}, "reader: a full reader has no further"),
        (GOOD | {"train": ["reader"], "reader": {"kind": "lora", "rank": 4}}, "reader: not settings of .* 'rank'"),
        (GOOD | {"compose": {"tower": "t"}, "from_scratch": True}, "one of `from_scratch` and `compose`"),
        (GOOD | {"fps": 1, "num_frames": 8}, "one of `fps` and `num_frames`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, text: Any, message: str) -> None:
    path = written(tmp_path / "settings.yaml", text)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(path, {})
    assert str(caught.value).startswith(f"settings {path}")
    assert "\n" not in str(caught.value)


def test_values_are_changed_by_name(tmp_path: Path) -> None:
    path = written(tmp_path / "settings.yaml", GOOD | {"trainer": {"max_steps": 10}})
    changes = {"trainer.learning_rate": "1.0e-4", "elastic": "true", "voco_tokens": "8", "compose.tower": "t"}
    found = read_settings(path, changes)
    assert found.trainer == {"max_steps": 10, "learning_rate": 1e-4}
    assert (found.elastic, found.voco_tokens) == (True, 8)
    assert found.compose
    assert found.compose.tower == "t"
    with pytest.raises(InputError, match=r"model.name cannot be set: model holds 'm'"):
        read_settings(path, {"model.name": "x"})


def test_settings_are_written_and_sent_as_they_were_given(tmp_path: Path) -> None:
    reader = {"kind": "lora", "r": 4}
    found = TrainSettings(**GOOD, train=["reader"], reader=reader, trainer={"max_steps": 1})
    assert found.given() == GOOD | {"train": ["reader"], "reader": reader, "trainer": {"max_steps": 1}}
    assert read_settings(written(tmp_path / "settings.yaml", found.given()), {}) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert TrainSettings(**GOOD) == TrainSettings(**GOOD, seed=0)


def test_stages_take_what_belongs_to_them() -> None:
    clips = TrainSettings(model="m", data=({"synthetic": "train", "count": 1, "asked": 1},))
    check_stage(clips, "temporal")
    with pytest.raises(InputError, match="single segments"):
        check_stage(clips, "compress")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"steps": 3}, "trainer.steps is unknown"),
        ({"max_steps": "x"}, "trainer.max_steps: expected a valid integer, .*found 'x'"),
        ({"bf16": 1.5}, "trainer.bf16: expected a valid boolean"),
        ({"lr_scheduler_type": "wave"}, "the trainer's settings do not fit: wave is"),
        ({"deepspeed": "zero3.json"}, "trainer.deepspeed is not supported: .* use `fsdp: true`"),
        ({"push_to_hub": True}, "trainer.push_to_hub is not supported: .* uploads the run's model/"),
        ({"save_only_model": True}, "trainer.save_only_model is not supported: no run could go on"),
        ({"eval_strategy": True}, r"the trainer's settings do not fit: True is not a valid IntervalStrategy"),
        ({"neftune_noise_alpha": 5}, "trainer.neftune_noise_alpha is not supported"),
        ({"label_smoothing_factor": 0.1}, "trainer.label_smoothing_factor is not supported"),
        ({"use_liger_kernel": True}, "trainer.use_liger_kernel is not supported"),
        ({"report_to": "wandb"}, "trainer.report_to: wandb is not installed here"),
        ({"report_to": ["tensorboard", "paper"]}, "trainer.report_to: expected some of .*, found 'paper'"),
    ],
)
def test_what_the_trainer_cannot_take_is_refused_in_one_line(
    settings: Any, tmp_path: Path, trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(settings(trainer=trainer), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_yaml_reads_as_text_or_as_a_switch_is_what_the_trainer_means(tmp_path: Path) -> None:
    path = written(tmp_path / "settings.yaml", GOOD | {"trainer": {"push_to_hub": False, "report_to": "none"}})
    changes = {"trainer.learning_rate": "1e-4", "trainer.eval_strategy": "no", "trainer.save_strategy": "no"}
    arguments = training_arguments(read_settings(path, changes).trainer, tmp_path, seed=0)
    assert arguments.learning_rate == 1e-4
    assert (arguments.eval_strategy, arguments.save_strategy) == ("no", "no")


def test_a_process_uses_one_of_several_gpus_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = training_arguments({"use_cpu": False}, tmp_path, seed=0)
    arguments._n_gpu = 4  # what the Trainer finds on such a machine
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, arguments.per_device_train_batch_size)
    assert "of 4 GPUs one is used" in caplog.text


def test_only_voco_tokens_are_elastic(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`elastic` is about VoCo tokens"):
        train(settings(elastic=True, compression="full"), tmp_path)
