"""Training from scratch at a tiny size learns."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml

from vococache.errors import InputError
from vococache.model.checkpoints import load_model
from vococache.model.generate import GenerationOptions, generate
from vococache.model.voco import VoCoModel
from vococache.pipeline.synthetic.questions import questions
from vococache.pipeline.synthetic.render import as_recorded, frames
from vococache.pipeline.synthetic.scene import COLOURS, SHAPES, make_scene
from vococache.pipeline.training.job import train
from vococache.pipeline.training.settings import TrainSettings
from vococache.pipeline.training.tower import Patches, blank_model, patch_labels, train_tower
from vococache.pipeline.training.world import WorldExamples
from vococache.workers.reason import answer_text, question_ids

TRAINER = {
    "per_device_train_batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 20, "lr_scheduler_type": "cosine",
    "bf16": True, "dataloader_num_workers": 1, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VoCoModel:
    """A blank one, whose tokenizer takes seconds."""
    return blank_model(width=32, layers=2, heads=2, size=60, tower_layers=1, vocabulary=320)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The run of a tiny tower, and its figures."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = {
        "model": {"width": 64, "layers": 4, "heads": 4, "size": 60, "tower_layers": 2, "vocabulary": 512},
        "count": 12800,
        "trainer": TRAINER | {"max_steps": 200, "learning_rate": 3e-3},
    }
    (folder / "tower.yaml").write_text(yaml.safe_dump(recipe))
    return folder, train_tower(folder / "tower.yaml", folder / "tower")


@pytest.mark.slow
def test_a_tiny_tower_learns_to_name_what_patches_show(tiny: tuple[Path, dict[str, float]]) -> None:
    folder, figures = tiny
    assert figures["eval_colour"] > 0.5, "of seven"
    assert figures["eval_pattern"] > 0.7, "of three"
    assert load_model(folder / "tower/model", device="cpu").config.tokens_per_frame == 36


@pytest.mark.slow
def test_a_tiny_model_learns_to_answer_from_voco_tokens(tiny: tuple[Path, dict[str, float]]) -> None:
    """About pictures that it never saw: with full attention where a thing is and what lies behind it, then the latter.

    (All else takes longer: `docs/results/` has the embedded model's course.)
    """
    folder, _ = tiny
    start = folder / "tower/model"
    for compression, steps in (("full", 300), ("voco", 150)):
        settings = TrainSettings(
            model=str(start),
            compression=compression,
            voco_tokens=4,
            data=({"synthetic": f"train {compression}", "count": 16 * steps, "asked": 10, "still": True, "most": 1},),
            trainer=TRAINER | {"per_device_train_batch_size": 16, "max_steps": steps},
        )
        train(settings, folder / compression)
        start = folder / compression / "model"
        right, guessed = shares(load_model(start, device="cpu"))
        for kind in ("background", "position") if compression == "full" else ("background",):
            assert right[kind] > guessed[kind] + 0.25, (compression, right, guessed)


def shares(model: VoCoModel) -> tuple[dict[str, float], dict[str, float]]:
    """Right answers by type of question: a model's, and those of each template's most frequent answer."""
    rows = []
    for number in range(100):
        scene = make_scene(f"val {number}", still=True, most=1)
        posed = questions(scene, 12, Random(number))
        pictures = frames(scene, (0.0,), model.config.geometry.size)[:, None]
        with torch.inference_mode():
            placed = model.place(model.compress(model.pixel_values(pictures)))
        texts = [question_ids(model, question.text) for question in posed]
        ids = generate(model, placed, texts, 6, GenerationOptions()).ids
        rows += [(question, answer_text(model, new)) for question, new in zip(posed, ids, strict=True)]
    right, asked, answers = Counter(), Counter(), defaultdict(Counter)
    for question, answer in rows:
        asked[question.type] += 1
        right[question.type] += answer == question.answer
        answers[question.type, question.template][question.answer] += 1
    guessed = Counter()
    for (kind, _), counts in answers.items():
        guessed[kind] += max(counts.values())
    return {kind: right[kind] / asked[kind] for kind in asked}, {kind: guessed[kind] / asked[kind] for kind in asked}


def test_patches_are_labelled_by_what_covers_them() -> None:
    for number in range(30):
        scene = make_scene(f"patches {number}", still=True)
        labels = patch_labels(scene, 0.0, 60, 10)
        grid = labels["shape"].reshape(6, 6)
        assert (labels["centre"] == 1).sum() == len(scene.things)
        for thing in scene.things:
            row, column = int(thing.y * 6), int(thing.x * 6)
            named = grid[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            assert SHAPES.index(thing.shape) in named
        picture = frames(scene, (0.0,), 60)[0].astype(int)
        spread = np.ptp(picture.reshape(6, 10, 6, 10, 3).mean((1, 3)), axis=2).ravel()
        vivid = {"red", "green", "blue", "yellow", "purple"}
        if {thing.colour for thing in scene.things} <= vivid:
            assert spread[labels["size"] >= 0].mean() > spread[labels["size"] < 0].mean()


def test_clips_in_nameless_paints_are_for_training_and_asked_nothing_about_colours(model: VoCoModel) -> None:
    strange = {"train": 0, "val": 0}
    for split in strange:
        clips = WorldExamples(model, split, 60, asked=12, still=True)
        for number in range(len(clips)):
            scene, example = make_scene(f"{split} {number}", still=True), clips[number]
            assert example.frames is not None
            if not any(np.array_equal(show(scene, (0.0,), 60), example.frames[0]) for show in (frames, as_recorded)):
                strange[split] += 1
                texts = " ".join(model.tokenizer.decode(text.ids) for text in example.texts)
                assert set(re.findall(r"\w+", texts)).isdisjoint(COLOURS)
    assert 10 < strange["train"] < 35
    assert strange["val"] == 0


def test_a_clip_is_cut_into_the_models_segments(model: VoCoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    single = WorldExamples(model, "val", 1, asked=1)[0].frames
    monkeypatch.setattr(model, "config", model.config.with_voco(frames=8))
    together = WorldExamples(model, "val", 1, asked=1)[0].frames
    assert single is not None
    assert together is not None
    assert single.shape == (8, 1, 60, 60, 3)
    assert np.array_equal(together[0], single[:, 0])


def test_where_counting_is_taught_it_is_asked_when_things_blink(model: VoCoModel) -> None:
    for blinking in (False, True):
        clips = WorldExamples(model, "train", 20, asked=40, blinking=blinking)
        asked = "\n".join(model.tokenizer.decode(text.ids) for index in range(20) for text in clips[index].texts)
        assert ("blink in the middle?" in asked) == blinking


@pytest.mark.parametrize("numbers", [{"least": 5}, {"least": 3, "most": 2}, {"most": 0}])
def test_scenes_that_cannot_be_are_refused(model: VoCoModel, numbers: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 1 <= `least` <= `most` <= 4"):
        WorldExamples(model, "train", 20, asked=4, **numbers)


def test_patch_batches_are_reproducible(model: VoCoModel) -> None:
    one, two = (Patches(model, "train", 4)[3] for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert torch.tensor(one["frames"]).shape == (1, 1, 60, 60, 3)
