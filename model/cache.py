"""VoCo caches in memory.

Letters: S segments, Y layers, G key-value heads, K tokens of a segment, D head dimension, P = S * K.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vococache.errors import InputError


@dataclass(frozen=True, slots=True)
class VoCoCache:
    """Keys and values of VoCo tokens in the canonical layout; keys are position-free.

    `data`: [segments, layers, 2 (key, value), kv_heads, tokens, head_dim]. Segments are in time order.
    """

    data: Tensor

    def __post_init__(self) -> None:
        if self.data.dim() != 6 or self.data.shape[2] != 2:
            raise InputError(
                "a VoCo cache has the axes [segments, layers, 2, kv_heads, tokens, head_dim],"
                f" found the shape {tuple(self.data.shape)}"
            )

    @property
    def segments(self) -> int:
        return self.data.shape[0]

    @property
    def tokens(self) -> int:
        """K: VoCo tokens of each segment."""
        return self.data.shape[4]

    @property
    def positions(self) -> int:
        """Positions that the cache takes in front of a text: segments x tokens."""
        return self.segments * self.tokens

    def first_tokens(self, k: int) -> "VoCoCache":
        """Only the first `k` tokens of each segment: exactly the k-token cache of the same weights."""
        if not 1 <= k <= self.tokens:
            raise InputError(f"expected 1 to {self.tokens} tokens of a segment, found {k}")
        return VoCoCache(self.data[:, :, :, :, :k])

    def slice(self, start: int, stop: int) -> "VoCoCache":
        """Segments `start` to `stop` (exclusive)."""
        return VoCoCache(self.data[start:stop])

    def as_entries(self) -> "VoCoCache":
        """Each entry as a segment of one token: caches of segments of different length can then be joined."""
        return VoCoCache(self.data.permute(0, 4, 1, 2, 3, 5).flatten(0, 1).unsqueeze(4))

    def rows(self, segments: Sequence[int]) -> Tensor:
        """The cache of B rows, row b with the next `segments[b]` segments: [layers, 2, B, G, P, D].

        P is the longest row's; shorter ones are filled up with zeros behind their end.
        """
        if sum(segments) != self.segments:
            raise InputError(f"{self.segments} segments cannot be shared by rows of {list(segments)}")
        parts = list(torch.split(self.data, list(segments)))
        padded = pad_sequence(parts, batch_first=True) if len(parts) > 1 else self.data[None]
        return padded.permute(2, 3, 0, 4, 1, 5, 6).flatten(4, 5)

    @staticmethod
    def join(caches: Sequence["VoCoCache"]) -> "VoCoCache":
        """The segments of `caches`, one after the other."""
        return VoCoCache(torch.cat([cache.data for cache in caches]))


class PlacedCache:
    """A cache rotated to its positions 0..P-1, with room behind it for the text's own keys and values.

    Placed once, read by any number of questions: each starts again behind the P cached entries.
    `buffer`: [layers, 2, kv_heads, capacity, head_dim]. `lengths`: entries of each cache in it, where several were
    joined.
    """

    def __init__(self, prefix: Tensor, lengths: Sequence[int] | None = None) -> None:
        self.buffer = prefix
        self.prefix = prefix.shape[3]
        self.lengths = [self.prefix] if lengths is None else list(lengths)
        self.length = self.prefix
        self.steps: dict[tuple[int, int], Any] = {}  # `model.step.Step` by its shape: recordings over this buffer

    @staticmethod
    def join(caches: Sequence["PlacedCache"]) -> "PlacedCache":
        """A copy of several side by side, each at its own positions: questions about any of them share a pass."""
        entries = [cache.buffer[:, :, :, : cache.prefix] for cache in caches]
        return PlacedCache(torch.cat(entries, dim=3), [cache.prefix for cache in caches])

    @property
    def capacity(self) -> int:
        return self.buffer.shape[3]

    @property
    def bytes(self) -> int:
        """Bytes of memory that it takes now."""
        return self.buffer.nbytes

    def rewind(self, room: int) -> None:
        """Forget all text and make room for `room` entries of it."""
        self.length = self.prefix
        missing = self.prefix + room - self.capacity
        if missing > 0:
            shape = list(self.buffer.shape)
            shape[3] = missing
            # Zeros: a masked entry may not be NaN.
            self.buffer = torch.cat((self.buffer, self.buffer.new_zeros(shape)), dim=3)
            self.steps.clear()


def put(buffer: Tensor, layer: int, key: Tensor, value: Tensor, *, slots: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Store a layer's text entries [1, G, N, D] at the places `slots` [N] of a placed cache's buffer.

    Returns its first `width` keys and values, [1, G, width, D] each.
    """
    keys, values = buffer[layer]
    keys.index_copy_(1, slots, key[0])
    values.index_copy_(1, slots, value[0])
    return keys[None, :, :width], values[None, :, :width]
