"""Whole evaluations over synthetic data sets in the benchmarks' layouts: files, ingest, store, answers, figures."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vococache.errors import InputError
from vococache.pipeline.cli.command import cli
from vococache.pipeline.evaluation import report
from vococache.pipeline.evaluation.datasets import DATA_SETS, read_items
from vococache.pipeline.evaluation.job import Evaluation, evaluate, merge
from vococache.pipeline.evaluation.records import ANSWERED, AnswerRecord, read_answers
from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.synthetic import layouts
from vococache.pipeline.synthetic.layouts import write_dataset
from vococache.storage import open_store

CLIPS, ASKED = 4, 5
LAYOUTS = {name: name.removesuffix("-youtube") for name in layouts.LAYOUTS}  # and the data set of each


@dataclass(frozen=True)
class Corpus:
    """A data set of each layout, written when it is first asked for, and one store for all."""

    root: Path

    @property
    def store(self) -> str:
        return str(self.root / "store")

    def evaluation(self, layout: str, **changes: Any) -> Evaluation:
        folder = self.root / layout
        if "annotations" not in changes and not folder.exists():
            seed = list(LAYOUTS).index(layout)
            write_dataset(layout, folder, split="test", clips=CLIPS, asked=ASKED, seed=seed)
        defaults: dict[str, Any] = {
            "data_set": DATA_SETS[LAYOUTS[layout]], "annotations": folder, "split": "test", "store": self.store,
            "model": "synthetic", "videos": folder / "videos", "fps": 2.0,
        }  # fmt: skip
        return Evaluation(**defaults | changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Corpus:
    found = Corpus(tmp_path_factory.mktemp("evaluation"))
    evaluate(found.evaluation("activitynet-qa"), found.root / "first")
    return found


def records_of(path: Path) -> list[AnswerRecord]:
    return read_answers(path)[1]


def timeless(path: Path) -> list[Any]:
    """A run's lines, sorted, without times."""
    settings, records = read_answers(path)
    return [settings, *sorted((replace(record, seconds=0.0) for record in records), key=lambda record: record.id)]


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=[pytest.mark.slow] if layout != "activitynet-qa" else []) for layout in LAYOUTS],
)
def test_every_question_is_answered_from_its_own_video(corpus: Corpus, layout: str, tmp_path: Path) -> None:
    """The embedded model is right far more often than on another's video, so a mix-up would show."""
    evaluation = corpus.evaluation(layout)
    found = records_of(evaluate(evaluation, tmp_path))
    items = {item.id: item for item in read_items(evaluation.data_set, corpus.root / layout, "test")}
    assert len(found) == len(items) == CLIPS * ASKED
    for record in found:
        item = items[record.id]
        assert (record.video, record.question, record.truth) == (item.video, item.question, item.answer)
        assert (record.status, record.segments) == ("answered", 8)
    right = sum(record.raw.lower() == record.truth for record in found)
    figures = report.figures(tmp_path)
    assert figures.accuracy == right / len(found)
    assert right >= 0.6 * len(found)


def test_an_answer_is_what_ask_says(corpus: Corpus, tmp_path: Path) -> None:
    from vococache.pipeline.ask import ask, open_reader

    stage = open_reader(corpus.store)
    found = records_of(evaluate(corpus.evaluation("activitynet-qa"), tmp_path))
    for record in found[::4]:
        (answer,) = ask(stage, f"v_{record.video}", record.question, max_new_tokens=16)
        assert answer.answer == record.raw


