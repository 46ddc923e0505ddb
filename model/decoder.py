"""Running a decoder's layers: all that a text needs, or of a segment only what reaches its last entries.

Letters: B rows, L positions, G key-value heads, D head dimension, E hidden size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from vococache.model.layers import Angles, Mask

Extend = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def fast_attention(device: torch.device) -> AbstractContextManager[Any]:
    """The attention kernel to train with: on a CPU, plain matrix products beat the fused kernel's backward pass."""
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else [*fused, SDPBackend.MATH])


def call(module: Callable[..., Any], *args: Any, recompute: bool, **kwargs: Any) -> Any:
    """`module(...)`; with `recompute`, its inner values are computed again in the backward pass, not kept.

    The stock gradient-checkpointing flag cannot serve: it drops the keys and values that stage 2 reads.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False, **kwargs)
    return module(*args, **kwargs)


def run_layers(
    layers: nn.ModuleList, x_BLE: Tensor, angles: Angles, mask: Mask, extend: Extend, *, recompute: bool = False
) -> Tensor:
    """The text's hidden states [B, L, E] after all layers, before the final norm.

    `extend`: given a layer's index and its new keys and values, all the entries that queries may see.
    """
    for index, layer in enumerate(layers):
        x_BLE, _, _ = call(layer, x_BLE, angles, mask=mask, key_values=partial(extend, index), recompute=recompute)
    return x_BLE


def last_entries(
    layers: nn.ModuleList, x_BLE: Tensor, angles: Angles, keep: int, *, recompute: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Position-free keys and values [B, G, keep, D] of the last `keep` positions, for each layer.

    What cannot reach those entries is not computed: the last layer stops at its keys and values, and the
    layer before it computes the outputs of the last `keep` positions only.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    last = len(layers) - 1
    for index, layer in enumerate(layers):
        queries = {last: 0, last - 1: keep}.get(index)
        if index == last:
            x_BLE = x_BLE[:, -keep:]
        x_BLE, key, value = call(layer, x_BLE, angles, queries=queries, recompute=recompute)
        # Copies, so that the entries nobody keeps are freed layer by layer.
        kept.append((key[:, :, -keep:].contiguous(), value[:, :, -keep:].contiguous()))
    return kept
