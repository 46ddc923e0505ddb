"""Training from scratch at a tiny size learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vococache.model.checkpoints import load_model
from vococache.pipeline.synthetic.render import frames
from vococache.pipeline.synthetic.scene import SHAPES, make_scene
from vococache.pipeline.synthetic.trial import question_only
from vococache.pipeline.training.run import train
from vococache.pipeline.training.settings import TrainSettings
from vococache.pipeline.training.tower import Patches, blank_model, patch_labels, train_tower

TRAINER = {
    "per_device_train_batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 20, "lr_scheduler_type": "cosine",
    "bf16": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
}  # fmt: skip


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


def test_a_tiny_tower_learns_to_name_what_patches_show(tiny: tuple[Path, dict[str, float]]) -> None:
    folder, figures = tiny
    assert figures["eval_colour"] > 0.5, "of seven"
    assert figures["eval_pattern"] > 0.7, "of three"
    assert load_model(folder / "tower/model", device="cpu").config.tokens_per_frame == 36


def test_a_tiny_model_learns_to_answer_from_voco_tokens(tiny: tuple[Path, dict[str, float]]) -> None:
    """About pictures of one object that it never saw: more than the question alone says. Full attention comes first."""
    folder, _ = tiny
    start = folder / "tower/model"
    unseen = {"synthetic": "val", "count": 200, "asked": 6, "still": True, "most": 1}
    for compression, steps in (("full", 150), ("voco", 150)):
        settings = TrainSettings(
            model=str(start),
            compression=compression,
            voco_tokens=4,
            data=({"synthetic": f"train {compression}", "count": 64 * steps, "asked": 4, "still": True, "most": 1},),
            evaluation=(unseen,),
            trainer=TRAINER | {"max_steps": steps},
        )
        figures = train(settings, folder / compression)
        start = folder / compression / "model"
    scenes = [make_scene(f"val {number}", still=True, most=1) for number in range(200)]
    alone = question_only(scenes, asked=6, learned_from=2000, still=True, most=1)
    assert figures["eval_answer_accuracy"] > alone + 0.15, alone


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


def test_patch_batches_are_reproducible(tmp_path: Path) -> None:
    model = blank_model(width=32, layers=2, heads=2, size=60, tower_layers=1, vocabulary=320)
    one, two = (Patches(model, "train", 4)[3] for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert torch.tensor(one["frames"]).shape == (1, 1, 60, 60, 3)
