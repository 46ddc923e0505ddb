"""Choosing tokens by coverage: greedy facility location on cosine similarity, without training.

A set is worth the sum, over all tokens, of the similarity to the nearest chosen one; the greedy set is within 1 - 1/e
of the best (Nemhauser et al. 1978; for video tokens arXiv 2511.00141).

Letters: S segments, N tokens of each, K chosen, E width.
"""

import torch
from torch import Tensor

ENTRIES = 1 << 26  # similarities held at once


def cover(tokens: Tensor, k: int) -> Tensor:
    """K tokens [S, K, E] for N [S, N, E]: each the mean of those it is nearest to, in their places' order."""
    with torch.no_grad():
        similar, scale = similarities(tokens)
        chosen = greedy(similar, scale, k).sort(dim=1).values
        owner = nearest(similar, chosen)
    sums = torch.zeros(len(tokens), k, tokens.shape[2], dtype=torch.float32, device=tokens.device)
    sums = sums.scatter_add(1, owner[:, :, None].expand_as(tokens), tokens.float())
    counts = torch.zeros(len(tokens), k, device=tokens.device).scatter_add(1, owner, torch.ones_like(owner).float())
    return (sums / counts[:, :, None]).to(tokens.dtype)


def similarities(tokens: Tensor) -> tuple[Tensor, int]:
    """Cosine similarities [S, N, N] in whole steps of 1 / scale, int32, and the scale.

    Whole numbers are summed without rounding, so what ties does so on every device and in every batch.
    """
    directions = torch.nn.functional.normalize(tokens.detach().double(), dim=-1)
    scale = 1 << ((1 << 29) // tokens.shape[1]).bit_length() - 1  # gains, of at most 2 a token, fit into int32
    return (directions @ directions.transpose(1, 2) * scale).round().to(torch.int32), scale


def greedy(similar: Tensor, scale: int, k: int) -> Tensor:
    """Indices [S, K] in the order in which they are chosen; of equal gains the first place wins."""
    return torch.stack([_greedy(segment, scale, k) for segment in similar])


def _greedy(similar: Tensor, scale: int, k: int) -> Tensor:
    """One segment's choice [K].

    After each pick only the tokens are looked at that it is nearer to than any pick before: what they gave to every
    candidate's gain is taken back, what they still give is put in.
    """
    count = len(similar)
    earlier = torch.arange(count - 1, -1, -1, device=similar.device)
    best = torch.full((count,), -scale, dtype=torch.int32, device=similar.device)
    gain = (similar - best[:, None]).sum(dim=0)  # int64
    chosen = []
    for _ in range(k):
        pick = (gain * count + earlier).argmax()
        chosen.append(pick)
        now = torch.maximum(best, similar[:, pick])
        nearer = (now > best).nonzero()[:, 0]
        rows = similar[nearer]
        gave, give = ((rows - level[nearer, None]).clamp_(min=0) for level in (best, now))
        gain -= (gave - give).sum(dim=0)
        gain[pick] = -1  # of no use again, and below all others
        best = now
    return torch.stack(chosen)


def nearest(similar: Tensor, chosen: Tensor) -> Tensor:
    """For each token [S, N] which of the chosen [S, K] stands for it; a chosen one for itself, of equals the first."""
    k = chosen.shape[1]
    to_chosen = similar.gather(1, chosen[:, :, None].expand(-1, -1, similar.shape[2])).long()  # [S, K, N]
    first = torch.arange(k - 1, -1, -1, device=similar.device)[:, None]
    owner = (to_chosen * k + first).argmax(dim=1)
    return owner.scatter(1, chosen, torch.arange(k, device=similar.device).expand_as(chosen))
