"""Frames become the pictures that transformers' CLIP image processor makes, pixel for pixel."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from vococache.model.foreign import CLIP_MEAN, CLIP_STD
from vococache.model.images import FrameGeometry

SIZES = [
    (48, 48),
    (49, 48),
    (47, 91),
    (91, 47),
    (240, 135),
    (33, 21),
    (21, 33),
    (17, 17),
    (301, 299),
    (1, 50),
    (500, 7),
]
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def frame(height, width):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(picture, size, resample):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=resample,
        do_rescale=False,
        do_normalize=False,
    )
    return np.asarray(processor(picture, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


def padded(picture, colour):
    """The official `expand2square`."""
    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop(height, width, resample):
    pixels = frame(height, width)
    ours = FrameGeometry(size=48, pad=False, resample=resample).apply(pixels)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, processed(Image.fromarray(pixels), 48, resample))


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad(height, width, resample):
    pixels = frame(height, width)
    geometry = FrameGeometry(size=48, resample=resample)
    square = padded(Image.fromarray(pixels), tuple(int(255 * value) for value in CLIP_MEAN))
    np.testing.assert_array_equal(geometry.apply(pixels), processed(square, 48, resample))


def test_the_frame_is_not_changed_nor_shared():
    pixels = frame(48, 48)
    before = pixels.copy()
    out = FrameGeometry(size=48).apply(pixels)
    out = out.copy() if np.shares_memory(out, pixels) else out
    out[:] = 0
    assert (pixels == before).all()


@pytest.mark.parametrize("pad", [True, False])
def test_normalised_pixels(kit, pad):
    """Shift and scale, done by the model, agree with the processor's."""
    model = kit.model(geometry=FrameGeometry(size=12, pad=pad))
    pixels = frame(37, 80)
    picture = Image.fromarray(pixels)
    picture = padded(picture, model.config.geometry.background) if pad else picture
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    ours = model.pixel_values(model.config.geometry.apply(pixels)[None, None])[0, 0]
    np.testing.assert_allclose(ours, expected, atol=2e-6, rtol=0)


def test_round_trip():
    geometry = FrameGeometry(size=24, pad=False, background=(1, 2, 3), resample=BILINEAR)
    assert FrameGeometry.from_dict(geometry.to_dict()) == geometry
