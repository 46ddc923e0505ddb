"""Sums over a vocabulary's logits, a chunk of positions at a time.

In float32, with what its gradient needs, one position of a 152,000-word vocabulary takes 1.8 MB: at once, a batch's
logits are larger than all that a checkpointed layer keeps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vococache.model.decoder import call

LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32


def positions_at_once(vocabulary: int) -> int:
    """Positions of a chunk."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def sum_by_chunks(function: Callable[..., Tensor], vocabulary: int, *tensors: Tensor) -> Tensor:
    """The sum of `function`, itself a sum over the positions of `tensors` [N, ...], over chunks of positions.

    Each chunk's logits are computed again in the backward pass, so those of one chunk at most are held.
    """
    chunks = zip(*(torch.split(tensor, positions_at_once(vocabulary)) for tensor in tensors), strict=True)
    return torch.stack([call(function, *chunk, recompute=True) for chunk in chunks]).sum()