@pytest.mark.slow
def test_missing_and_broken_videos_stay_in_the_run_and_are_asked_again(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_dataset("msrvtt-qa", folder, split="test", clips=3, asked=4, seed=77)
    first, second, third = sorted((folder / "videos").iterdir())
    second.rename(tmp_path / second.name)
    third.write_bytes(third.read_bytes()[:200])
    store = str(tmp_path / "store")
    evaluation = corpus.evaluation("msrvtt-qa", annotations=folder, videos=folder / "videos", store=store)
    found = records_of(evaluate(evaluation, tmp_path / "run"))
    status = {f"video{record.video}": record.status for record in found}
    assert status == {first.stem: "answered", second.stem: "missing", third.stem: "failed"}
    assert all(record.raw == "" and record.error for record in found if record.status != "answered")
    figures = report.figures(tmp_path / "run")
    assert figures.questions == 12
    assert figures.accuracy <= 4 / 12
    (tmp_path / second.name).rename(second)
    result = CliRunner().invoke(
        cli, ["eval", "msrvtt-qa", "--annotations", str(folder), "--videos", str(folder / "videos"), "--store", store,
              "--fps", "2", "--out", str(tmp_path / "run")], standalone_mode=False,
    )  # fmt: skip
    assert result.return_value == 1, "a video is not answered"
    assert "8 of 12 questions answered" in result.output
    again = records_of(tmp_path / "run" / "answers.jsonl")
    assert [record for record in again if record in found] == [record for record in found if record.segments]


def test_shards_make_the_whole_run(corpus: Corpus, tmp_path: Path) -> None:
    whole = evaluate(corpus.evaluation("activitynet-qa"), tmp_path / "whole")
    for number in (2, 1):
        with pytest.raises(InputError, match="no shards" if number == 2 else "lacks shard 1 of 2"):
            merge(tmp_path / "parts")
        evaluate(corpus.evaluation("activitynet-qa", shard=(number, 2)), tmp_path / "parts")
    assert timeless(merge(tmp_path / "parts")) == timeless(whole)
    part = tmp_path / "parts" / "answers-2-of-2.jsonl"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="answered 19 of 20 questions"):
        merge(tmp_path / "parts")
    evaluate(corpus.evaluation("activitynet-qa", shard=(2, 2)), tmp_path / "parts")
    assert timeless(merge(tmp_path / "parts")) == timeless(whole)
    evaluate(corpus.evaluation("activitynet-qa", shard=(2, 3)), tmp_path / "parts")
    with pytest.raises(InputError, match=r"lacks shard 1 of 3|several divisions"):
        merge(tmp_path / "parts")


def test_shards_of_other_settings_are_not_merged(corpus: Corpus, tmp_path: Path) -> None:
    evaluate(corpus.evaluation("activitynet-qa", shard=(1, 2)), tmp_path)
    evaluate(corpus.evaluation("activitynet-qa", shard=(2, 2), tokens=1), tmp_path)
    with pytest.raises(InputError, match=r"another tokens"):
        merge(tmp_path)


def test_a_resume_with_other_settings_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    evaluate(corpus.evaluation("activitynet-qa"), tmp_path)
    before = (tmp_path / "answers.jsonl").read_bytes()
    evaluate(corpus.evaluation("activitynet-qa"), tmp_path)
    assert (tmp_path / "answers.jsonl").read_bytes() == before, "there was nothing to do"
    for changes in ({"tokens": 1}, {"max_new_tokens": 2}, {"limit": 3}):
        with pytest.raises(InputError, match="begun with other settings"):
            evaluate(corpus.evaluation("activitynet-qa", **changes), tmp_path)


def test_from_the_store_alone(corpus: Corpus, tmp_path: Path) -> None:
    """Without a video file; what the store lacks is missing, what failed there is failed."""
    evaluate(corpus.evaluation("activitynet-qa"), tmp_path / "with")
    evaluate(corpus.evaluation("activitynet-qa", videos=None), tmp_path / "without")
    one, two = (
        [replace(record, seconds=0.0) for record in records_of(tmp_path / name / "answers.jsonl")]
        for name in ("with", "without")
    )
    assert one == two
    settings, _ = read_answers(tmp_path / "without" / "answers.jsonl")
    assert settings["sampling"] == [{"fps": 2.0}]
    nowhere = tmp_path / "nowhere.jsonl"
    nowhere.write_text(json.dumps({"video": "nowhere", "question": "what?", "answer": "x"}))
    with pytest.raises(InputError, match="none of 1 videos is in"):
        evaluate(corpus.evaluation("jsonl", annotations=nowhere, videos=None), tmp_path / "none")


