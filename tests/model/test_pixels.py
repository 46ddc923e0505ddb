"""Frames become the pixels of each family's own processor, within a step of 1/255.

Its PIL processors: the video processors are the same arithmetic, but need torchvision.
"""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from vococache.model.families import FAMILIES, preprocessing
from vococache.model.parts import part_config

SQUARE = {"height": 48, "width": 48}
SHORT = {"shortest_edge": 48}
# Family, the processor of its pictures, its settings; what its own code does with a frame is one of its views.
CASES = {
    "llava": ("llava", CLIPImageProcessorPil, {"size": SHORT, "crop_size": SQUARE}, {}),
    "llava, padded": ("llava", LlavaImageProcessorPil, {"size": SHORT, "crop_size": SQUARE, "do_pad": True}, {}),
    "llava, SigLIP": ("llava", SiglipImageProcessorPil, {"size": SQUARE}, {}),
    "llava_next": (
        "llava_next", LlavaNextImageProcessorPil,
        {"size": SHORT, "crop_size": SQUARE, "image_grid_pinpoints": [[48, 48]]}, {},
    ),
    # Both families' videos are single views by these settings of their video processors.
    "llava_next_video": ("llava_next_video", CLIPImageProcessorPil, {"size": SHORT, "crop_size": SQUARE}, {}),
    "llava_onevision": ("llava_onevision", SiglipImageProcessorPil, {"size": SQUARE}, {}),
    "smolvlm": (
        "smolvlm", SmolVLMImageProcessorPil,
        {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}, {"do_image_splitting": False},
    ),
    "idefics3": (
        "idefics3", Idefics3ImageProcessorPil,
        {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}, {"do_image_splitting": False},
    ),
    "internvl": ("internvl", GotOcr2ImageProcessorPil, {"size": SQUARE}, {"crop_to_patches": False}),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (37, 51), (48, 48), (61, 200)])
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_the_familys_processor(tmp_path, case, shape):
    family, processor_class, settings, options = CASES[case]
    processor = processor_class(**settings)
    processor.save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    frame = np.asarray(
        Image.fromarray(random.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
            shape[::-1], Image.Resampling.BICUBIC
        )
    )
    expected = np.asarray(processor(frame, return_tensors="np", **options)["pixel_values"])
    expected = expected.reshape(-1, *expected.shape[-3:])[0]  # the base view comes first
    vision = part_config({"model_type": FAMILIES[family][1], "image_size": 48, "patch_size": 8})
    found = preprocessing(tmp_path, {"model_type": family}, vision, untrained=True)
    mean, std = np.array(found["image_mean"]), np.array(found["image_std"])
    pixels = ((found["geometry"].apply(frame) / 255 - mean) / std).transpose(2, 0, 1)
    assert expected.shape == pixels.shape == (3, 48, 48)
    assert np.abs((pixels - expected) * std[:, None, None]).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("file", "content", "sampling"),
    [
        ("preprocessor_config", {"video_sampling": {"fps": 1, "max_frames": 64}}, {"fps": 1.0}),
        ("video_preprocessor_config", {"fps": 2, "num_frames": 32}, {"fps": 2.0}),
        ("processor_config", {"video_processor": {"num_frames": 8}}, {"num_frames": 8}),
        ("video_preprocessor_config", {"fps": None, "num_frames": None}, None),
    ],
)
def test_sampling_is_the_video_processors(tmp_path, file, content, sampling):
    (tmp_path / f"{file}.json").write_text(json.dumps(content))
    vision = part_config({"model_type": "smolvlm_vision", "image_size": 48, "patch_size": 8})
    assert preprocessing(tmp_path, {"model_type": "smolvlm"}, vision, untrained=True)["sampling"] == sampling
