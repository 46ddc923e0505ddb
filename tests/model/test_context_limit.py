"""The decoder's positions, and its sliding window, bound what is compressed and read."""

import pytest
import torch

from vococache.errors import ContextLimitError, ModelError
from vococache.model.baselines import full_cache


def test_reading_up_to_the_limit_and_not_beyond(kit):
    model = kit.model(text={"max_position_embeddings": 20})
    cache = model.compress(kit.pixels(model.config, segments=5))  # 15 positions
    fits, too_long = kit.ids(5, 6)
    assert model.read(cache, fits[None]).shape == (1, 5, 48)
    with pytest.raises(ContextLimitError, match=r"need 21 positions.* has 20"):
        model.read(cache, too_long[None])
    assert model.generate_ids(cache, fits[:2][None], 3, stop_ids=()).shape == (1, 3)
    with pytest.raises(ContextLimitError, match=r"need 21 positions.* has 20"):
        model.generate_ids(cache, fits[:2][None], 4)


def test_several_questions_are_bound_each_not_in_sum(kit):
    model = kit.model(text={"max_position_embeddings": 20})
    cache = model.compress(kit.pixels(model.config, segments=5))
    assert len(model.generate_ids(cache, kit.ids(2, 2, 2, 2), 3)) == 4


def test_a_segment_longer_than_the_decoder(kit):
    with pytest.raises(ModelError, match=r"takes 33 positions.*has 32"):
        kit.config(text={"max_position_embeddings": 32}, frames_per_segment=3)
    model = kit.model(text={"max_position_embeddings": 32})
    with pytest.raises(ContextLimitError, match=r"segment of 33 positions.* 32"):
        model.compress(torch.zeros(1, 3, 3, 12, 12))


def test_a_sliding_window_shorter_than_stage_1_is_refused(kit):
    with pytest.raises(ModelError, match="sliding window"):
        kit.config("mistral", text={"sliding_window": 14})
    assert kit.config("mistral", text={"sliding_window": 15}).max_positions == 15


def test_a_sliding_window_shorter_than_the_context_lowers_the_limit(kit):
    assert kit.config("mistral", text={"sliding_window": 100}).max_positions == 100
    assert kit.config("mistral", text={"sliding_window": 1000}).max_positions == 256
    for family in ("qwen2", "qwen3"):
        off = kit.config(family, text={"use_sliding_window": False, "sliding_window": 100})
        on = kit.config(family, text={"use_sliding_window": True, "sliding_window": 100})
        assert (off.max_positions, on.max_positions) == (256, 100)


def test_up_to_the_window_the_stock_decoder_sees_everything(kit):
    """So the lowered limit is exact: at the window's length its own sliding mask hides nothing."""
    window = 24
    model = kit.model("mistral", text={"sliding_window": window})
    pixels = kit.pixels(model.config)
    cache = full_cache(model, pixels)
    text = kit.ids(window - cache.positions)[0]
    sequence = torch.cat((model.stage1_embeddings(pixels, 0)[0], model.language_model.embed_tokens(text)))
    expected = kit.stock(model)(inputs_embeds=sequence[None]).logits[0, -len(text) :]
    torch.testing.assert_close(model.read(cache, text[None])[0], expected, atol=1e-4, rtol=0)
    with pytest.raises(ContextLimitError, match=f"need {window + 1} positions.* has {window}"):
        model.read(cache, torch.cat((text, text[:1]))[None])
