"""Running the layers of a Hugging Face decoder (Llama, Mistral, Qwen2, Qwen3) the two-stage way.

The stock forward rotates keys before it caches them and computes every entry of every layer; compression
needs keys before RoPE and only the VoCo entries. So the layers' own modules are called here, in their order.

Letters: B rows, L positions, Q queries, H heads, G key-value heads, D head dimension, E hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.model.rope import rotate

Angles = tuple[Tensor, Tensor]
# Given a layer's index, rotated keys and values of the new entries: all the entries that queries may see.
KeyValues = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


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


def attend(attention: Any, query_BHQD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, mask: Tensor | None) -> Tensor:
    """Attention output [B, Q, E]. `mask` is boolean [Q, L], True where visible; None: plain causal, Q = L."""
    out = F.scaled_dot_product_attention(
        query_BHQD,
        key_BGLD,
        value_BGLD,
        attn_mask=mask,
        is_causal=mask is None,
        scale=attention.scaling,
        enable_gqa=query_BHQD.shape[1] != key_BGLD.shape[1],
    )
    projected: Tensor = attention.o_proj(out.transpose(1, 2).flatten(2))
    return projected


def feed_forward(layer: Any, x_BLE: Tensor) -> Tensor:
    """The second half of a decoder layer, residual included."""
    mlp: Tensor = layer.mlp(layer.post_attention_layernorm(x_BLE))
    return x_BLE + mlp


def run_layers(layers: nn.ModuleList, x_BLE: Tensor, angles: Angles, mask: Tensor, key_values: KeyValues) -> Tensor:
    """The text's hidden states [B, L, E] after all layers, before the final norm."""
    layer: Any
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(x_BLE)
        key, value = project_key_value(attention, normed)
        query = rotate(project_query(attention, normed), angles)
        key, value = key_values(index, rotate(key, angles), value)
        x_BLE = x_BLE + attend(attention, query, key, value, mask)
        x_BLE = feed_forward(layer, x_BLE)
    return x_BLE


def last_entries(layers: nn.ModuleList, x_BLE: Tensor, angles: Angles, keep: int) -> list[tuple[Tensor, Tensor]]:
    """Position-free keys and values [B, G, keep, D] of the last `keep` positions, for each layer.

    What cannot reach those entries is not computed: the last layer stops at its keys and values, and the
    layer before it computes the outputs of the last `keep` positions only.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    length = x_BLE.shape[1]
    layer: Any
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        if index == len(layers) - 1:
            kept.append(project_key_value(attention, layer.input_layernorm(x_BLE[:, -keep:])))
            break
        normed = layer.input_layernorm(x_BLE)
        key, value = project_key_value(attention, normed)
        # Copies, so that the entries nobody keeps are freed layer by layer.
        kept.append((key[:, :, -keep:].contiguous(), value[:, :, -keep:].contiguous()))
        key = rotate(key, angles)
        mask = None
        cos, sin = angles
        if index == len(layers) - 2 and keep < length:
            x_BLE, normed, cos, sin = x_BLE[:, -keep:], normed[:, -keep:], cos[-keep:], sin[-keep:]
            mask = torch.ones(keep, length, dtype=torch.bool, device=x_BLE.device).tril(length - keep)
        query = rotate(project_query(attention, normed), (cos, sin))
        x_BLE = feed_forward(layer, x_BLE + attend(attention, query, key, value, mask))
    return kept
