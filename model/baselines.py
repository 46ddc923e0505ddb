"""What VoCo is compared with. So far: plain LLaVA, every vision token visible to the text.

The paper's upper bound is the same with VoCo tokens in the sequence and no mask (section 4.2).
"""

from torch import Tensor

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.voco import VoCoModel


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
