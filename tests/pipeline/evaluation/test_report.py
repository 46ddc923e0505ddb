"""Figures of runs against independent computations, and the tables."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vococache.errors import InputError
from vococache.pipeline.evaluation import report
from vococache.pipeline.evaluation.datasets import ACTIVITYNET_TYPES
from vococache.pipeline.evaluation.judge import Judge, Verdict, VerdictFile
from vococache.pipeline.evaluation.records import AnswerFile, AnswerRecord

REAL = Path(__file__).parents[4] / "shared" / "activitynet_qa"


def write_run(folder: Path, rows: list[dict[str, Any]], *, data_set: str = "activitynet-qa", asked: int = 0) -> Path:
    """A finished run of rows with `video`, `truth`, `prediction` and what else differs."""
    settings = {"data_set": data_set, "split": "val", "questions": asked or len(rows), "annotations": "digest"}
    file = AnswerFile(folder / "answers.jsonl", settings, {})
    known: dict[str, Any] = {
        "question": "what?", "type": "", "segments": 1, "status": "answered", "error": None, "seconds": 0.0,
    }  # fmt: skip
    file.commit(
        AnswerRecord(**known | {"id": str(number), "raw": row["prediction"]} | row) for number, row in enumerate(rows)
    )
    return folder


def official_free(types: list[int], right: list[bool]) -> float:
    """What the official script prints as "Free": its denominator is of the types that came in third and later."""
    counts: Counter[int] = Counter()
    for kind in types:
        counts[kind] += 1
    return sum(r for kind, r in zip(types, right, strict=True) if kind >= 3) / sum(list(counts.values())[3:])


def test_free_has_the_right_denominator(tmp_path: Path) -> None:
    types = [3] * 50 + [4] * 30 + [7] * 10 + [0] * 5 + [1] * 3 + [2] * 2
    right = [index % 2 == 0 for index in range(100)]
    rows = [
        {"video": f"v{i}", "truth": "x", "prediction": "x" if ok else "y", "type": ACTIVITYNET_TYPES[kind]}
        for i, (kind, ok) in enumerate(zip(types, right, strict=True))
    ]
    found = report.figures(write_run(tmp_path, rows))
    assert found.types["free"] == (45, 90)
    assert found.types["all"] == (50, 100)
    assert {kind: asked for kind, (_, asked) in found.types.items()} == {
        "yes/no": 50, "color": 30, "number": 10, "motion": 5, "spatial": 3, "temporal": 2, "free": 90, "all": 100,
    }  # fmt: skip
    assert official_free(types, right) == 45 / 10, "an accuracy of 450%"


@pytest.mark.skipif(not REAL.exists(), reason="the real annotations are not here")
def test_the_official_scripts_fault_on_the_real_annotations(tmp_path: Path) -> None:
    """0.7583 where 0.5055 is true: the denominator is of the six types whose first rows come last."""
    answers = json.loads((REAL / "val_a.json").read_text())
    types = [row["type"] for row in answers]
    left = 6369  # right answers of the 12,600 of types 3 to 8
    right = []
    for kind in types:
        right.append(kind >= 3 and left > 0)
        left -= right[-1]
    rows = [
        {"video": f"v{i // 10}", "truth": str(row["answer"]), "type": ACTIVITYNET_TYPES[row["type"]],
         "prediction": str(row["answer"]) if ok else "nothing of the kind"}
        for i, (row, ok) in enumerate(zip(answers, right, strict=True))
    ]  # fmt: skip
    found = report.figures(write_run(tmp_path, rows))
    assert found.types["free"] == (6369, 12_600)
    assert round(6369 / 12_600, 4) == 0.5055
    assert round(official_free(types, right), 4) == 0.7583


def test_nothing_leaves_the_denominator(tmp_path: Path) -> None:
    rows = [
        {"video": "a", "truth": "dog", "prediction": "dog"},
        {"video": "a", "truth": "no", "prediction": "snow"},
        {"video": "b", "truth": "x", "prediction": "", "status": "missing", "error": "no file"},
        {"video": "c", "truth": "x", "prediction": "", "status": "failed", "error": "cut short"},
    ]
    found = report.figures(write_run(tmp_path / "run", rows, data_set="msvd-qa"))
    assert (found.accuracy, found.accuracy_of_answered) == (0.25, 0.5)
    assert (found.answered, found.questions, found.videos) == (2, 4, 3)
    assert (found.missing, found.failed) == (["b"], {"c": "cut short"})
    assert report.problems(found) == ["run: b: missing", "run: c: cut short"]


def test_the_interval_is_over_videos(tmp_path: Path) -> None:
    rows = [{"video": f"v{v}", "truth": "x", "prediction": "x" if v % 2 else "y"} for v in range(40) for _ in range(10)]
    low, high = report.figures(write_run(tmp_path, rows, data_set="jsonl")).accuracy_interval
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.15), "of 40 videos, not of 400 questions"


def test_unfinished_runs_have_no_figures(tmp_path: Path) -> None:
    row = {"video": "a", "truth": "x", "prediction": "x"}
    with pytest.raises(InputError, match="answered 1 of 2 questions"):
        report.figures(write_run(tmp_path / "half", [row], asked=2))
    with pytest.raises(InputError, match=r"holds no answers\.jsonl"):
        report.figures(tmp_path / "nothing")
    (tmp_path / "answers-1-of-2.jsonl").write_text("")
    with pytest.raises(InputError, match="voco eval merge"):
        report.figures(tmp_path)


def run_of(folder: Path, share: float, **more: Any) -> Path:
    return write_run(
        folder,
        [{"video": f"v{i}", "truth": "x", "prediction": "x" if i < 100 * share else "y"} for i in range(100)],
        data_set="msvd-qa",
        **more,
    )


def test_retention(tmp_path: Path) -> None:
    upper, lower, ours = (
        report.figures(run_of(tmp_path / name, share))
        for name, share in (("upper", 0.8), ("lower", 0.4), ("ours", 0.7))
    )
    (found,) = report.add_retention([ours], upper, lower)
    assert found.retention == pytest.approx(0.75)
    other = report.figures(write_run(tmp_path / "other", [{"video": "a", "truth": "x", "prediction": "x"}]))
    assert report.add_retention([other], upper, lower)[0].retention is None, "other questions"
    with pytest.raises(InputError, match="different questions"):
        report.add_retention([ours], upper, other)
    with pytest.raises(InputError, match="is not above"):
        report.add_retention([ours], lower, upper)


def test_wups_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0.5)
    assert report.figures(run).wups == {}
    found = report.figures(run, similarity=lambda a, b: 0.8).wups
    assert found == {"0.0": pytest.approx(0.9), "0.9": pytest.approx(0.54)}


def test_tables(tmp_path: Path) -> None:
    runs = [report.figures(run_of(tmp_path / "mine", 0.5)), report.figures(run_of(tmp_path / "a|b", 0.25))]
    text = report.render(runs)
    assert "published" in text
    published = [line for line in text.splitlines() if "VoCo-LLaMA" in line]
    assert len(published) == 4
    assert all("published (paper, Table 8)" in line for line in published)
    mine = next(line for line in text.splitlines() if line.startswith("mine"))
    assert "50.0" in mine
    assert "this run, exact match" in mine
    markdown = report.render(runs, markdown=True)
    assert "| a\\|b |" in markdown
    tables = [block for block in markdown.split("\n\n") if block.startswith("|")]
    for block in tables:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    data = json.loads(report.to_json(runs))
    assert [run["accuracy"] for run in data["runs"]] == [0.5, 0.25]


def test_a_judges_figures_stand_beside_exact_match(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0.5)
    judge = Judge(url="", model="gpt-test")
    _, records = report.read_run(run)
    verdicts = VerdictFile(run / "verdicts.jsonl")
    for record in {judge.key(record): record for record in records}.values():
        verdicts.add(Verdict(judge.key(record), "yes" if record.raw == "x" else "unparseable", 4.0, ""))
    found = report.figures(run, judge=judge)
    assert found.judged is not None
    assert found.judged.counts == {"unparseable": 50, "yes": 50}
    text = report.render([found])
    assert "this run, judge gpt-test" in text
    assert "50 unparseable, 50 yes" in text
    assert "exact match, of all" in text
    other = report.figures(run, judge=Judge(url="", model="another"))
    assert other.judged is not None
    assert other.judged.counts == {"unjudged": 100}
    (row,) = (row for row in report.beside_published([other]) if "this run, judge another" in row)
    assert set(row[5:-1]) == {report.GAP}, "no verdicts, no figure"
