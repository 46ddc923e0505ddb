"""Batches of texts of like length: little of what they compute is padding, and no process waits long for another."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from vococache.errors import InputError


def row_lengths(rows: Any) -> list[int]:
    """The length of each row's texts, in letters: good enough to sort by, and found without a tokenizer.

    Raises `InputError` for rows that are drawn as they are needed.
    """
    if isinstance(rows, ConcatDataset):
        return [length for part in rows.datasets for length in row_lengths(part)]
    if not hasattr(rows, "lengths"):
        raise InputError(
            "`train_sampling_strategy: group_by_length` needs data from files: synthetic clips are drawn as they are"
            " needed, and have no length before"
        )
    lengths: list[int] = rows.lengths()
    return lengths


class ByLength(Sampler[int]):
    """Rows at random, then sorted by length within every 50 steps or so (LLaVA's and the Trainer's way).

    `together`: rows of one step in all processes. `seed`: called at the beginning of an epoch, gives its order.
    """

    def __init__(self, lengths: Sequence[int], together: int, seed: Callable[[], int]) -> None:
        self.lengths, self.together, self.seed = lengths, together, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # Not the Trainer's sampler: it draws from torch's state, which a run that resumes in the middle has moved on.
        generator = torch.Generator().manual_seed(self.seed())
        grouped: Any = get_length_grouped_indices
        return iter(grouped(self.lengths, self.together, generator=generator))
