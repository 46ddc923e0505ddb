"""Training runs: what they write, that they resume, that they learn, alone and in parallel."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import vococache
from vococache.errors import InputError, StoreMismatchError
from vococache.model.checkpoints import load_model
from vococache.model.fingerprint import compressor_fingerprint
from vococache.model.saving import save_pretrained
from vococache.model.voco import IGNORED_LABEL
from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.training import trainer
from vococache.pipeline.training.conversations import read_conversations
from vococache.pipeline.training.examples import collate
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import TrainSettings, read_settings
from vococache.pipeline.training.stored import StoredExamples

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Trains as each file of settings says, and writes how many bytes of weights this process hashed.
COUNTED = """
import os, sys
from pathlib import Path
from vococache.model import fingerprint
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import read_settings

hashed, digest = [], fingerprint._values_digest
fingerprint._values_digest = lambda name, tensor: hashed.append(4 * tensor.numel()) or digest(name, tensor)
for path in map(Path, sys.argv[1:]):
    train(read_settings(path, {}), path.with_suffix(""))
    path.with_name(f"{path.stem}-{os.environ['RANK']}").write_text(str(sum(hashed)))
    hashed.clear()
"""


def logged(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> dict[int, float]:
    """The loss of each step, from the run's CSV."""
    return {int(row["step"]): float(row["value"]) for row in logged(out) if row["name"] == "loss"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, device="cpu").state_dict())


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    (file,) = folder.glob("*.safetensors")
    return {weight.dtype for weight in load_file(file).values()}


