"""Stored caches as the entries of vLLM's blocks.

Letters: S segments, Y layers, G key-value heads, K tokens of a segment, D head dimension, P entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vococache.model.cache import VoCoCache
from vococache.model.rope import Rope, rotate


def local_heads(heads: int, rank: int, ranks: int) -> slice:
    """The key-value heads of one of `ranks` of tensor parallelism; where there are more ranks, several hold a head."""
    return slice(rank * heads // ranks, rank * heads // ranks + max(1, heads // ranks))


def slots(block_ids: Sequence[int], first: int, stop: int, block_size: int) -> Tensor:
    """Where the entries `first` to `stop` of a request lie in the cache of its blocks: [stop - first]."""
    positions = torch.arange(first, stop)
    return torch.tensor(block_ids)[positions // block_size] * block_size + positions % block_size


def placed(caches: Sequence[VoCoCache], prefix_YcGpD: Tensor | None, rope: Rope, dtype: torch.dtype) -> Tensor:
    """Keys, rotated to the positions 0..P-1, and values: [Y, 2, P, G, D] in `dtype`, as `VoCoModel.place` has them."""
    rows = VoCoCache.join(caches).data.to(dtype).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
    if prefix_YcGpD is not None:
        rows = torch.cat((prefix_YcGpD.to(dtype), rows), dim=3)
    keys = rotate(rows[:, 0], rope.angles(torch.arange(rows.shape[3]), dtype))
    return torch.stack((keys, rows[:, 1]), dim=1).transpose(2, 3)
