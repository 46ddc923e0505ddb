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
ROWS = 256  # padded and resized at once
MAX_LONG = 128  # times its height, of a picture that is resized as a whole before its centre is cut out


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
        """`frame` [height, width, 3] as [size, size, 3], bit for bit as the official preprocessing.

        But a picture of 30,000 x 2 pixels takes no gigabytes: nothing is built that is much larger than `frame`.
        """
        height, width = frame.shape[:2]
        if height == width == self.size and not self.longest:
            return np.ascontiguousarray(frame)
        shape = self._stretched if self.stretch else self._padded if self.pad else self._cut
        return np.asarray(shape(Image.fromarray(np.ascontiguousarray(frame)))).copy()

    def _stretched(self, image: Image.Image) -> Image.Image:
        """The whole picture on the square, whatever its shape."""
        if self.longest is not None:
            image = image.resize(_even_size(*image.size, self.longest), self._filter)
        return image.resize((self.size, self.size), self._filter)

    def _padded(self, image: Image.Image) -> Image.Image:
        """In the middle of a square of the background, then resized: rows first, a few at a time, then columns.

        So does Pillow with the whole square.
        """
        width, height = image.size
        side = max(width, height)
        narrow = Image.new("RGB", (self.size, side), self.background)
        top, left = (side - height) // 2, (side - width) // 2
        for start in range(0, height, ROWS):
            rows = image.crop((0, start, width, min(height, start + ROWS)))
            if width < side:
                ground = Image.new("RGB", (side, rows.height), self.background)
                ground.paste(rows, (left, 0))
                rows = ground
            narrow.paste(rows.resize((self.size, rows.height), self._filter), (0, top + start))
        return narrow.resize((self.size, self.size), self._filter)

    def _cut(self, image: Image.Image) -> Image.Image:
        """Shorter edge to `size`, then the centre, as transformers' CLIP image processor does."""
        short = min(image.size)
        width, height = (int(self.size * edge / short) for edge in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        box = (left, top, left + self.size, top + self.size)
        if max(width, height) <= MAX_LONG * self.size:
            return image.resize((width, height), self._filter).crop(box)
        x, y = image.width / width, image.height / height
        return image.resize((self.size, self.size), self._filter, box=(box[0] * x, box[1] * y, box[2] * x, box[3] * y))

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling(self.resample)


def _even_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height with the longer edge `longest` and the other even, as the Idefics3 image processor has them."""
    if width >= height:
        other = int(longest / (width / height))
        return longest, max(1, other + other % 2)
    other = int(longest * (width / height))
    return max(1, other + other % 2), longest
