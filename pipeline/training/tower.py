"""A vision tower for the synthetic world, trained before the language model meets it.

LLaVA and VoCo-LLaMA start from CLIP, which has seen 400 million pictures. The embedded model has no such start: its
tower and projector first learn to name what each patch of a picture shows. The heads for that are thrown away.

Letters: B pictures, P patches along a side, N = P * P, E hidden size.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

from vococache.model.config import VoCoConfig
from vococache.model.decoder import fast_attention
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.synthetic.questions import all_questions
from vococache.pipeline.synthetic.render import EDGES, PALETTE, frames, strange_palette
from vococache.pipeline.synthetic.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, Scene, make_scene
from vococache.pipeline.training.folder import last_checkpoint
from vococache.pipeline.training.trainer import CsvLog, StopAtTheEnd, run_to_the_end, training_arguments

COVERED = 0.06  # share of a patch that an object must cover to be what the patch shows
HEADS = ("shape", "colour", "size", "centre", "pattern", "bright", "row", "column")


def classes(config: VoCoConfig) -> dict[str, int]:
    """How many classes each head tells apart."""
    grid = config.vision.image_size // config.vision.patch_size
    counts = (len(SHAPES) + 1, len(COLOURS) + 1, len(RADII), 2, len(BACKGROUNDS), 2, grid, grid)
    return dict(zip(HEADS, counts, strict=True))


def patch_labels(scene: Scene, time: float, side: int, patch: int) -> dict[str, np.ndarray]:
    """What each patch of the scene at `time` shows: a class [N] for each head, -100 where there is nothing to say."""
    grid = side // patch
    most = np.full((grid, grid), COVERED)
    shape, colour = np.full((grid, grid), len(SHAPES)), np.full((grid, grid), len(COLOURS))
    size, centre = np.full((grid, grid), IGNORED_LABEL), np.zeros((grid, grid), int)
    pixel = (np.arange(side, dtype=np.float32) + 0.5) / side
    for thing in scene.things:
        if not thing.visible(time):
            continue
        x, y, radius = (np.float32(value) for value in (*thing.centre(time), thing.radius(time)))
        across, down = ((pixel - start).astype(np.float32) / radius for start in (x, y))
        inside = EDGES[thing.shape](across[None, :], down[:, None]) < 0
        cover = inside.reshape(grid, patch, grid, patch).mean((1, 3))
        here = cover > most
        most[here] = cover[here]
        shape[here], colour[here] = SHAPES.index(thing.shape), COLOURS.index(thing.colour_at(time))
        size[here] = [*RADII].index(thing.size)
        centre[min(grid - 1, int(y * grid)), min(grid - 1, int(x * grid))] = 1
    flat = {"shape": shape, "colour": colour, "size": size, "centre": centre}
    return {name: values.ravel() for name, values in flat.items()} | {
        "pattern": np.full(grid * grid, BACKGROUNDS.index(scene.background)),
        "bright": np.full(grid * grid, int(scene.bright)),
        # Where a patch is; without being asked, a tower forgets it wherever an object is to be named.
        "row": np.arange(grid * grid) // grid,
        "column": np.arange(grid * grid) % grid,
    }


class Patches(Dataset[dict[str, np.ndarray]]):
    """Single pictures of a split with the labels of their patches.

    Of a training split, three of four show their objects in paints without a name, and only these teach shapes; the
    fourth teaches colours. So nothing ties a shape to a colour, and combinations that are held out look like others.
    (A tower that learned both from the same pictures took most of the held-out combinations' shapes for others.)
    """

    def __init__(self, model: VoCoModel, split: str, count: int) -> None:
        self.side, self.patch = model.config.geometry.size, int(model.config.vision.patch_size)
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = make_scene(f"{self.split} {index}", still=True)
        labels = patch_labels(scene, 0.0, self.side, self.patch)
        palette = PALETTE
        if self.split.startswith("train"):
            silent = "shape"
            if index % 4:
                palette, silent = strange_palette(Random(f"{scene.seed} paints")), "colour"
            labels[silent][labels["shape"] != len(SHAPES)] = IGNORED_LABEL
        return {"frames": frames(scene, (0.0,), self.side, palette)[:, None]} | labels


def collate_patches(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """A batch: `frames` uint8 [B, 1, H, W, 3] and `labels` [B, N, heads]."""
    labels = [np.stack([row[name] for name in HEADS], axis=-1) for row in rows]
    return {
        "frames": torch.from_numpy(np.concatenate([row["frames"] for row in rows])),
        "labels": torch.from_numpy(np.stack(labels)),
    }


class TowerObjective(nn.Module):
    """The cross-entropy of all heads over a model's vision tokens."""

    def __init__(self, voco: VoCoModel) -> None:
        super().__init__()
        self.voco = voco
        width = voco.config.text.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes(voco.config).items()})

    def forward(self, frames: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        """The loss, and `predicted` [B, N, heads] where there is a label, -100 elsewhere."""
        tokens = self.voco.vision_tokens(self.voco.pixel_values(frames))
        logits = [head(tokens).float() for head in self.heads.values()]
        losses = [
            F.cross_entropy(scores.flatten(0, 1), labels[..., index].flatten(), ignore_index=IGNORED_LABEL)
            for index, scores in enumerate(logits)
        ]
        predicted = torch.stack([scores.argmax(-1) for scores in logits], dim=-1)
        return {"loss": torch.stack(losses).sum(), "predicted": predicted.masked_fill(labels == IGNORED_LABEL, -100)}


def head_accuracy(prediction: Any) -> dict[str, float]:
    """Share of labelled patches that each head names rightly; shape and colour where there is an object."""
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    found = {}
    for index, name in enumerate(HEADS):
        asked = labels[..., index] != IGNORED_LABEL
        if name in ("shape", "colour"):  # of objects: no object is each one's last class
            asked &= labels[..., index] != (len(SHAPES) if name == "shape" else len(COLOURS))
        if name == "centre":
            asked &= labels[..., index] == 1
        found[name] = float((predicted[..., index] == labels[..., index])[asked].mean())
    return found


def blank_model(*, width: int, layers: int, heads: int, size: int, tower_layers: int, vocabulary: int) -> VoCoModel:
    """A model with random weights and a tokenizer whose merges come from the world's own questions and answers."""
    texts = (
        text
        for number in range(4000)
        for question in all_questions(make_scene(f"words {number}", still=number % 2 == 0), Random(number))
        for text in (f"{question.text}\n", f" {question.answer}")
    )
    tokenizer = byte_tokenizer(texts, vocabulary)
    config = small_config(tokenizer, width=width, layers=layers, heads=heads, size=size, tower_layers=tower_layers)
    model = random_model(config, seed=0)
    model.tokenizer = tokenizer
    return model


def train_tower(config: Path, out: Path, *, resume: bool = False) -> dict[str, float]:
    """Train a new model's tower and projector as the YAML file `config` says; `out` gets the run and its `model/`."""
    set_seed(0)
    recipe = yaml.safe_load(config.read_text())
    model = blank_model(**recipe["model"])
    model.vision_tower.requires_grad_(True)
    model.projector.requires_grad_(True)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=TowerObjective(model),
        args=training_arguments(recipe["trainer"], out, seed=0),
        data_collator=collate_patches,
        train_dataset=Patches(model, "train", recipe["count"]),
        eval_dataset=Patches(model, "val", 256),
        compute_metrics=head_accuracy,
        callbacks=[CsvLog(out), StopAtTheEnd()],
    )
    with fast_attention(trainer.args.device):
        run_to_the_end(trainer, last_checkpoint(out) if resume else None)
        figures: dict[str, float] = trainer.evaluate()
    model.requires_grad_(False)
    save_pretrained(model.eval(), out / "model")
    return figures


def main(config: str, out: str, *flags: str) -> None:
    """`python -m vococache.pipeline.training.tower CONFIG OUT [--resume]`."""
    print(train_tower(Path(config), Path(out), resume="--resume" in flags))


if __name__ == "__main__":
    main(*sys.argv[1:])
