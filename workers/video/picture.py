"""From a decoded frame to the picture that a player would show: RGB, opaque, with square pixels, upright.

Runs in the decoder child; free of torch.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from vococache.model.images import Frame
from vococache.workers.video.hdr import is_hdr, tone_mapped

# What lies behind transparent pixels, in videos and images alike: the white of a page.
GROUND = 255
# Pixels of other shapes than these are no shape but a broken header.
MAX_ASPECT = 16
MAX_STRETCHED = 4096  # pixels a side, of a picture that was smaller


@dataclass(frozen=True, slots=True)
class Presentation:
    """How stored pictures are shown: the shape of their pixels (width to height), and the container's display matrix.

    The matrix as (a, b, c, d): what is stored at (x, y) is shown at (ax + cy, bx + dy), apart from a shift.
    """

    aspect: Fraction = Fraction(1)
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)

    def apply(self, picture: Frame) -> Frame:
        """A stored picture [height, width, 3] as it is shown."""
        if self.aspect != 1:
            picture = _stretched(picture, self.aspect)
        a, b, c, d = self.matrix
        if abs(a) + abs(d) < abs(b) + abs(c):
            picture, a, d = picture.swapaxes(0, 1), c, b
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def view_of(stream: Any, frame: av.VideoFrame, aspect: Fraction | None) -> Presentation:
    """How a frame of `stream` is shown. `aspect`: of its pixels, where the codec says another than at first."""
    found = aspect or stream.sample_aspect_ratio
    if not found or not Fraction(1, MAX_ASPECT) <= found <= MAX_ASPECT:
        found = Fraction(1)
    sides: Any = frame.side_data
    side = sides.get(Type.DISPLAYMATRIX) if len(sides) else None
    if side is None:
        return Presentation(Fraction(found))
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(side), np.int32))
    return Presentation(Fraction(found), (a, b, c, d))


def rgb(frame: av.VideoFrame) -> Frame:
    """[height, width, 3], as decord converts it; HDR as SDR, transparency over `GROUND`."""
    if is_hdr(frame):
        return tone_mapped(frame)
    if not _has_alpha(frame.format.name):
        return _converted(frame, "rgb24")
    rgba = _converted(frame, "rgba")
    return over_ground(rgba)


def over_ground(rgba: Frame) -> Frame:
    """A picture [height, width, 4] over the ground: [height, width, 3]."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + GROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def _converted(frame: av.VideoFrame, format_name: str) -> Frame:
    picture: Any = frame.to_ndarray(format=format_name, interpolation="BILINEAR")
    return np.asarray(picture, np.uint8)


@lru_cache
def _has_alpha(format_name: str) -> bool:
    found = av.VideoFormat(format_name)
    return bool(found.has_palette) or any(component.is_alpha for component in found.components)


def _stretched(picture: Frame, aspect: Fraction) -> Frame:
    """A picture with square pixels: wider or higher, never less of either, within bounds."""
    height, width = picture.shape[:2]
    wide, high = width * max(aspect, Fraction(1)), height / min(aspect, Fraction(1))
    shrink = min(Fraction(1), Fraction(max(width, height, MAX_STRETCHED)) / max(wide, high))
    size = max(1, round(wide * shrink)), max(1, round(high * shrink))
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
