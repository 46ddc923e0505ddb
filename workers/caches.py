"""A chunk's frames as the caches that a store keeps: what is computed, without the store."""

from collections.abc import Collection
from contextlib import suppress

import numpy as np
import torch

from vococache.errors import InputError
from vococache.model.config import VoCoConfig
from vococache.model.untrained import Untrained
from vococache.model.voco import VoCoModel

# Positions in one forward pass: enough to fill a GPU, small enough for a CPU's memory.
BATCH_POSITIONS = 16384


def micro_batch(config: VoCoConfig) -> int:
    """Segments in one forward pass: a power of two that depends on the model alone, never on the machine."""
    fitting = max(1, BATCH_POSITIONS // max(config.stage1_length, config.segment_tokens))
    return int(min(64, 1 << (fitting.bit_length() - 1)))


def compress_frames(model: VoCoModel, frames: np.ndarray, micro_batch: int, dtype: str) -> np.ndarray:
    """Caches of uint8 frames [S, F, H, W, 3], so many segments at a time, as a store of `dtype` keeps them.

    A GPU is waited for once, when all of its work is under way. Raises `InputError` as `to_stored`.
    """
    with torch.inference_mode():
        batches = torch.split(torch.as_tensor(frames).to(model.device), micro_batch)
        caches = [model.compress(model.pixel_values(batch)).data for batch in batches]
        return to_stored(torch.cat(caches), dtype)


def compress_keeping(
    model: Untrained, frames: np.ndarray, micro_batch: int, dtype: str, whole: Collection[int]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """As `compress_frames`, and all entries of the segments `whole`, by their numbers, of the same vision tokens.

    Of each [layers, 2 (key, value), kv_heads, `config.full_tokens`, head_dim]; none of one that `dtype` does not hold.
    """
    with torch.inference_mode():
        caches, kept = [], {}
        for number, batch in enumerate(torch.split(torch.as_tensor(frames).to(model.device), micro_batch)):
            tokens_SNE = model.vision_tokens(model.pixel_values(batch))
            caches.append(model.compress_tokens(tokens_SNE).data)
            for place in range(len(batch)):
                if (segment := number * micro_batch + place) in whole:
                    with suppress(InputError):  # it is kept as the others are
                        kept[segment] = to_stored(model.keep_whole(tokens_SNE[place : place + 1]).data[0], dtype)
        return to_stored(torch.cat(caches), dtype), kept


def to_stored(data: torch.Tensor, dtype: str) -> np.ndarray:
    """A cache's tensor as the store's dtype on the CPU. Raises `InputError` on values that it cannot hold."""
    kept = data.to(torch.float16 if dtype == "float16" else torch.float32)
    if not bool(torch.isfinite(kept).all()):
        raise InputError(f"the cache holds values that are not finite in {dtype}: compute in float32 and try again")
    # Into memory that the GPU writes by itself: several times faster than any other.
    home = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=kept.is_cuda)
    return np.asarray(home.copy_(kept).numpy())
