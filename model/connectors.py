"""The connectors of the families that have one of their own: Transformers' modules behind one call.

Letters: N frames, W vision width, n vision tokens of a frame, E hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

from vococache.model.vision import as_grid, halved


class OneVisionConnector(LlavaOnevisionMultiModalProjector):
    """LLaVA-OneVision: projected, then pooled bilinearly to half the rows and columns. Holds the learned newline."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.newline = nn.Parameter(torch.empty(config.text_config.hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """[N, patches, W] -> [N, n, E]."""
        return halved(super().forward(features))  # type: ignore[no-untyped-call]


class NextVideoConnector(LlavaOnevisionMultiModalProjector):
    """LLaVA-NeXT-Video: pooled, then projected."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pooler = LlavaNextVideoPooler(config)  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor) -> Tensor:
        """[N, patches, W] -> [N, n, E]."""
        out: Tensor = super().forward(self.pooler(features))  # type: ignore[no-untyped-call]
        return out


class InternVLConnector(InternVLMultiModalProjector):
    """InternVL: pixel shuffle, then projected."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ratio = config.downsample_ratio

    def forward(self, features: Tensor) -> Tensor:
        """[N, patches, W] -> [N, n, E]."""
        shuffle: Any = InternVLModel.pixel_shuffle  # a method that needs no model
        shuffled = shuffle(None, as_grid(features), scale_factor=self.ratio).flatten(1, 2)
        out: Tensor = super().forward(shuffled)  # type: ignore[no-untyped-call]
        return out


CONNECTORS: dict[str, Any] = {
    "llava_onevision": OneVisionConnector,
    "llava_next_video": NextVideoConnector,
    "idefics3": Idefics3Connector,
    "smolvlm": Idefics3Connector,
    "internvl": InternVLConnector,
}
