"""Packing: several texts in one row, the cached entries in front of them held once.

A text sees its own row's cached entries and its own earlier tokens, nothing else; its positions go on right
after the cache (docs/design/0004-two-stages.md, 3). So a packed row gives the logits of asking one at a time.

Letters: B rows, L length, P cached entries of the longest row.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(texts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """One row of `texts` (1-D id tensors): ids [1, N] and the number of each token's text [1, N], from 1."""
    lengths = torch.tensor([len(text) for text in texts], device=device)
    numbers = torch.arange(1, len(texts) + 1, device=device)
    return torch.cat([text.to(device) for text in texts])[None], numbers.repeat_interleave(lengths)[None]


def seen_before(text: Tensor) -> Tensor:
    """[B, L, L] boolean, True where token l may see token m <= l: `text` [B, L] is equal, and not 0 (padding)."""
    same = (text[:, :, None] == text[:, None, :]) & (text > 0)[:, None, :]
    return same.tril()


def order(text: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's place in its text, from 0, and the column of the token before it there; [B, L] both, -1 for none.

    `text` [B, L]: the number of each token's text, 0 on padding.
    """
    numbers, columns = text.sort(dim=1, stable=True)
    first = F.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0), value=True)
    index = torch.arange(text.shape[1], device=text.device).expand_as(text)
    start = torch.where(first, index, 0).cummax(dim=1).values
    before = columns.roll(1, dims=1).masked_fill(first, -1)
    place, previous = (torch.empty_like(index).scatter(1, columns, found) for found in (index - start, before))
    return place.masked_fill(text == 0, -1), previous.masked_fill(text == 0, -1)


def positions_behind(cached: Tensor, text: Tensor) -> Tensor:
    """Positions [B, L] of texts behind `cached` [B] entries; `text` as in `order`."""
    return (cached[:, None] + order(text)[0]).clamp(min=0)


def visible(text: Tensor, cached: Tensor, width: int) -> Tensor:
    """The mask [B, 1, L, P + L] of packed rows, True where visible.

    `text` as in `order`. `cached` [B]: cached entries of each row, of `width` (P) that are there.
    """
    entries = torch.arange(width, device=text.device)[None] < cached[:, None]
    # A padded query sees itself: a row of the softmax with nothing to see would be NaN.
    itself = torch.eye(text.shape[1], dtype=torch.bool, device=text.device)
    mask = torch.cat((entries[:, None].expand(-1, text.shape[1], -1), seen_before(text) | itself), dim=2)
    return mask[:, None]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the products of queries and keys; made once, not again in each layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def arrange_behind(text: Tensor, lengths: Sequence[int], caches: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Positions [1, N] and the mask [1, 1, N, P + N] of one packed row without padding; True where visible.

    `text` [1, N]: the number of each token's text, from 1. The P cached entries are those of one or more caches, of
    `lengths` entries, side by side; `caches` names the one that each text stands behind. A text sees no other.
    """
    sizes = torch.tensor(list(lengths), device=text.device)
    cache = torch.tensor(list(caches), device=text.device)[text[0] - 1]
    positions = sizes[cache][None] + order(text)[0]
    entries = torch.arange(len(sizes), device=text.device).repeat_interleave(sizes)
    mask = torch.cat(((cache[:, None] == entries)[None], seen_before(text)), dim=2)
    return positions, mask[:, None]
