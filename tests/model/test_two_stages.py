"""compress + read equals one masked forward of the stock decoder: all families, RoPE types, towers, dtypes."""

import pytest
import torch
from transformers import CLIPVisionModel, SiglipVisionModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("rope", ROPE_TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_stages_equal_one_masked_forward(kit, family, rope, tower, frames):
    model = kit.model(family, rope=rope, tower=tower, frames_per_segment=frames)
    pixels, [text] = kit.pixels(model.config), kit.ids(9)
    expected = kit.one_sequence(model, kit.stock(model), pixels, text)
    logits = model.read(model.compress(pixels), text[None])[0]
    assert 0.5 < expected.std() < 5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope", ROPE_TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_the_stock_decoder(kit, family, rope):
    """Both round in bfloat16 at different places, so each is held to the float32 result of the same weights."""
    exact = kit.model(family, rope=rope)
    pixels, [text] = kit.pixels(exact.config), kit.ids(9)
    model = kit.model(family, rope=rope).bfloat16()
    exact.load_state_dict(model.state_dict())
    truth = kit.one_sequence(exact, kit.stock(exact), pixels, text)
    stock = kit.one_sequence(model, kit.stock(model), pixels, text).float()
    ours = model.read(model.compress(pixels), text[None])[0].float()
    error, stock_error = (ours - truth).square().mean().sqrt(), (stock - truth).square().mean().sqrt()
    assert error <= 1.5 * stock_error + 1e-3


def newline_seen(mask, vision, voco):
    mask[vision:, voco.int().argmax() - 1] = True


def vision_seen(mask, vision, voco):
    mask[vision:, 3] = True


def bos_seen(mask, vision, voco):
    mask[vision:, 0] = True


def voco_lost(mask, vision, voco):
    mask[vision:, voco.int().argmax()] = False


@pytest.mark.parametrize("leak", [newline_seen, vision_seen, bos_seen, voco_lost])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_notices_a_single_wrong_entry(kit, family, leak):
    """One entry too many or too few moves logits a thousand times further than the tolerance above."""
    model = kit.model(family)
    pixels, [text] = kit.pixels(model.config), kit.ids(9)
    spoiled = kit.one_sequence(model, kit.stock(model), pixels, text, leak)
    logits = model.read(model.compress(pixels), text[None])[0]
    assert (logits - spoiled).abs().max() > 0.1


@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_decoders(kit, layers):
    """The last two layers take short cuts; a decoder may consist of them alone."""
    model = kit.model(text={"num_hidden_layers": layers})
    pixels, [text] = kit.pixels(model.config), kit.ids(5)
    expected = kit.one_sequence(model, kit.stock(model), pixels, text)
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, atol=1e-4, rtol=0)


def test_without_bos_and_newline(kit, config_with):
    config = kit.config("qwen2")
    config = config_with(config, prompt=config_with(config.prompt, bos_id=None, newline_ids=()))
    model = kit.build(config)
    pixels, [text] = kit.pixels(config), kit.ids(5)
    expected = kit.one_sequence(model, kit.stock(model), pixels, text)
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_vision_tokens_are_the_projected_features_of_the_stock_tower(kit, tower):
    model = kit.model(tower=tower, frames_per_segment=2)
    # The feature is the output of its second layer.
    config = kit.vision_config(tower, num_hidden_layers=4).transformers()
    stock = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}[tower](config).eval()
    kit.fill(stock, 5)
    missing = stock.load_state_dict(model.vision_tower.state_dict(), strict=False).missing_keys
    assert all(name.startswith(("encoder.layers.2", "encoder.layers.3", "post", "head")) for name in missing)
    pixels = kit.pixels(model.config, segments=2)
    features = stock(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[2]
    features = features[:, 1:] if tower == "clip" else features
    expected = model.projector(features).reshape(2, 18, -1)
    torch.testing.assert_close(model.vision_tokens(pixels), expected, atol=1e-5, rtol=1e-5)


def test_pixel_values_are_shifted_and_scaled(kit):
    model = kit.model()
    frames = torch.arange(2 * 12 * 12 * 3).remainder(256).to(torch.uint8).reshape(2, 1, 12, 12, 3)
    mean, std = (
        torch.tensor(value, dtype=torch.float64) for value in (model.config.image_mean, model.config.image_std)
    )
    expected = ((frames.double() / 255 - mean) / std).movedim(-1, -3).float()
    # The subtraction loses digits where a value is close to the mean: the error is one of the terms, not of the result.
    torch.testing.assert_close(model.pixel_values(frames), expected, atol=1e-6, rtol=0)
