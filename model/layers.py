"""A decoder of the Llama kind (Llama, Mistral, Qwen2, Qwen3), run the two-stage way; weights named as Transformers'.

Transformers' own layers rotate keys before they cache them and compute every entry; compression needs keys before
RoPE and only the VoCo entries. Their code also takes seconds to import, and a question over caches needs nothing else.

Letters: B rows, L positions, Q queries, H heads, G key-value heads, D head dimension, E hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.model.parts import PartConfig, head_dim
from vococache.model.rope import rotate
from vococache.model.varlen import Spans

Angles = tuple[Tensor, Tensor]
# Given rotated keys and values of the new entries: all the entries that queries may see.
KeyValues = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# What queries see: a boolean [..., Q, L], True where visible; texts one by one; or, None, plain causal attention.
Mask = Tensor | Spans | None


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), in float32 whatever comes in."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] as the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """The projections around attention; norms of queries and keys where the decoder has them (Qwen3)."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        size, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = head_dim(config)
        self.scaling = self.head_dim**-0.5
        bias = config.model_type in ("llama", "qwen3") and config.attention_bias
        inner_bias = bias or config.model_type == "qwen2"
        self.q_proj = nn.Linear(size, heads * self.head_dim, bias=inner_bias)
        self.k_proj = nn.Linear(size, groups * self.head_dim, bias=inner_bias)
        self.v_proj = nn.Linear(size, groups * self.head_dim, bias=inner_bias)
        self.o_proj = nn.Linear(heads * self.head_dim, size, bias=bias)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def query(self, x_BQE: Tensor) -> Tensor:
        """Queries before RoPE, [B, H, Q, D]."""
        query = self._heads(self.q_proj(x_BQE))
        return self.q_norm(query) if hasattr(self, "q_norm") else query

    def key_value(self, x_BLE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before RoPE (after the k-norm of a decoder that has one) and values, each [B, G, L, D]."""
        key = self._heads(self.k_proj(x_BLE))
        return self.k_norm(key) if hasattr(self, "k_norm") else key, self._heads(self.v_proj(x_BLE))

    def _heads(self, x_BLE: Tensor) -> Tensor:
        """[B, L, heads * D] as [B, heads, L, D]."""
        return x_BLE.reshape(*x_BLE.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """The gated feed-forward network (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        bias = config.model_type == "llama" and config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] as [..., E]."""
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


def activation(name: str) -> Any:
    """The function that a config names."""
    if name == "silu":
        return F.silu
    from transformers.activations import ACT2FN  # seconds, for the decoders that want another

    return ACT2FN[name]


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


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each behind a norm and around a residual."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BLE: Tensor,
        angles: Angles,
        *,
        mask: Mask = None,
        key_values: KeyValues | None = None,
        queries: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of the last `queries` positions (None: all), the new keys before RoPE, their values.

        `key_values` extends the new rotated keys and values by the entries that came before.
        """
        if queries == 0:
            return x_BLE[:, :0], *self.self_attn.key_value(self.input_layernorm(x_BLE))
        length = x_BLE.shape[1]
        query, keys, key, value = self.before_attention(x_BLE, angles, queries)
        values = value
        if key_values is not None:
            keys, values = key_values(keys, values)
        if queries is not None and queries < length:
            x_BLE = x_BLE[:, -queries:]
            mask = torch.ones(queries, length, dtype=torch.bool, device=x_BLE.device).tril(length - queries)
        attended = attend(query, keys, values, mask, self.self_attn.scaling)
        return self.after_attention(x_BLE, attended), key, value

    def before_attention(
        self, x_BLE: Tensor, angles: Angles, queries: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated queries of the last `queries` positions (None: all), rotated keys, keys before RoPE, values."""
        cos, sin = angles
        normed = self.input_layernorm(x_BLE)
        key, value = self.self_attn.key_value(normed)
        keys = rotate(key, angles)
        if queries is not None:
            normed, cos, sin = normed[:, -queries:], cos[-queries:], sin[-queries:]
        return rotate(self.self_attn.query(normed), (cos, sin)), keys, key, value

    def after_attention(self, x_BQE: Tensor, attended_BQE: Tensor) -> Tensor:
        """Hidden states [B, Q, E] behind the layer, from those before it and the heads' outputs."""
        x_BQE = x_BQE + self.self_attn.o_proj(attended_BQE)
        mlp: Tensor = self.mlp(self.post_attention_layernorm(x_BQE))
        return x_BQE + mlp


class Decoder(nn.Module):
    """Token embeddings, layers, final norm. What runs them is `vococache.model.decoder`."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        # Weights come later: random ones for a shape without storage would import PyTorch's compiler, a second.
        table = torch.empty(config.vocab_size, config.hidden_size)
        embedding: Any = nn.Embedding  # its method has no types
        self.embed_tokens = embedding.from_pretrained(
            table, freeze=False, padding_idx=getattr(config, "pad_token_id", None)
        )
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
