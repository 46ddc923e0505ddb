"""HDR pictures (PQ and HLG) as an SDR screen shows them: BT.709, white at 203 nits, as BT.2408 has it.

Up to 80% of white light is kept as it is; what is brighter is compressed into the rest, its hue kept. FFmpeg's way to
this needs its filter zscale, which PyAV's builds do not have. Runs in the decoder child; free of torch.
"""

from functools import lru_cache
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from vococache.model.images import Frame

PQ, HLG, BT2020 = 16, 18, 9  # numbers of ITU-T H.273: transfer characteristics, and primaries
WHITE_NITS, HLG_PEAK_NITS = 203, 1000
KNEE = 0.8
STEPS = 4096  # of the table by which light becomes values of 0 to 255
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # BT.2087, of linear BT.2020

Light = npt.NDArray[np.float32]


def is_hdr(frame: av.VideoFrame) -> bool:
    """Does a frame say that it is PQ or HLG?"""
    return frame.color_trc in (PQ, HLG)


def tone_mapped(frame: av.VideoFrame) -> Frame:
    """An HDR frame as [height, width, 3] in BT.709."""
    coded: Any = frame.to_ndarray(format="rgb48le", interpolation="BILINEAR")
    light = _to_light(int(frame.color_trc))[coded]
    if frame.color_primaries == BT2020:
        light = light @ TO_BT709.T
    brightest = light.max(axis=-1, keepdims=True)
    over = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    light *= np.where(over > 0, (KNEE + (1 - KNEE) * over / (1 + over)) / np.maximum(brightest, KNEE), 1)
    picture: Frame = _to_values()[(np.clip(light, 0, 1) * (STEPS - 1) + 0.5).astype(np.uint16)]
    return picture


@lru_cache
def _to_light(transfer: int) -> Light:
    """Linear light, 1 for white, for each of 65,536 coded values."""
    value = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        power = value ** (32 / 2523)
        nits = 10_000 * (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
        return np.asarray(nits / WHITE_NITS, np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    # A screen's own light of the scene's: channel by channel, as FFmpeg's zscale has it.
    return np.asarray(scene**1.2 * HLG_PEAK_NITS / WHITE_NITS, np.float32)


@lru_cache
def _to_values() -> Frame:
    """Values of 0 to 255 for `STEPS` of linear light, for a screen of BT.1886."""
    return np.round(255 * np.linspace(0, 1, STEPS) ** (1 / 2.4)).astype(np.uint8)
