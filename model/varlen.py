"""Stage 2's attention without a mask: texts of different length behind different caches in one call of a kernel.

A mask keeps every flash kernel away, and with fewer key-value heads than heads only plain matrix products are then
left. Yet what one text sees, its row's cached entries and itself, is one sequence under causal attention whose queries
are its last positions: what `varlen_attn` takes. Padding is no part of it.

Letters: B rows, L length, P cached entries of the longest row, T texts, N tokens of all texts, M entries that they see,
H heads, G key-value heads, D head dimension.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# "meta" has shapes alone: there a step is counted as a GPU would run it.
DEVICES = {"cuda", "meta"}
DTYPES = {torch.float16, torch.bfloat16}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spans:
    """The texts of a batch, one after the other.

    `queries` [N]: their tokens among the B * L of the batch. `entries` [M]: what each sees, among B * (P + L).
    `query_ends`, `entry_ends` [T + 1]: where each ends, from 0 on. `longest`: the most tokens and entries of a text.
    """

    queries: Tensor
    entries: Tensor
    query_ends: Tensor
    entry_ends: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, text: Tensor, cached: Tensor, width: int, device: torch.device) -> "Spans | None":
        """Of packed rows, as `packing.visible` takes them, on the CPU; None where there is no text."""
        length = text.shape[1]
        queries, entries = [], []
        for row, (numbers, count) in enumerate(zip(text, cached.tolist(), strict=True)):
            first = row * (width + length)
            for number in numbers[numbers > 0].unique():
                columns = (numbers == number).nonzero()[:, 0]
                queries.append(row * length + columns)
                entries.append(torch.cat((torch.arange(first, first + count), first + width + columns)))
        if not queries:
            return None
        counts = [torch.tensor([0, *map(len, parts)]) for parts in (queries, entries)]
        ends = [count.cumsum(0).to(device, torch.int32) for count in counts]
        places = [torch.cat(parts).to(device) for parts in (queries, entries)]
        return cls(places[0], places[1], ends[0], ends[1], longest=(int(counts[0].max()), int(counts[1].max())))

    def attend(self, query_BHLD: Tensor, key_BGMD: Tensor, value_BGMD: Tensor, scale: float) -> Tensor:
        """Attention output [B, H, L, D], zero on padding; keys and values of P cached entries and L tokens a row."""
        rows, heads, length, size = query_BHLD.shape
        query = query_BHLD.transpose(1, 2).flatten(0, 1)[self.queries].to(value_BGMD.dtype)
        key, value = (each.transpose(1, 2).flatten(0, 1)[self.entries] for each in (key_BGMD, value_BGMD))
        kernel = varlen if query.device.type in DEVICES and query.dtype in DTYPES else one_by_one
        out = kernel(self, query, key, value, scale)
        out = out.new_zeros(rows * length, heads, size).index_copy(0, self.queries, out)
        return out.view(rows, length, heads, size).transpose(1, 2)


def varlen(spans: Spans, query_NHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, scale: float) -> Tensor:
    """All texts [N, H, D] in one call."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if query_NHD.shape[1] != key_MGD.shape[1] else {}  # not before 2.12
    out = varlen_attn(
        query_NHD, key_MGD, value_MGD, spans.query_ends, spans.entry_ends, *spans.longest,
        scale=scale, window_size=(-1, 0), **grouped,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def one_by_one(spans: Spans, query_NHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, scale: float) -> Tensor:
    """What `varlen` computes, text by text: slow, and everywhere the same."""
    from torch.nn.attention.bias import causal_lower_right  # which imports the compiler: a second

    outs = []
    queries, entries = (ends.diff().tolist() for ends in (spans.query_ends, spans.entry_ends))
    parts = (torch.split(query_NHD, queries), torch.split(key_MGD, entries), torch.split(value_MGD, entries))
    for text in zip(*parts, strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in text)
        mask: Any = causal_lower_right(query.shape[2], key.shape[2])
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@cache
def works(device: torch.device, dtype: torch.dtype, heads: int, key_value_heads: int, head_dim: int) -> bool:
    """Does this device's kernel give the values and gradients of `one_by_one`? Tried once, on two small texts."""
    if device.type == "meta":
        return True
    if device.type not in DEVICES or dtype not in DTYPES:
        return False
    try:
        # Also where a caller only reads: what is made in inference mode could not learn.
        with torch.inference_mode(mode=False), torch.enable_grad():
            _compare(device, dtype, heads, key_value_heads, head_dim)
    except Exception as error:  # whatever a build without that kernel, or another one's, leads to
        reason = str(error).strip().splitlines()
        logger.warning("no variable-length attention here, so texts are read with a mask: %s", reason[:1])
        return False
    return True


def _compare(device: torch.device, dtype: torch.dtype, heads: int, key_value_heads: int, head_dim: int) -> None:
    """Raises where the kernel's values or gradients are not those of `one_by_one`."""
    text, cached = torch.tensor([[1, 1, 1, 2, 2, 0]]), torch.tensor([3])
    spans = Spans.of(text, cached, 3, device)
    assert spans is not None
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, groups, head_dim, generator=generator).to(device, dtype).requires_grad_()
        for count, groups in ((5, heads), (11, key_value_heads), (11, key_value_heads))
    )
    pairs = []
    for kernel in (varlen, one_by_one):
        out = kernel(spans, query, key, value, head_dim**-0.5)
        pairs.append([out, *torch.autograd.grad(out.square().sum(), (query, key, value))])
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
