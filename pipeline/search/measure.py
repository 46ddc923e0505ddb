"""Which layer's keys, and which heads', find segments best: measured for a model with scenes of known content.

Shapes and colours are what any vision-language model knows, so the same scenes measure a trained checkpoint as well.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vococache.errors import ModelError
from vococache.pipeline.synthetic.render import as_recorded
from vococache.pipeline.synthetic.scene import LOOKS, make_scene

if TYPE_CHECKING:
    import torch

    from vococache.model.voco import VoCoModel

LEAST_GAIN = 0.003  # of mean average precision, that a further head of the index must bring
LARGEST_SHARE = 0.05  # of a cache's bytes that an index may take
SHOWN = 3  # clips that at least show what is searched


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexChoice:
    """Mean average precision of each layer's heads, [layers, kv_heads], of each layer whole, and of what is chosen."""

    heads_alone: npt.NDArray[np.float64]
    layers_whole: npt.NDArray[np.float64]
    layer: int
    heads: tuple[int, ...]
    precision: float
    chance: float


def average_precision(scores: Sequence[float] | npt.NDArray[Any], truth: Sequence[bool]) -> float:
    """The mean, over the true ones, of the precision of the ranking down to each. Scores: higher is better."""
    hits = np.asarray(truth)[np.argsort(-np.asarray(scores), kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def measure_index(model: "VoCoModel", clips: int, seed: str = "index") -> IndexChoice:
    """Rank `clips` synthetic clips for each object that some of them show, by every layer's keys; choose.

    The best single head's layer; of its heads the best, then those that still bring `LEAST_GAIN`, as long as their keys
    are at most `LARGEST_SHARE` of a cache.
    """
    import torch

    from vococache.model.finding import index_queries, join_queries
    from vococache.workers.finding import as_question
    from vococache.workers.reason import question_ids

    shown, cache = [], []
    frames_together = model.config.frames_per_segment
    for number in range(clips):
        scene = make_scene(f"{seed} {number}")
        shown.append({f"a {thing.colour} {thing.shape}" for thing in scene.things})
        pixels = as_recorded(scene, LOOKS, model.config.geometry.size)
        whole = pixels[: len(pixels) - len(pixels) % min(frames_together, len(pixels))]
        if len(whole) < frames_together:  # longer segments than a clip: its last frame stays
            whole = np.concatenate([whole, np.repeat(whole[-1:], frames_together - len(whole), axis=0)])
        with torch.inference_mode():
            grouped = whole.reshape(-1, frames_together, *whole.shape[1:])
            cache.append(model.compress(model.pixel_values(grouped)).data[:, :, 0].float().cpu())
    keys = torch.stack(cache)  # [clips, S, layers, G, K, D]
    counts = Counter(name for names in shown for name in names)
    names = [name for name, count in counts.items() if count >= SHOWN]
    truths = [[name in clip for clip in shown] for name in names]
    layers, groups = keys.shape[2], keys.shape[3]
    fits = []  # [clips, layers, G] of each name: of all S segments the best token for a head
    for name in names:
        ids = question_ids(model, as_question(model, name))
        per_layer = []
        for layer in range(layers):
            own = keys[:, :, layer]
            query = join_queries(index_queries(model, ids, layer), own.transpose(2, 3).flatten(0, 2))
            per_layer.append(_segment_fits(query, own))
        fits.append(torch.stack(per_layer, dim=2))  # [clips, S, layers, G]

    def precision(layer: int, heads: Sequence[int]) -> float:
        found = [fit[:, :, layer][:, :, list(heads)].mean(2).amax(1).numpy() for fit in fits]
        return float(np.mean([average_precision(*pair) for pair in zip(found, truths, strict=True)]))

    alone = np.array([[precision(layer, [head]) for head in range(groups)] for layer in range(layers)])
    layer = int(alone.max(axis=1).argmax())
    order = [int(head) for head in np.argsort(-alone[layer], kind="stable")]
    heads, best = [order[0]], float(alone[layer, order[0]])
    for head in order[1:]:
        share = (len(heads) + 1) / (2 * layers * groups)
        if share <= LARGEST_SHARE and (value := precision(layer, [*heads, head])) >= best + LEAST_GAIN:
            heads, best = [*heads, head], value
    by_layer = np.array([precision(each, range(groups)) for each in range(layers)], np.float64)
    chance = float(np.mean([np.mean(truth) for truth in truths]))
    return IndexChoice(
        heads_alone=alone, layers_whole=by_layer, layer=layer, heads=tuple(sorted(heads)), precision=best, chance=chance
    )


def recorded_choice(model: str) -> dict[str, Any]:
    """`layer` and `heads` that the config of an embedded model or a folder names; nothing of one on the hub."""
    from vococache.model.checkpoints import locate
    from vococache.model.files import read_json
    from vococache.model.hub import is_hub_id

    if is_hub_id(model) and not Path(model).exists():
        return {}
    try:
        found = read_json(locate(model)[0] / "config.json").get("search", {})
    except ModelError:  # the folder has gone: caches of its model can be brought up all the same
        return {}
    return {name: found[name] for name in ("layer", "heads") if name in found}


def _segment_fits(query_GRD: "torch.Tensor", keys: "torch.Tensor") -> "torch.Tensor":
    """[clips, S, G] of keys [clips, S, G, K, D]: the best token's product, the mean over heads that share a key."""
    import torch

    return torch.einsum("grd,nsgkd->nsgrk", query_GRD, keys).amax(4).mean(3)