def write(settings: TrainSettings, path: Path) -> Path:
    path.write_text(yaml.safe_dump(settings.given()))
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that `in_process` starts: a sum's last bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_process(settings: TrainSettings, out: Path, *launcher: str, resume: bool = False) -> subprocess.Popen[str]:
    """`voco train compress` in a process of its own, under a launcher."""
    config = write(settings, out.with_suffix(".yaml"))
    command = [*launcher, str(Path(sys.executable).with_name("voco")), "train", "compress"]
    command += ["--config", str(config), "--out", str(out)] + (["--resume"] if resume else [])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class TestRun:
    def test_it_writes_a_model_logs_and_its_settings(self, settings: Any, tmp_path: Path) -> None:
        evaluation = ({"synthetic": "val", "count": 8, "asked": 3, "still": True},)
        chosen = settings(evaluation=evaluation, trainer={"eval_strategy": "steps", "eval_steps": 6}, note="A test.")
        figures = train(chosen, tmp_path)
        model = load_model(tmp_path / "model", device="cpu")
        assert model.config.extra["note"] == "A test."
        assert sorted(losses(tmp_path)) == list(range(1, 13))
        assert 0 <= figures["eval_token_accuracy"] <= 1
        names = {row["name"] for row in logged(tmp_path)}
        assert {"loss", "learning_rate", "grad_norm", "eval_loss", "eval_token_accuracy"} <= names
        assert list(tmp_path.glob("runs/*/events.out.tfevents.*")), "TensorBoard's events"
        again = read_settings(tmp_path / "settings.yaml", {})
        assert again == chosen

    def test_the_same_seed_gives_the_same_model(self, settings: Any, tmp_path: Path) -> None:
        for name in ("one", "two"):
            train(settings(trainer={"max_steps": 4}), tmp_path / name)
        one, two = weights(tmp_path / "one/model"), weights(tmp_path / "two/model")
        assert all(weight.equal(two[name]) for name, weight in one.items())

    def test_accumulated_steps_equal_large_ones(self, settings: Any, tmp_path: Path) -> None:
        train(settings(trainer={"max_steps": 3, "per_device_train_batch_size": 8}), tmp_path / "large")
        accumulated = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        train(settings(trainer=accumulated), tmp_path / "small")
        large, small = losses(tmp_path / "large"), losses(tmp_path / "small")
        assert large == pytest.approx(small, abs=2e-4)

    @pytest.mark.parametrize(
        ("bf16", "save_dtype", "expected"),
        [
            (True, None, "bfloat16"),
            (False, None, "float32"),
            (True, "float32", "float32"),
            (False, "float16", "float16"),
        ],
    )
    def test_it_saves_what_it_computes_in_unless_told(
        self, settings: Any, tmp_path: Path, monkeypatch: Any, bf16: bool, save_dtype: str | None, expected: str
    ) -> None:
        monkeypatch.setattr(trainer, "computes_bfloat16", lambda: True)
        train(settings(save_dtype=save_dtype, trainer={"bf16": bf16, "max_steps": 5}), tmp_path)
        found = losses(tmp_path)
        assert found[5] < found[1]
        assert stored_dtypes(tmp_path / "model") == {getattr(torch, expected)}
        model = load_model(tmp_path / "model", dtype=expected, device="cpu")
        assert model.config.extra["fingerprint"] == compressor_fingerprint(model)
        train(settings(model=str(tmp_path / "model"), from_scratch=False, trainer={"max_steps": 1}), tmp_path / "next")

    def test_checkpointing_changes_memory_and_no_weight(self, settings: Any, tmp_path: Path) -> None:
        for name, on in (("plain", False), ("again", True)):
            train(settings(gradient_checkpointing=on, trainer={"max_steps": 2}), tmp_path / name)
        plain, again = weights(tmp_path / "plain/model"), weights(tmp_path / "again/model")
        for name, weight in plain.items():
            torch.testing.assert_close(again[name], weight, atol=1e-6, rtol=1e-5, msg=name)

    def test_from_scratch_is_float32_whatever_the_config_names(
        self, settings: Any, blank: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(blank, tmp_path / "half")
        config = json.loads((blank / "config.json").read_text())
        config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "float16"
        (tmp_path / "half/config.json").write_text(json.dumps(config))
        train(settings(model=str(tmp_path / "half"), trainer={"max_steps": 1}), tmp_path / "run")
        assert {weight.dtype for weight in weights(tmp_path / "run/model").values()} == {torch.float32}


class TestResume:
    def test_a_killed_run_goes_on_to_the_same_losses_and_weights(
        self, settings: Any, tmp_path: Path, one_thread: None
    ) -> None:
        chosen = settings(elastic=True, trainer={"max_steps": 14, "save_steps": 5})
        train(chosen, tmp_path / "undisturbed")
        killed = tmp_path / "killed"
        process = in_process(chosen, killed)
        deadline = time.monotonic() + 120
        while not (killed / "checkpoint-5/trainer_state.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (killed / "model").exists(), "it was killed on the way"
        (killed / "checkpoint-9").mkdir()  # one that the kill left half-written
        train(chosen, killed, resume=True)
        expected = losses(tmp_path / "undisturbed")
        found = losses(killed)
        assert found == pytest.approx(expected, abs=1e-6)
        straight, resumed = weights(tmp_path / "undisturbed/model"), weights(killed / "model")
        for name, weight in straight.items():
            assert resumed[name].equal(weight), name

    def test_a_run_killed_behind_its_last_step_ends_as_if_nothing_were(self, settings: Any, tmp_path: Path) -> None:
        evaluation = ({"synthetic": "val", "count": 8, "asked": 2, "still": True},)
        chosen = settings(evaluation=evaluation, trainer={"max_steps": 4, "save_steps": 2})
        train(chosen, tmp_path)
        straight = weights(tmp_path / "model")
        for steps, lost in (([], "model"), ([3, 4], "checkpoint-4")):
            shutil.rmtree(tmp_path / "model")
            shutil.rmtree(tmp_path / lost, ignore_errors=True)
            (tmp_path / "log.csv").unlink()
            figures = train(chosen, tmp_path, resume=True)
            assert figures["eval_loss"] > 0
            assert list(losses(tmp_path)) == steps
            resumed = weights(tmp_path / "model")
            assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())

    def test_a_last_save_that_fails_loses_nothing(self, settings: Any, tmp_path: Path) -> None:
        chosen = settings(trainer={"max_steps": 5, "save_steps": 3})
        (tmp_path / "model").touch()  # as a full disk: the folder cannot be made
        with pytest.raises(OSError, match="model"):
            train(chosen, tmp_path)
        (tmp_path / "model").unlink()
        (tmp_path / "log.csv").unlink()
        train(chosen, tmp_path, resume=True)
        assert not (tmp_path / "log.csv").exists(), "no step was taken again"
        train(chosen, tmp_path / "straight")
        expected = weights(tmp_path / "straight/model")
        assert all(weight.equal(expected[name]) for name, weight in weights(tmp_path / "model").items())

    def test_without_a_checkpoint_there_is_nothing_to_resume(self, settings: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no checkpoint"):
            train(settings(), tmp_path, resume=True)


class TestParallel:
    @pytest.mark.slow
    def test_two_processes_train_what_one_does_with_twice_the_batch(self, settings: Any, tmp_path: Path) -> None:
        train(settings(trainer={"max_steps": 5, "per_device_train_batch_size": 8}), tmp_path / "one")
        chosen = settings(trainer={"max_steps": 5, "per_device_train_batch_size": 4, "ddp_backend": "gloo"})
        process = in_process(chosen, tmp_path / "two", *TORCHRUN, "--no-python")
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        one, two = weights(tmp_path / "one/model"), weights(tmp_path / "two/model")
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, atol=2e-4, rtol=1e-3, msg=name)

    @pytest.mark.slow
    def test_one_process_hashes_the_weights_and_only_for_a_store(
        self, settings: Any, corpus: Any, tmp_path: Path
    ) -> None:
        """Bytes hashed by each of two processes: at the end those of the saved model, and for a store at the start."""
        model, store, rows = corpus
        start: dict[str, Any] = {"model": str(model), "from_scratch": False}
        short = {"max_steps": 2, "per_device_train_batch_size": 1, "ddp_backend": "gloo"}
        reader: dict[str, Any] = {"train": ("reader",), "reader": {"kind": "lora", "r": 4}, "store": str(store)}
        write(settings(short, **start), tmp_path / "plain.yaml")
        write(settings(short, **start, **reader, data=({"file": str(rows)},)), tmp_path / "stored.yaml")
        (tmp_path / "counted.py").write_text(COUNTED)
        command = [*TORCHRUN, str(tmp_path / "counted.py"), str(tmp_path / "plain.yaml"), str(tmp_path / "stored.yaml")]
        process = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
        )
        assert process.returncode == 0, process.stderr
        plain, stored = (
            [int((tmp_path / f"{name}-{rank}").read_text()) for rank in range(2)] for name in ("plain", "stored")
        )
        assert plain[0] > 0
        assert stored[0] == 2 * plain[0]
        assert plain[1] == stored[1] == 0

    @pytest.mark.slow
    def test_ray_train_runs_the_same(self, settings: Any, tmp_path: Path) -> None:
        from vococache.pipeline.training.cluster import train_on_ray

        evaluation = ({"synthetic": "val", "count": 8, "asked": 2, "still": True},)
        chosen = settings(
            evaluation=evaluation, trainer={"max_steps": 5, "per_device_train_batch_size": 4, "ddp_backend": "gloo"}
        )
        figures = train_on_ray(chosen, tmp_path / "ray", workers=2)
        assert figures["eval_loss"] > 0
        train(settings(trainer={"max_steps": 5, "per_device_train_batch_size": 8}), tmp_path / "one")
        one, two = weights(tmp_path / "one/model"), weights(tmp_path / "ray/model")
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, atol=2e-4, rtol=1e-3, msg=name)

    @pytest.mark.slow
    def test_relative_paths_are_those_of_the_caller_and_errors_are_the_runs(
        self, settings: Any, blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from vococache.pipeline.training.cluster import train_on_ray

        shutil.copytree(blank, tmp_path / "blank")
        (tmp_path / "rows.jsonl").write_text('{"question": "which?", "answer": "red"}\n' * 4)
        monkeypatch.chdir(tmp_path)
        trainer = {"max_steps": 2, "per_device_train_batch_size": 2}
        start: dict[str, Any] = {"model": "blank", "data": ({"file": "rows.jsonl"},)}
        chosen = settings(**start, trainer=trainer | {"ddp_backend": "gloo"})
        train_on_ray(chosen, Path("ray"), workers=1)
        train(settings(**start, trainer=trainer), Path("one"))  # where there is no process group to name a backend of
        expected = weights(tmp_path / "one/model")
        for name, weight in weights(tmp_path / "ray/model").items():
            torch.testing.assert_close(weight, expected[name], atol=2e-4, rtol=1e-3, msg=name)
        with pytest.raises(InputError, match=r"the run in .*ray is finished"):
            train_on_ray(chosen, Path("ray"), workers=1)

    def test_more_workers_than_the_cluster_has_are_refused(self, settings: Any, tmp_path: Path) -> None:
        from vococache.pipeline.training.cluster import train_on_ray

        with pytest.raises(InputError, match=r"5000 workers need a CPU each, but the Ray cluster has"):
            train_on_ray(settings(), tmp_path, workers=5000)


class TestFromAStore:
    @pytest.mark.parametrize("reader", [{"kind": "lora", "r": 4}, {"kind": "full"}], ids=["lora", "full"])
    def test_only_the_reader_learns_and_the_store_stays_valid(
        self, settings: Any, corpus: Any, reader: dict[str, Any], tmp_path: Path
    ) -> None:
        model, store, rows = corpus
        data = ({"file": str(rows), "media": str(rows.parent / "videos")},)
        trainer = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 3, "save_steps": 15}
        chosen = settings(
            model=str(model), from_scratch=False, store=str(store), train=("reader",), reader=reader, data=data,
            trainer=trainer,
        )  # fmt: skip
        train(chosen, tmp_path)
        found = losses(tmp_path)
        assert found[30] < 0.3 * found[1]
        before, after = load_model(model, device="cpu"), load_model(tmp_path / "model", device="cpu")
        assert compressor_fingerprint(after) == compressor_fingerprint(before)
        old = before.state_dict()
        assert all(weight.equal(old[name]) for name, weight in after.state_dict().items() if _of_stage1(name))
        stage = open_reader(str(store), model=str(tmp_path / "model"))
        answers = ask(stage, "clip1", ["which one is it, 1?"], max_new_tokens=8)
        assert answers[0].answer == "red left"
        report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
        assert [(row["medium"].rsplit("/")[-1], row["cause"]) for row in report] == [("gone.mp4", "missing")]

    def test_a_reader_in_bfloat16_does_not_round_its_compressor(
        self, settings: Any, corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "computes_bfloat16", lambda: True)
        model, store, rows = corpus
        changes: dict[str, Any] = {
            "model": str(model), "from_scratch": False, "store": str(store), "train": ("reader",),
            "reader": {"kind": "lora", "r": 4}, "data": ({"file": str(rows)},),
            "trainer": {"max_steps": 2, "bf16": True},
        }  # fmt: skip
        train(settings(**changes), tmp_path / "run")
        open_reader(str(store), model=str(tmp_path / "run/model"))  # which checks the fingerprint
        with pytest.raises(InputError, match="`save_dtype: bfloat16` would round the compressor's weights"):
            train(settings(save_dtype="bfloat16", **changes), tmp_path / "two")

    def test_training_the_compressor_makes_another_store_necessary(
        self, settings: Any, corpus: Any, tmp_path: Path
    ) -> None:
        model, store, _ = corpus
        clips = ({"synthetic": "train", "count": 8, "asked": 2},)
        end_to_end = settings(
            model=str(model), from_scratch=False, data=clips, train=("projector", "language_model"),
            trainer={"max_steps": 2, "per_device_train_batch_size": 2},
        )  # fmt: skip
        train(end_to_end, tmp_path)
        before, after = (vococache.load_model(folder, device="cpu") for folder in (model, tmp_path / "model"))
        assert compressor_fingerprint(before) != compressor_fingerprint(after)
        layer = "language_model.layers.0.self_attn.k_proj.weight"
        assert not before.state_dict()[layer].equal(after.state_dict()[layer]), "gradients went through the caches"
        with pytest.raises(StoreMismatchError):
            open_reader(str(store), model=str(tmp_path / "model"))

    def test_a_row_without_room_is_reported_and_silent(self, corpus: Any, tmp_path: Path) -> None:
        model, store, rows = corpus
        (short, *_), _ = read_conversations(rows, rows.parent)
        long = replace(short, turns=(("x" * 5000, "yes"),))
        stage = open_reader(str(store), model=str(model))
        examples = StoredExamples(stage, [short, long], tmp_path / "report.jsonl")
        batch = collate([examples[0], examples[1]])
        assert batch["segments"][1] == 0
        assert (batch["labels"][1] == IGNORED_LABEL).all()
        (line,) = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
        assert (line["row"], line["cause"]) == (1, "too long")

    def test_a_reader_goes_on_as_it_is(self, settings: Any, corpus: Any, tmp_path: Path) -> None:
        model, store, rows = corpus
        loaded = load_model(model, device="cpu")
        loaded.add_reader({"kind": "lora", "r": 4})
        save_pretrained(loaded, tmp_path / "read")
        data = ({"file": str(rows)},)
        chosen = settings(
            model=str(tmp_path / "read"), from_scratch=False, store=str(store), train=("reader",),
            reader={"kind": "lora", "r": 8}, data=data,
        )  # fmt: skip
        with pytest.raises(InputError, match="has a reader already"):
            train(chosen, tmp_path / "run")

    def test_a_store_of_another_model_is_refused(self, settings: Any, corpus: Any, tmp_path: Path) -> None:
        _, store, rows = corpus
        data = ({"file": str(rows)},)
        with pytest.raises(StoreMismatchError):
            train(settings(store=str(store), train=("reader",), reader={"kind": "full"}, data=data), tmp_path)


def _of_stage1(name: str) -> bool:
    return name.startswith(("vision_tower", "projector", "language_model"))
