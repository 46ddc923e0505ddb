"""The comparison: its runs, what they are asked, and the arithmetic of its tables."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.checkpoints import load_model
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import VoCoModel
from vococache.pipeline.cli.command import cli
from vococache.pipeline.paper import retention as comparison
from vococache.pipeline.paper.retention import (
    RetentionPlan,
    RetentionRun,
    ask_unseen,
    by_picture,
    compare,
    load_run,
    read_plan,
    unseen_clips,
    unseen_pictures,
)
from vococache.pipeline.paper.retention_tables import TABLES, Line, make_line, outcomes, tables
from vococache.pipeline.synthetic.trial import Trial, TrialAnswer

ROOT = Path(__file__).parents[3]
PICTURES, ASKED = 6, 3
BASE = {
    "model": "start",
    "voco_tokens": 4,
    "data": [{"synthetic": "train", "count": 64, "asked": 3, "still": True}],
    "train": ["projector", "language_model"],
    "trainer": {
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_steps": 2, "logging_steps": 1,
        "use_cpu": True, "disable_tqdm": True, "report_to": [],
    },
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "upper": {"compression": "full"},
    "lower": {"compression": "voco", "weights_of": "upper"},
    "voco-4": {"compression": "voco"},
    "mean-4": {"compression": "mean"},
    "qformer-4": {"compression": "qformer"},
    "voco-8": {"voco_tokens": 8, "read": [8, 4, 2, 1]},
    "voco-8-elastic": {"continues": "voco-8", "voco_tokens": 8, "elastic": True, "read": [8, 4, 2, 1]},
    "voco-4-distilled": {"teacher": "upper"},
}


def write_plan(folder: Path, runs: dict[str, Any], **changes: Any) -> Path:
    plan = {"seeds": [0], "pictures": PICTURES, "asked": ASKED, "runs": runs} | changes
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan all of whose runs were trained, for four steps, and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = byte_tokenizer(["is there a red object? left right above below"] * 10, 320)
    model = random_model(small_config(tokenizer, width=32, layers=2, heads=2, size=60, tower_layers=1), seed=0)
    model.tokenizer = tokenizer
    save_pretrained(model.half(), folder / "start")
    compare(write_plan(folder, RUNS), train=True, say=print)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy to do anything to."""
    copy = Path(shutil.copytree(trained, tmp_path / "runs"))
    for file in copy.glob("*/*/settings.yaml"):  # which say whose a run is
        file.write_text(file.read_text().replace(str(trained), str(copy)))
    return copy


def run_of(folder: Path, name: str) -> RetentionRun:
    (run,) = (run for run in read_plan(folder).runs if run.name == name)
    return run


def result_of(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name / "seed-0/result.json").read_text()))


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def answers(model: VoCoModel, tokens: int | None = None) -> list[str]:
    found = ask_unseen(model, unseen_pictures(PICTURES, ASKED, 60), tokens)
    return [row.prediction for row in found.rows]


