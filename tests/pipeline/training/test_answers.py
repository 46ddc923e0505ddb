"""Answers that a model in training writes itself."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipeline.training.test_job import logged

from vococache.model.checkpoints import load_model
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import VoCoModel
from vococache.pipeline.training import answers
from vococache.pipeline.training.answers import exact_match_share, questions
from vococache.pipeline.training.examples import Example, Text, encode_turns
from vococache.pipeline.training.job import train
from vococache.pipeline.training.media import NOTHING
from vococache.pipeline.training.trainer import answer_accuracy


def test_each_answer_has_what_stands_before_it() -> None:
    text = Text([1, 2, 3, 4, 5, 6, 7], [-100, -100, 3, 4, -100, 6, 7])
    assert list(questions(text)) == [([1, 2], [3, 4]), ([1, 2, 3, 4, 5], [6, 7])]


def test_an_answer_ends_with_its_row() -> None:
    labels = np.array([[5, -100, 7, 8], [9, 1, -100, 2]])  # 5 | 7 8 | 9 1 | 2
    for wrong, right in (((), 4), (((0, 3),), 3), (((1, 0),), 3), (((0, 3), (1, 0)), 2), (((1, 0), (1, 1)), 3)):
        predicted = labels.copy()
        predicted[labels == -100] = 3  # what is not asked does not count
        for place in wrong:
            predicted[place] = 4
        found = answer_accuracy(SimpleNamespace(predictions=predicted, label_ids=labels))
        assert found == {"token_accuracy": pytest.approx(1 - len(wrong) / 6), "answer_accuracy": right / 4}


@pytest.fixture(scope="module")
def model() -> VoCoModel:
    tokenizer = byte_tokenizer(["left right"] * 9, 300)
    model = random_model(small_config(tokenizer, width=32, layers=2, heads=2, size=60, tower_layers=1), 0)
    model.tokenizer = tokenizer
    return model


def test_frames_caches_and_texts_are_answered_as_they_are_asked(model: VoCoModel) -> None:
    """What the model itself writes is right, case and all aside; anything else is wrong."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 60, 60, 3), dtype=np.uint8)
    cache = model.compress(model.pixel_values(frames)).data
    rows = []
    for seen in ({"frames": frames}, {"cache": cache.numpy()}, {}):
        asked = encode_turns(model.tokenizer, model.config.prompt, [("where?", "left")])
        before, _ = next(questions(asked))
        behind = model.empty_cache() if not seen else model.compress(model.pixel_values(frames))
        (written,) = model.generate_ids(behind, torch.tensor([before]), 6)
        right = Text(before + written.tolist(), [-100] * len(before) + written.tolist())
        wrong = Text([*before, 99, 100], [-100] * len(before) + [99, 100])
        rows.append(Example([right, wrong, wrong], **seen))
    for row in rows:
        assert exact_match_share(model, [row]) == pytest.approx(1 / 3)
    assert exact_match_share(model, [*rows, NOTHING]) == pytest.approx(1 / 3)
    assert exact_match_share(model, [NOTHING]) == 0


def test_few_rows_of_many_are_asked_from_the_first_to_the_last(
    model: VoCoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "EXAMPLES", 4)
    met: list[int] = []

    class Rows(list[Example]):
        def __getitem__(self, index: Any) -> Any:
            met.append(index)
            return super().__getitem__(index)

    exact_match_share(model, Rows([NOTHING] * 10))
    assert met == [0, 2, 5, 7]


def test_a_run_tells_the_share_at_each_evaluation(settings: Any, tmp_path: Path) -> None:
    """A model that learns one text by heart ends at 1."""
    rows = [{"question": "where?", "answer": "left"}] * 8
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = ({"file": str(tmp_path / "rows.json")},)
    trainer = {"max_steps": 30, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 30}
    figures = train(settings(data=data, evaluation=data, trainer=trainer), tmp_path / "run")
    assert figures["eval_exact_match"] == 1
    found = [float(row["value"]) for row in logged(tmp_path / "run") if row["name"] == "eval_exact_match"]
    assert len(found) == 4
    assert json.loads((tmp_path / "run/figures.json").read_text())["eval_exact_match"] == 1
    assert load_model(tmp_path / "run/model", device="cpu").config.num_voco_tokens


def test_they_are_written_in_half_precision_training_too(settings: Any, tmp_path: Path) -> None:
    clips = {"synthetic": "validation", "count": 4, "asked": 2, "still": True}
    figures = train(settings({"max_steps": 1, "bf16": True}, evaluation=(clips,)), tmp_path / "run")
    assert 0 <= figures["eval_exact_match"] <= 1
