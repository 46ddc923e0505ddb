"""Compression without training: checkpoints without VoCo tokens (docs/design/0007-untrained.md).

Stage 1 is `[prefix] [K tokens made of the segment's vision tokens]`; the K entries are the cache. `read` lays the
prefix's own entries once in front of all segments.
"""

import torch
from torch import Tensor

from vococache.model.cache import VoCoCache
from vococache.model.coverage import ENTRIES, cover
from vococache.model.vision import pooled
from vococache.model.voco import VoCoModel


class Untrained(VoCoModel):
    """Keeps K tokens of a segment by coverage ("cover"), a small grid of each frame ("pool"), or all ("full")."""

    def compress(self, pixel_values: Tensor) -> VoCoCache:
        """Stage 1: normalised pixels [S, F, 3, H, W] -> the cache of S segments, keys before RoPE. Gradients flow."""
        return self.compress_tokens(self.vision_tokens(pixel_values))

    def compress_tokens(self, tokens: Tensor) -> VoCoCache:
        """The cache of S segments of vision tokens [S, F * n, E]."""
        return self._behind_prefix(self.kept_tokens(tokens))

    def keep_whole(self, tokens: Tensor) -> VoCoCache:
        """The same with all tokens kept, as "full" has it: a cache of `config.full_tokens` a segment."""
        return self._behind_prefix(self._all(self._frames(tokens)))

    def _behind_prefix(self, kept: Tensor) -> VoCoCache:
        prefix = self.prefix_embeddings().expand(len(kept), -1, -1)
        return self.entries(torch.cat((prefix, kept), dim=1), kept.shape[1])

    def _frames(self, tokens: Tensor) -> Tensor:
        """Vision tokens [S, F * n, E] frame by frame, [S, F, n, E]."""
        return tokens.reshape(len(tokens), self.config.frames_per_segment, -1, tokens.shape[2])

    def kept_tokens(self, tokens: Tensor) -> Tensor:
        """The token embeddings [S, K, E] that stand for segments of vision tokens [S, F * n, E]."""
        config = self.config
        if config.compression == "cover":
            at_once = max(1, ENTRIES // tokens.shape[1] ** 2)
            return torch.cat([cover(part, config.num_voco_tokens) for part in torch.split(tokens, at_once)])
        frames = self._frames(tokens)
        if config.compression == "pool":
            return pooled(frames.flatten(0, 1), config.pooled_grid).reshape(len(tokens), config.num_voco_tokens, -1)
        return self._all(frames)

    def _all(self, frames: Tensor) -> Tensor:
        """Frames' tokens [S, F, n, E] with all that the family puts between and behind them."""
        between = torch.tensor(self.config.prompt.between_ids, dtype=torch.long, device=self.device)
        shared = self.language_model.embed_tokens(between).expand(len(frames), -1, -1)
        parts: list[Tensor] = []
        for frame in frames.unbind(1):
            parts += [shared, frame] if parts else [frame]
        if self.config.has_newline:
            newline: Tensor = self.projector.newline
            parts.append(newline.expand(len(frames), 1, -1).to(frames.dtype))
        return torch.cat(parts, dim=1)
