"""Packing: questions of different length in one row, the cached entries in front of them held once.

A question sees its own video's cached entries and its own earlier tokens, nothing else; its positions go on
right after its cache (docs/design/0004-two-stages.md, 3). So the packed row gives the logits of asking one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """One packed row: `ids`, `positions`, `question` [N] and the mask over cached and packed entries.

    `mask`: [N, P + N], True where visible. `ends`: [B], index of each question's last token in the row.
    """

    ids: Tensor
    positions: Tensor
    question: Tensor
    mask: Tensor
    ends: Tensor


def pack(questions: Sequence[Tensor], cached: Sequence[int], owners: Sequence[int], device: torch.device) -> Packing:
    """Pack `questions` (1-D id tensors); question b reads cache `owners[b]`, `cached[owners[b]]` long."""
    lengths = torch.tensor([len(question) for question in questions], device=device)
    question = torch.repeat_interleave(torch.arange(len(questions), device=device), lengths)
    ends = lengths.cumsum(0) - 1
    starts = ends + 1 - lengths
    within = torch.arange(int(lengths.sum()), device=device) - starts[question]
    sizes = torch.tensor(list(cached), device=device)
    owner = torch.tensor(list(owners), device=device)[question]
    entry_owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    return Packing(
        ids=torch.cat([q.to(device) for q in questions]),
        positions=sizes[owner] + within,
        question=question,
        mask=torch.cat((owner[:, None] == entry_owner[None, :], same_question(question).tril()), dim=1),
        ends=ends,
    )


def same_question(question: Tensor) -> Tensor:
    """[N, N] boolean: do two packed tokens belong to one question?"""
    return question[:, None] == question[None, :]
