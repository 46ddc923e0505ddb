"""Matrix products in float8: a decoder whose linear layers multiply e4m3 numbers (FP8 formats, arXiv 2209.05433).

Every row of both sides has a scale of its own: of the weights found once, of the activations anew in each product, so
that a row's numbers do not depend on what else is in the batch. Half of bfloat16's bytes. For GPUs that have such
products, at twice the rate (compute capability 8.9 and up); on a CPU the same numbers, no faster.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from vococache.errors import ModelError

FLOAT8 = "float8"  # as a dtype's name: bfloat16, but for these products
E4M3 = torch.float8_e4m3fn
CAPABILITY = (8, 9)


class Float8Linear(nn.Module):
    """A linear layer with float8 weights, for inference; what it returns has its input's dtype."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_float8(linear.weight.detach())
        self.register_buffer("weight", weight)  # [out, in]
        self.register_buffer("scale", scale)  # [out, 1]
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] as [..., out]."""
        values, scale = to_float8(x.flatten(0, -2))
        out: Tensor = product(values, self.weight, scale, self.scale, x.dtype).reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


# An operator of its own: not every PyTorch that has this product can compile a function around it.
@torch.library.custom_op("vococache::float8_product", mutates_args=())
def product(values: Tensor, weight: Tensor, values_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, in] times [out, in], both float8 with the scales of their rows [N, 1] and [out, 1], as [N, out]."""
    by_row = ScalingType.RowWise
    out: Tensor = scaled_mm(values, weight.t(), values_scale, by_row, weight_scale.t(), by_row, output_dtype=dtype)
    return out


@product.register_fake
def _(values: Tensor, weight: Tensor, values_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return values.new_empty(values.shape[0], weight.shape[0], dtype=dtype)  # not `len`, which would fix the size


def to_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, E] as float8, and the factor [N, 1] by which each was divided."""
    largest = torch.finfo(E4M3).max
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / largest
    return (rows / scale).clamp(-largest, largest).to(E4M3), scale


def use_float8(layers: nn.Module) -> None:
    """Replace all linear layers within, in place. Raises `ModelError` where the hardware or a width forbids it."""
    names = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    device = next(layers.parameters()).device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ModelError(
            f"float8 needs a GPU of compute capability 8.9 (Ada, Hopper) or more, {torch.cuda.get_device_name(device)}"
            " has less: use bfloat16"
        )
    for name in names:
        linear: Any = layers.get_submodule(name)
        if linear.in_features % 16 or linear.out_features % 16:
            raise ModelError(
                f"float8 needs widths that 16 divides, layer {name} is {linear.in_features} to {linear.out_features}"
            )
        layers.set_submodule(name, Float8Linear(linear))  # one at a time: the old weights go as the new ones come