class TestRuns:
    def test_every_run_leaves_float16_weights_and_a_result(self, trained: Path) -> None:
        for name, entry in RUNS.items():
            result = result_of(trained, name)
            assert (result["run"], result["questions"], result["settings"]["model"]) == (name, 18, "start")
            assert [part["tokens"] for part in result["readings"]] == entry.get("read", [36 if name == "upper" else 4])
            assert {"cpu", "gpu", "torch"} <= result["machine"].keys()
            for part in result["readings"]:
                right = sum(right for right, _ in part["pictures"])
                assert [asked for _, asked in part["pictures"]] == [ASKED] * PICTURES
                assert part["accuracy"] == right / 18
                assert sum(right for right, _ in part["by_type"].values()) == right
                assert part["interval"][0] <= part["accuracy"] <= part["interval"][1]
            model = load_model(trained / ("upper" if name == "lower" else name) / "seed-0/weights", dtype="float16")
            assert all(weight.dtype == torch.float16 for weight in model.state_dict().values())

    def test_only_what_was_to_learn_did(self, trained: Path) -> None:
        start = load_model(trained / "start").state_dict()
        for name in ("upper", "voco-4", "mean-4", "qformer-4"):
            after = load_model(trained / name / "seed-0/weights").state_dict()
            changed = {part.split(".")[0] for part, weight in start.items() if not weight.equal(after[part])}
            assert "vision_tower" not in changed
            assert "language_model" in changed

    def test_the_second_time_nothing_is_done(self, runs: Path) -> None:
        before = contents(runs)
        said: list[str] = []
        compare(runs, train=True, say=said.append)
        assert said == []
        assert contents(runs) == before

    def test_an_evaluation_can_be_repeated(self, runs: Path) -> None:
        before = {name: result_of(runs, name) for name in RUNS}
        compare(runs, again=True, say=print)
        for name, result in before.items():
            assert result_of(runs, name) | {"seconds": 0} == result | {"seconds": 0}

    @pytest.mark.parametrize("lost", [("model", "weights", "checkpoint-4"), ("model", "weights"), ("weights",)])
    def test_an_interrupted_run_goes_on(self, runs: Path, lost: tuple[str, ...]) -> None:
        folder = runs / "voco-4/seed-0"
        weights = load_model(folder / "weights").state_dict()
        before = result_of(runs, "voco-4")["readings"]
        for name in lost:
            shutil.rmtree(folder / name)
        (folder / "result.json").unlink()
        log = (folder / "log.csv").read_text().splitlines()
        said: list[str] = []
        compare(runs, train=True, say=said.append)
        assert [line.split(": ")[0] for line in said] == ["voco-4, seed 0"] * 2
        added = [line for line in (folder / "log.csv").read_text().splitlines()[len(log) :] if ",loss," in line]
        assert added == ([line for line in log if ",loss," in line][2:] if "checkpoint-4" in lost else []), (
            "two steps or none"
        )
        again = load_model(folder / "weights").state_dict()
        assert all(weight.equal(again[name]) for name, weight in weights.items())
        assert result_of(runs, "voco-4")["readings"] == before

    def test_without_training_the_others_are_left_out(self, runs: Path) -> None:
        shutil.rmtree(runs / "mean-4")
        shutil.rmtree(runs / "upper")  # and so the lower bound has no weights either
        said: list[str] = []
        compare(runs, again=True, say=said.append)
        assert [line for line in said if "no weights" in line] == [
            f"{name}, seed 0: no weights, --train makes them" for name in ("upper", "lower", "mean-4")
        ]
        assert not (runs / "mean-4").exists()

    def test_a_run_continues_another(self, runs: Path) -> None:
        standing = {"continues": "voco-4", "trainer.learning_rate": 0.0}
        compare(write_plan(runs, RUNS | {"standing": standing}), train=True, say=print)
        start, weights = (load_model(runs / f"{name}/seed-0/weights").state_dict() for name in ("voco-4", "standing"))
        assert all(weight.equal(weights[name]) for name, weight in start.items())
        assert result_of(runs, "standing")["continues"] == "voco-4"

    def test_seeds_are_runs_of_their_own(self, runs: Path) -> None:
        write_plan(runs, {name: RUNS[name] for name in ("upper", "lower")}, seeds=[0, 7])
        said: list[str] = []
        plan = compare(runs, train=True, say=said.append)
        assert [line.split(": ")[0] for line in said] == ["upper, seed 7"] * 2 + ["lower, seed 7"]
        one, two = (load_model(runs / f"upper/seed-{seed}/weights").state_dict() for seed in (0, 7))
        assert not all(weight.equal(two[name]) for name, weight in one.items())
        assert outcomes(plan)["upper", None].right.shape == (2, PICTURES)


