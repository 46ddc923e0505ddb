"""Random weights to start from."""

import torch
from torch import nn


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Matrices 1 / sqrt(fan-in), embeddings 0.3, biases zero, norms one.

    What a layer adds to the residual stream starts at 0.4 of that. Hugging Face's fixed std of 0.02 leaves attention
    almost uniform at small widths.
    """
    if next(module.parameters()).is_meta:
        return  # without storage there is nothing to start with
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            gain = 0.4 if name.endswith(("o_proj", "down_proj", "out_proj", "fc2")) else 1.0
            part.weight.normal_(0, gain * part.weight[0].numel() ** -0.5, generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.Embedding):
            part.weight.normal_(0, 0.3, generator=generator)
        elif hasattr(part, "class_embedding"):  # CLIP's, a bare parameter
            part.class_embedding.normal_(0, part.class_embedding.numel() ** -0.5, generator=generator)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
