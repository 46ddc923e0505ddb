"""Rotary position embedding (RoFormer, arXiv 2104.09864) with angles in float32.

Kept apart from Hugging Face's rotary modules because `model.to(bfloat16)` would round their frequencies.
"""

import torch
from torch import Tensor

from vococache.model.parts import PartConfig, head_dim


class Rope:
    """The rotation of one decoder: frequencies from its config, angles always float32."""

    def __init__(self, config: PartConfig) -> None:
        rope, scale = config.rope_parameters, 1.0
        rope_type = rope.get("rope_type", "default")
        with torch.device("cpu"):  # a model may be built without storage, its frequencies may not
            if rope_type == "default":
                dim = head_dim(config)
                frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
            else:
                from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

                frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](config.transformers(), torch.device("cpu"))
        self._frequencies: Tensor = frequencies.float()
        self._scale: float = scale

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [..., length, head_dim] for integer `positions` [..., length]."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        half = positions[..., None].float() * self._frequencies
        full = torch.cat((half, half), dim=-1)
        return (full.cos() * self._scale).to(dtype), (full.sin() * self._scale).to(dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """`x` [..., length, head_dim] rotated by `angles` from `Rope.angles`."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
