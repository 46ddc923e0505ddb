"""From a decoded frame to the square uint8 picture that the vision tower is fed.

Free of torch, because the decoder child imports it. Shift and scale to floats happen on the model's device
(`VoCoModel.pixel_values`); everything that depends on the frame's shape happens here.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]  # [height, width, 3], RGB


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameGeometry:
    """How a frame becomes a square of `size` pixels.

    `pad` is LLaVA's "pad": the frame is centred on a square of the `background` colour, then resized.
    `stretch`: it is resized to the square as it is; where `longest` is given, after its longer edge was resized to that
    (SmolVLM, Idefics3). Without both the shorter edge is resized to `size` and the centre is cut out (CLIP's own way).
    """

    size: int
    pad: bool = True
    background: tuple[int, int, int] = (122, 116, 104)  # int(255 * CLIP's mean)
    resample: int = Image.Resampling.BICUBIC
    stretch: bool = False
    longest: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `stretch` and `longest` only where set, so that older stores' geometries stay equal."""
        kept = asdict(self) | {"background": list(self.background), "resample": int(self.resample)}
        return {key: value for key, value in kept.items() if key not in ("stretch", "longest") or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FrameGeometry":
        """The inverse of `to_dict`."""
        return cls(**(data | {"background": tuple(data["background"])}))

    def apply(self, frame: Frame) -> Frame:
        """`frame` [height, width, 3] as [size, size, 3], bit for bit as the official preprocessing."""
        height, width = frame.shape[:2]
        if self.pad and height != width:
            side = max(height, width)
            square = np.empty((side, side, 3), np.uint8)
            square[:] = self.background
            top, left = (side - height) // 2, (side - width) // 2
            square[top : top + height, left : left + width] = frame
            frame, height, width = square, side, side
        if height == width == self.size and not self.longest:
            return np.ascontiguousarray(frame)
        if self.stretch:
            image = Image.fromarray(frame)
            if self.longest is not None:
                image = image.resize(_even_size(width, height, self.longest), Image.Resampling(self.resample))
            return np.asarray(image.resize((self.size, self.size), Image.Resampling(self.resample))).copy()
        # Shorter edge to `size`, then the centre, as transformers' CLIP image processor does.
        short = min(height, width)
        new_height, new_width = int(self.size * height / short), int(self.size * width / short)
        image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling(self.resample))
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        return np.asarray(image)[top : top + self.size, left : left + self.size].copy()


def _even_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height with the longer edge `longest` and the other even, as the Idefics3 image processor has them."""
    if width >= height:
        other = int(longest / (width / height))
        return longest, max(1, other + other % 2)
    other = int(longest * (width / height))
    return max(1, other + other % 2), longest
