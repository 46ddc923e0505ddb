"""What VoCo is compared with (section 4.2 of the paper), each as a model with its own `compress`.

All are read behind the question by the same decoder, so training, evaluation and questions work alike.
"""

from torch import Tensor

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.voco import VoCoModel


class FullAttention(VoCoModel):
    """The upper bound: the text sees every entry of stage 1, vision tokens included (VoCo tokens stand there too)."""

    def compress(self, pixel_values: Tensor) -> VoCoCache:
        """All entries: [S, layers, 2, G, 1 + F * n + newline + K, D]."""
        return self.encode(pixel_values, self.config.num_voco_tokens, self.config.stage1_length)


def full_cache(model: VoCoModel, pixel_values: Tensor, voco_tokens: int = 0) -> VoCoCache:
    """All entries of `[BOS] [vision tokens] [newline ids] [VoCo x voco_tokens]` as one "segment".

    `pixel_values`: [1, F, 3, H, W] with any number of frames. By causality `read` and `generate` behind this
    cache are the single forward with full attention: the paper's "full caching" row.
    """
    if len(pixel_values) != 1:
        raise InputError(f"full attention takes one segment with all its frames, found {len(pixel_values)} segments")
    vision = pixel_values.shape[1] * model.config.tokens_per_frame
    bos = model.config.prompt.bos_id is not None
    length = bos + vision + len(model.config.prompt.newline_ids) + voco_tokens
    return model.encode(pixel_values, voco_tokens, keep=length)
