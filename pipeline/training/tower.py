"""A vision tower for the synthetic world, trained before the language model meets it.

LLaVA and VoCo-LLaMA start from CLIP, which has seen 400 million pictures. The embedded model has no such start: its
tower and projector first learn to name what each patch of a picture shows. The heads for that are thrown away.

Letters: B pictures, P patches along a side, N = P * P, E hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.synthetic.render import EDGES, frames
from vococache.pipeline.synthetic.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, Scene, make_scene

COVERED = 0.06  # share of a patch that an object must cover to be what the patch shows
HEADS = {
    "shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "size": len(RADII), "centre": 2,
    "pattern": len(BACKGROUNDS), "bright": 2,
}  # fmt: skip


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
    }


class Patches(Dataset[dict[str, np.ndarray]]):
    """Single pictures of a split with the labels of their patches."""

    def __init__(self, model: VoCoModel, split: str, count: int) -> None:
        self.side, self.patch = model.config.geometry.size, int(model.config.vision.patch_size)
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = make_scene(f"{self.split} {index}", still=True)
        picture = frames(scene, (0.0,), self.side)
        return {"frames": picture[:, None]} | patch_labels(scene, 0.0, self.side, self.patch)


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
        self.heads = nn.ModuleDict(
            {name: nn.Linear(voco.config.text.hidden_size, size) for name, size in HEADS.items()}
        )

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
    for index, (name, size) in enumerate(HEADS.items()):
        asked = labels[..., index] != IGNORED_LABEL
        if name in ("shape", "colour"):
            asked &= labels[..., index] != size - 1
        if name == "centre":
            asked &= labels[..., index] == 1
        found[name] = float((predicted[..., index] == labels[..., index])[asked].mean())
    return found