def test_tokens_that_the_store_does_not_have_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the store keeps 1 to 4 tokens of a segment, asked for 99"):
        evaluate(corpus.evaluation("activitynet-qa", tokens=99), tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()


def test_limit(corpus: Corpus, tmp_path: Path) -> None:
    found = records_of(evaluate(corpus.evaluation("activitynet-qa", limit=7), tmp_path))
    assert len(found) == 7
    assert len({record.video for record in found}) == 2


@pytest.mark.slow
def test_over_ray(corpus: Corpus, tmp_path: Path, local_ray: None) -> None:
    """Spread over actors, as on a cluster: the same answers."""
    import ray

    address = ray.get_runtime_context().gcs_address
    evaluate(corpus.evaluation("activitynet-qa"), tmp_path / "here")
    evaluate(corpus.evaluation("activitynet-qa", address=address), tmp_path / "there")
    here, there = (timeless(tmp_path / name / "answers.jsonl") for name in ("here", "there"))
    assert here == there


def test_a_question_that_cannot_be_asked_costs_itself_alone(corpus: Corpus, tmp_path: Path) -> None:
    video = open_store(corpus.store).ids()[0]
    lines = [
        {"video": video, "question": "is there a red circle?", "answer": "yes"},
        {"video": video, "question": "what " * 5000, "answer": "yes"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = corpus.evaluation("jsonl", annotations=path, videos=None)
    good, bad = records_of(evaluate(evaluation, tmp_path / "run"))
    assert good.status == "answered"
    assert good.raw
    assert bad.status == "failed"
    assert "ContextLimitError" in (bad.error or "")


KILLED = """
import os, signal, sys
from pathlib import Path
from vococache.pipeline.evaluation import records
commit, left = records.AnswerFile.commit, [int(sys.argv[1])]
def commit_and_die(self, found):
    if left[0] == 0:
        with self.path.open("ab") as file:  # half of what would have been written
            file.write(b'{"id": "torn')
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    commit(self, found)
records.AnswerFile.commit = commit_and_die
from vococache.pipeline.cli import main
sys.argv = ["voco", *sys.argv[2:]]
main()
"""


@pytest.mark.slow
def test_killed_and_resumed(corpus: Corpus, tmp_path: Path) -> None:
    """`kill -9` in the middle: the same command finishes, and the run equals an undisturbed one."""
    folder = corpus.root / "activitynet-qa"
    command = ["eval", "activitynet-qa", "--annotations", str(folder), "--no-ingest", "--store", corpus.store]
    whole = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "whole")], standalone_mode=False)
    assert whole.return_value == 0, whole.output
    out = tmp_path / "killed"
    for commits in (0, 2):
        script = [sys.executable, "-c", KILLED, str(commits), *command, "--out", str(out)]
        done = subprocess.run(script, check=False, capture_output=True, text=True, env=os.environ)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / "answers.jsonl").read_bytes().endswith(b"torn")
    finished = CliRunner().invoke(cli, [*command, "--out", str(out)], standalone_mode=False)
    assert finished.return_value == 0, finished.output
    assert timeless(out / "answers.jsonl") == timeless(tmp_path / "whole" / "answers.jsonl")


def test_the_commands(corpus: Corpus, tmp_path: Path) -> None:
    evaluate(corpus.evaluation("activitynet-qa"), tmp_path / "run")
    runner = CliRunner()
    shown = runner.invoke(cli, ["eval", "report", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert "LLaMA-VID" in shown.output
    told = runner.invoke(cli, ["eval", "report", str(tmp_path / "run"), "--format", "json"])
    assert json.loads(told.output)["runs"][0]["questions"] == CLIPS * ASKED
    with pytest.raises(InputError, match="one of --videos DIR and --no-ingest"):
        runner.invoke(
            cli, ["eval", "msvd-qa", "--annotations", str(corpus.root), "--store", "s", "--out", "o"],
            standalone_mode=False, catch_exceptions=False,
        )  # fmt: skip
    bad = runner.invoke(cli, ["eval", "msvd-qa", "--shard", "3/2"])
    assert bad.exit_code == 2
    assert "expected I/N" in bad.output


def test_a_shard_does_not_take_another_shards_file(corpus: Corpus, tmp_path: Path) -> None:
    """`v_x` is asked about in this shard, `x` in the other; the stored `v_x` is that of `x`."""
    known = next(video for video in open_store(corpus.store).ids() if video.startswith("v_")).removeprefix("v_")
    names = [known, f"v_{known}"]
    asked = [{"video_name": name, "question": "what?", "question_id": name} for name in names]
    answers = [{"answer": "x", "type": 5, "question_id": name} for name in names]
    (tmp_path / "test_q.json").write_text(json.dumps(asked))
    (tmp_path / "test_a.json").write_text(json.dumps(answers))
    found = {}
    for number in (1, 2):
        evaluation = corpus.evaluation("activitynet-qa", annotations=tmp_path, videos=None, shard=(number, 2))
        (record,) = records_of(evaluate(evaluation, tmp_path / "run"))
        found[record.video] = record.status
    assert found == {known: "answered", f"v_{known}": "missing"}


@pytest.mark.slow
def test_a_store_made_with_settings_of_its_own_is_gone_on_with(corpus: Corpus, tmp_path: Path) -> None:
    """What it lacks is ingested as the rest was, not as the model would have it."""
    store = str(tmp_path / "store")
    evaluation = corpus.evaluation("activitynet-qa", store=store)
    assert evaluation.videos is not None
    ingest(str(min(evaluation.videos.iterdir())), store, fps=2.0, tokens=2)
    settings, records = read_answers(evaluate(evaluation, tmp_path / "out"))
    assert settings["tokens_a_segment"] == 2
    assert {record.status for record in records} == {ANSWERED}
