"""Texts of like length in one batch, and texts that are cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.training.test_job import losses

from vococache.errors import ContextLimitError, InputError
from vococache.pipeline.training.examples import Text, fit
from vococache.pipeline.training.job import train
from vococache.pipeline.training.lengths import ByLength
from vococache.pipeline.training.report import read_report

GROUPED = {"train_sampling_strategy": "group_by_length"}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    """Rows of text, from one to forty words long."""
    rows = [{"conversations": [
        {"from": "human", "value": "above " * (7 * number % 40)}, {"from": "gpt", "value": "left " * (number % 3 + 1)},
    ]} for number in range(1, 33)]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {"file": str(tmp_path / "rows.json")}


def test_batches_are_of_one_length_and_each_epoch_of_another_order() -> None:
    lengths = [1 + 37 * number % 400 for number in range(4000)]
    epoch = 0
    sampler = ByLength(lengths, 16, lambda: epoch)
    order = list(sampler)
    assert sorted(order) == list(range(4000))
    assert len(sampler) == 4000

    def padding(rows: list[int]) -> float:
        batches = [[lengths[row] for row in rows[start : start + 16]] for start in range(0, 4000, 16)]
        return sum(16 * max(batch) for batch in batches) / sum(lengths)

    assert padding(order) < 1.05
    assert padding(list(range(4000))) > 1.8
    assert list(sampler) == order
    epoch = 1
    assert list(sampler) != order


def test_a_run_by_length_resumes_in_the_middle_of_an_epoch(
    settings: Any, texts: dict[str, Any], tmp_path: Path
) -> None:
    """Four steps an epoch: the checkpoint is in the second."""
    chosen = settings(data=(texts,), trainer=GROUPED | {"max_steps": 8, "save_steps": 6, "logging_steps": 1})
    train(chosen, tmp_path / "run")
    straight = losses(tmp_path / "run")
    (tmp_path / "run/log.csv").unlink()
    for later in ("checkpoint-8", "model"):
        shutil.rmtree(tmp_path / "run" / later)
    train(chosen, tmp_path / "run", resume=True)
    resumed = losses(tmp_path / "run")
    assert resumed.keys() == {7, 8}
    assert resumed == {step: pytest.approx(straight[step], abs=1e-4) for step in resumed}


def test_drawn_clips_have_no_length(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="group_by_length` needs data from files"):
        train(settings(trainer=GROUPED), tmp_path / "run")


def test_a_long_conversation_is_cut_and_counted(settings: Any, texts: dict[str, Any], tmp_path: Path) -> None:
    rows = json.loads(Path(texts["file"]).read_text())
    more = [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "right " * 50}]
    Path(texts["file"]).write_text(json.dumps([{"conversations": rows[0]["conversations"] + more}, *rows[:3]]))
    train(settings(data=(texts,), max_length=40, trainer={"max_steps": 2}), tmp_path / "run")
    report = read_report(tmp_path / "run/report.jsonl")
    assert report.counts == {"cut": 1}, "once, though two epochs met it"
    assert list(report.names["cut"].values()) == ["30 of 70 tokens"]


def test_what_is_cut_keeps_its_labels_or_is_no_use() -> None:
    text = Text([1, 2, 3, 4], [-100, -100, 3, 4])
    assert fit(text, 4) is text
    assert fit(text, 3) == Text([1, 2, 3], [-100, -100, 3])
    for room in (2, 0, -5):
        with pytest.raises(ContextLimitError, match=f"room for {room} of its 4 tokens, before any answer"):
            fit(text, room)