class TestAnswers:
    @pytest.mark.parametrize(("unseen", "frames"), [(unseen_pictures, 1), (unseen_clips, 1), (unseen_clips, 4)])
    def test_batches_and_packing_change_no_answer(
        self, trained: Path, monkeypatch: pytest.MonkeyPatch, unseen: Any, frames: int
    ) -> None:
        monkeypatch.setattr(comparison, "BATCH", 4)  # two batches, the second not full
        model = load_run(run_of(trained, "upper"))  # after four steps the others hardly look at the picture
        model.config = model.config.with_voco(frames=frames)
        shown = unseen(PICTURES, ASKED, 60)
        expected = []
        for item in shown:
            side = item.frames.shape[1]
            cache = model.compress(model.pixel_values(item.frames.reshape(-1, frames, side, side, 3)))
            for question in item.questions:
                ids = [*model.config.prompt.text_newline_ids, *model.encode_text(f"{question.text}\n")]
                (new,) = model.generate_ids(cache, torch.tensor([ids]), comparison.ANSWER_TOKENS)
                expected.append(model.tokenizer.decode(new, skip_special_tokens=True).strip())
        assert [row.prediction for row in ask_unseen(model, shown).rows] == expected
        assert len(set(expected)) > 1

    def test_the_lower_bound_is_the_upper_one_cut_off(self, trained: Path) -> None:
        """From its full cache, only the entries of the VoCo tokens, which come last, are left in front of a text."""
        lower, upper = (load_run(run_of(trained, name)) for name in ("lower", "upper"))
        weights = upper.state_dict()
        assert all(weight.equal(weights[name]) for name, weight in lower.state_dict().items())
        pixels = torch.rand(3, 1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
        everything = upper.compress(pixels).data
        assert everything.shape[4] == upper.config.stage1_length
        torch.testing.assert_close(lower.compress(pixels).data, everything[:, :, :, :, -4:], atol=1e-5, rtol=1e-5)
        assert answers(lower) != answers(upper)

    @pytest.mark.parametrize("tokens", [1, 2])
    def test_reading_fewer_tokens_is_having_made_fewer(self, trained: Path, tokens: int) -> None:
        run = run_of(trained, "voco-8")
        model = load_run(run)
        made = load_model(run.weights, num_voco_tokens=tokens, dtype="float32")
        assert answers(model, tokens) == answers(made) != answers(model)
        pixels = torch.rand(2, 1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
        first: VoCoCache = model.compress(pixels).first_tokens(tokens)
        torch.testing.assert_close(first.data, made.compress(pixels).data, atol=1e-5, rtol=1e-5)

    def test_right_answers_are_counted_by_picture(self) -> None:
        given = [("b", "red"), ("b", " Red"), ("a", "blue"), ("b", "a red"), ("a", "red"), ("c", "")]
        rows = [TrialAnswer(name, "what color is it?", "red", answer, "color", "colour_of") for name, answer in given]
        assert by_picture(Trial(tuple(rows))) == [(2, 3), (1, 2), (0, 1)]

    def test_the_pictures_are_not_those_of_training(self) -> None:
        assert all(picture.name.startswith("test ") for picture in unseen_pictures(PICTURES, ASKED, 60))


Counts = list[list[int]]


def write_result(folder: Path, name: str, pictures: Counts, *, seed: int = 0, **types: tuple[int, int]) -> None:
    """A result as `evaluate_run` writes it: right answers and questions of each picture, and of each type."""
    reading = {"read": None, "tokens": 2, "by_type": types, "pictures": pictures}
    path = folder / name / f"seed-{seed}/result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"readings": [reading], "machine": {"cpu": "abacus", "gpu": None, "torch": "2"}}))


class TestTables:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> Callable[..., RetentionPlan]:
        names = ("upper", "lower", "voco-4", "mean-4")
        return lambda *seeds: read_plan(write_plan(tmp_path, {name: RUNS[name] for name in names}, seeds=list(seeds)))

    def line(self, plan: RetentionPlan, run: str = "voco-4") -> Line:
        return make_line(("VoCo", run, None, 87.8), outcomes(plan))

    def test_retention_by_hand(self, plan: Callable[..., RetentionPlan], tmp_path: Path) -> None:
        write_result(tmp_path, "upper", [[9, 10]] * 4, color=(20, 20), count=(16, 20))
        write_result(tmp_path, "lower", [[4, 10]] * 4, color=(0, 20), count=(16, 20))
        write_result(tmp_path, "voco-4", [[8, 10]] * 4, color=(15, 20), count=(17, 20))
        found = self.line(plan(0))
        assert found.accuracy == 0.8
        assert found.retention == pytest.approx((0.8 - 0.4) / (0.9 - 0.4))
        assert found.retention_interval == pytest.approx((0.8, 0.8)), "whichever pictures are drawn"
        assert found.types == {"color": 0.75, "count": 0.85}
        assert found.type_retention == {"color": 0.75}, "there was nothing to lose in counting"
        assert [self.line(plan(0), run).retention for run in ("upper", "lower")] == [1, 0]

    def test_seeds_are_averaged(self, plan: Callable[..., RetentionPlan], tmp_path: Path) -> None:
        for seed, right in enumerate((7, 9)):
            write_result(tmp_path, "upper", [[9, 10]] * 4, seed=seed, color=(36, 40))
            write_result(tmp_path, "lower", [[4, 10]] * 4, seed=seed, color=(16, 40))
            write_result(tmp_path, "voco-4", [[right, 10]] * 4, seed=seed, color=(4 * right, 40))
        found = self.line(plan(0, 1, 2))
        assert (found.seeds, found.accuracy, found.types) == (2, 0.8, {"color": 0.8})
        assert found.retention == pytest.approx(0.8)
        assert found.accuracy_interval == pytest.approx((0.7, 0.9)), "both times the one seed, or the other"

    def test_intervals_are_paired(self, plan: Callable[..., RetentionPlan], tmp_path: Path) -> None:
        """All methods are asked about the same pictures: one that errs where full attention errs has lost nothing."""
        counts = [[number % 5, 4] for number in range(40)]
        write_result(tmp_path, "upper", counts, color=(80, 160))
        write_result(tmp_path, "lower", [[0, 4]] * 40, color=(0, 160))
        write_result(tmp_path, "voco-4", counts, color=(80, 160))
        found = self.line(plan(0))
        assert found.retention_interval == (1, 1)
        assert found.accuracy_interval is not None
        low, high = found.accuracy_interval
        deviation = (2 / 16 / 40) ** 0.5  # of 0, 1/4, ..., 4/4 with equal chances
        assert (low, high) == pytest.approx((0.5 - 1.96 * deviation, 0.5 + 1.96 * deviation), abs=0.02)

    def test_gaps_are_gaps(self, plan: Callable[..., RetentionPlan], tmp_path: Path) -> None:
        write_result(tmp_path, "upper", [[9, 10]] * 4, color=(36, 40))
        write_result(tmp_path, "voco-4", [[8, 10]] * 4, color=(32, 40))
        text, values = tables(plan(0))
        rows = {row.split(" | ")[0]: row for row in text.splitlines()}
        assert rows["| VoCo"] == "| VoCo | 2 | 1 | 80.0 / - | 80.0 [80.0, 80.0] | - | 83.7 |"
        assert rows["| Average pooling + linear"] == "| Average pooling + linear | - | 0 | - | - | - | 64.1 |"
        found = values["tables"]["Methods (the paper's Table 1)"]
        assert [row["retention"] for row in found] == [None] * 6
        write_result(tmp_path, "lower", [[9, 10]] * 4, color=(36, 40))
        assert self.line(plan(0)).retention is None, "bounds that do not differ measure nothing"

    def test_nothing_at_all_is_a_table_of_gaps(self, plan: Callable[..., RetentionPlan]) -> None:
        text, values = tables(plan(0))
        assert values["machines"] == []
        assert "| VoCo | - | 0 | - | - | 83.7 |" in text

    def test_results_of_different_questions_are_refused(
        self, plan: Callable[..., RetentionPlan], tmp_path: Path
    ) -> None:
        write_result(tmp_path, "upper", [[9, 10]] * 4)
        write_result(tmp_path, "lower", [[4, 10]] * 5)
        with pytest.raises(InputError, match="evaluate all runs with --again"):
            tables(plan(0))


class TestCommand:
    def test_it_prints_and_writes_the_tables(self, runs: Path) -> None:
        (runs / "mean-4/seed-0/result.json").unlink()
        done = CliRunner().invoke(cli, ["bench", "retention", str(runs)], catch_exceptions=False)
        assert done.exit_code == 0
        assert done.stderr.startswith("mean-4, seed 0: ")
        text, values = done.stdout.rsplit("\n", 2)[:2]
        assert (runs / "table.md").read_text().strip() == text.strip()
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            f"## {table.title}" for table in TABLES
        ]
        found = json.loads(values)
        rows = found["tables"]["Read with fewer tokens than made (Table 4)"]
        read = {(row["run"], row["tokens"]): row["accuracy"] for row in rows}
        for part in result_of(runs, "voco-8")["readings"]:
            assert read["voco-8", part["tokens"]] == pytest.approx(part["accuracy"])
        over_k = {row["method"]: row["seeds"] for row in found["tables"]["VoCo over K (Table 2)"]}
        assert (over_k["VoCo, K = 8"], over_k["VoCo, K = 2"], over_k["VoCo, K = 1"]) == (1, 0, 0), "gaps"

    def test_a_folder_without_a_plan_is_refused(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(cli, ["bench", "retention", str(tmp_path)])
        assert isinstance(done.exception, InputError)


class TestPlan:
    @pytest.mark.parametrize(
        ("runs", "message"),
        [
            ({"voco-4": {"teacher": "upper"}}, "'voco-4' needs 'upper', which is no run before it"),
            ({"lower": {"weights_of": "upper"}, "upper": {}}, "'lower' needs 'upper', which is no run before it"),
            ({"voco-8": {"continues": "voco-4"}}, "'voco-8' needs 'voco-4', which is no run before it"),
            ({"voco-4": {"layers": 3}}, r"layers is unknown"),
        ],
    )
    def test_runs_that_cannot_be(self, runs: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=message):
            read_plan(write_plan(tmp_path, runs))

    @pytest.mark.parametrize(
        ("text", "message"), [("seeds: [", "cannot be read as YAML"), ("seeds: [0]", "lacks"), ("- a", "lacks")]
    )
    def test_files_that_are_no_plan(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read_plan(tmp_path)
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_plan(tmp_path)

    def test_the_committed_plan_is_what_the_tables_show(self) -> None:
        plan = read_plan(ROOT / "benchmarks/retention")
        planned = {(run.name, tokens) for run in plan.runs for tokens in run.read}
        shown = {(name, tokens) for table in TABLES for _, name, tokens, _ in table.rows}
        assert shown == planned
        assert plan.pictures * plan.asked >= 1000
