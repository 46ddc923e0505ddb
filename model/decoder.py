"""Running the layers of a Hugging Face decoder (Llama, Mistral, Qwen2, Qwen3) the two-stage way.

The stock forward rotates keys before it caches them and computes every entry of every layer; compression
needs keys before RoPE and only the VoCo entries. So the layers' own modules are called here, in their order.

Letters: B rows, L positions, Q queries, H heads, G key-value heads, D head dimension, E hidden size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from vococache.model.rope import rotate
from vococache.model.varlen import Spans

Angles = tuple[Tensor, Tensor]
# Given rotated keys and values of the new entries: all the entries that queries may see.
KeyValues = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Extend = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# What queries see: a boolean [..., Q, L], True where visible; texts one by one; or, None, plain causal attention.
Mask = Tensor | Spans | None


def split_heads(x_BLE: Tensor, head_dim: int) -> Tensor:
    """[B, L, heads * D] as [B, heads, L, D]."""
    return x_BLE.reshape(*x_BLE.shape[:2], -1, head_dim).transpose(1, 2)


def project_key_value(attention: Any, x_BLE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before RoPE (after the k-norm of a decoder that has one) and values, each [B, G, L, D]."""
    key = split_heads(attention.k_proj(x_BLE), attention.head_dim)
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key)
    return key, split_heads(attention.v_proj(x_BLE), attention.head_dim)


def project_query(attention: Any, x_BQE: Tensor) -> Tensor:
    """Queries before RoPE, [B, H, Q, D]."""
    query = split_heads(attention.q_proj(x_BQE), attention.head_dim)
    return attention.q_norm(query) if hasattr(attention, "q_norm") else query


def attend(query_BHQD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, mask: Mask, scale: float) -> Tensor:
    """The heads' outputs, side by side: [B, Q, H * D]; without a mask Q = L."""
    if isinstance(mask, Spans):
        out = mask.attend(query_BHQD, key_BGLD, value_BGLD, scale)
    else:
        out = F.scaled_dot_product_attention(
            query_BHQD,
            key_BGLD,
            value_BGLD,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query_BHQD.shape[1] != key_BGLD.shape[1],
        )
    return out.transpose(1, 2).flatten(2)


def fast_attention(device: torch.device) -> AbstractContextManager[Any]:
    """The attention kernel to train with: on a CPU, plain matrix products beat the fused kernel's backward pass."""
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else [*fused, SDPBackend.MATH])


def before_attention(
    layer: Any, x_BLE: Tensor, angles: Angles, queries: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotated queries of the last `queries` positions (None: all), rotated keys, keys before RoPE, values."""
    attention, (cos, sin) = layer.self_attn, angles
    normed = layer.input_layernorm(x_BLE)
    key, value = project_key_value(attention, normed)
    keys = rotate(key, angles)
    if queries is not None:
        normed, cos, sin = normed[:, -queries:], cos[-queries:], sin[-queries:]
    return rotate(project_query(attention, normed), (cos, sin)), keys, key, value


def after_attention(layer: Any, x_BQE: Tensor, attended_BQE: Tensor) -> Tensor:
    """Hidden states [B, Q, E] behind the layer, from those before it and the heads' outputs."""
    x_BQE = x_BQE + layer.self_attn.o_proj(attended_BQE)
    mlp: Tensor = layer.mlp(layer.post_attention_layernorm(x_BQE))
    return x_BQE + mlp


def two_stage_layer(
    layer: Any,
    x_BLE: Tensor,
    angles: Angles,
    *,
    mask: Mask = None,
    key_values: KeyValues | None = None,
    queries: int | None = None,
    before: Callable[..., Any] = before_attention,
    after: Callable[..., Any] = after_attention,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: hidden states of its last `queries` positions (None: all), its new keys before RoPE, its values.

    `key_values` extends the new rotated keys and values by the entries that came before. This is the `forward` of
    every layer (`bind`), so that what hooks a module's forward (FSDP, checkpointing) works.
    """
    attention, length = layer.self_attn, x_BLE.shape[1]
    if queries == 0:
        return x_BLE[:, :0], *project_key_value(attention, layer.input_layernorm(x_BLE))
    query, keys, key, value = before(layer, x_BLE, angles, queries)
    values = value
    if key_values is not None:
        keys, values = key_values(keys, values)
    if queries is not None and queries < length:
        x_BLE = x_BLE[:, -queries:]
        mask = torch.ones(queries, length, dtype=torch.bool, device=x_BLE.device).tril(length - queries)
    return after(layer, x_BLE, attend(query, keys, values, mask, attention.scaling)), key, value


def bind(layers: nn.ModuleList, *, compiled: bool = False) -> None:
    """Make `two_stage_layer` the forward of every layer.

    `compiled`: what surrounds attention is fused by `torch.compile`, once for all layers and sizes. Attention itself
    has its kernels, and what it is given (masks, a cache that grows) takes too many forms.
    """
    forward = two_stage_layer
    if compiled:
        before, after = (torch.compile(half, dynamic=True) for half in (before_attention, after_attention))
        forward = partial(two_stage_layer, before=before, after=after)
    for layer in layers:
        layer.forward = MethodType(forward, layer)


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
