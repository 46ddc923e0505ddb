"""Several segments in time order: each compressed alone, all read as one sequence."""

import pytest
import torch

from vococache.errors import InputError
from vococache.model.baselines import full_cache
from vococache.model.cache import VoCoCache

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_video_equals_one_masked_forward(kit, family, rope):
    model = kit.model(family, rope=rope, frames_per_segment=2)
    pixels, [text] = kit.pixels(model.config, segments=5), kit.ids(7)
    expected = kit.one_sequence(model, kit.stock(model), pixels, text)
    close(model.read(model.compress(pixels), text[None])[0], expected)


def previous_segment_seen(mask, vision, voco):
    """A VoCo token of the third segment sees the last one of the second."""
    second, third = voco.nonzero().flatten().tolist()[5:7]
    mask[third, second] = True


def other_frame_seen(mask, vision, voco):
    mask[voco.nonzero().flatten()[-1], 3] = True


@pytest.mark.parametrize("leak", [previous_segment_seen, other_frame_seen])
def test_the_reference_notices_segments_that_see_each_other(kit, leak):
    model = kit.model(seed=2)
    pixels, [text] = kit.pixels(model.config, segments=4), kit.ids(7)
    spoiled = kit.one_sequence(model, kit.stock(model), pixels, text, leak)
    assert (model.read(model.compress(pixels), text[None])[0] - spoiled).abs().max() > 0.02


def test_segments_are_compressed_independently(kit):
    """In any order and any batch: the same cache, up to the rounding of another batch size."""
    model = kit.model()
    pixels = kit.pixels(model.config, segments=6)
    whole = model.compress(pixels)
    alone = [model.compress(pixels[t : t + 1]) for t in (3, 5, 0, 1, 4, 2)]
    ordered = [alone[(3, 5, 0, 1, 4, 2).index(t)] for t in range(6)]
    torch.testing.assert_close(VoCoCache.join(ordered).data, whole.data, atol=1e-5, rtol=0)


def test_order_of_segments_matters(kit):
    model = kit.model()
    cache, [text] = model.compress(kit.pixels(model.config, segments=3)), kit.ids(5)
    backwards = VoCoCache(cache.data.flip(0))
    assert (model.read(cache, text[None]) - model.read(backwards, text[None])).abs().max() > 0.1


@pytest.mark.parametrize("k", [1, 2, 4])
def test_first_tokens_are_the_smaller_cache_of_the_same_weights(kit, config_with, k):
    model = kit.model(num_voco_tokens=5)
    pixels, [text] = kit.pixels(model.config, segments=3), kit.ids(5)
    small = kit.build(config_with(model.config, num_voco_tokens=k))
    cut, made = model.compress(pixels).first_tokens(k), small.compress(pixels)
    assert cut.positions == made.positions == 3 * k
    torch.testing.assert_close(cut.data, made.data, atol=1e-5, rtol=0)
    close(model.read(cut, text[None]), small.read(made, text[None]))
    assert small.generate_ids(made, text[None], 6).equal(model.generate_ids(cut, text[None], 6))


def test_slice_and_join(kit):
    cache = kit.model().compress(kit.pixels(kit.config(), segments=4))
    assert cache.slice(1, 3).segments == 2
    assert VoCoCache.join([cache.slice(0, 1), cache.slice(1, 4)]).data.equal(cache.data)


def test_shifting_cache_and_text_together_changes_nothing(kit):
    """docs/design/0004-two-stages.md, 3: the official place of the VoCo tokens and position 0 give the same logits."""
    model = kit.model()
    cache = model.compress(kit.pixels(model.config, segments=2))
    here, there = model.rotated(cache)[:, :, 0], model.rotated(cache, 40)[:, :, 0]
    assert (here[:, 0] - there[:, 0]).abs().max() > 0.1
    assert here[:, 1].equal(there[:, 1])  # values are not rotated

    def scores(keys, first):
        query = torch.ones(1, 8)
        angles = model.rope.angles(torch.tensor([first + cache.positions]), torch.float32)
        from vococache.model.rope import rotate

        return rotate(query, angles) @ keys[0, 0, 0].T

    torch.testing.assert_close(scores(here, 0), scores(there, 40), atol=1e-4, rtol=0)


def test_full_cache_is_the_single_forward_with_full_attention(kit):
    """The paper's upper bound: VoCo tokens in the sequence, no mask; several frames in one segment."""
    model = kit.model("qwen3", frames_per_segment=3)
    pixels, [text] = kit.pixels(model.config), kit.ids(6)

    def everything(mask, vision, voco):
        mask[:] = torch.ones_like(mask).tril()

    for tokens in (0, 3):
        stage1 = model.stage1_embeddings(pixels, tokens)[0]
        sequence = torch.cat((stage1, model.language_model.embed_tokens(text)))[None]
        expected = kit.stock(model)(inputs_embeds=sequence).logits[0, -len(text) :]
        close(model.read(full_cache(model, pixels, tokens), text[None])[0], expected)
    with pytest.raises(InputError, match="found 2 segments"):
        full_cache(model, kit.pixels(model.config, segments=2))


def test_caches_of_another_geometry_are_refused(kit):
    model, other = kit.model(), kit.model(text={"num_hidden_layers": 2})
    with pytest.raises(InputError, match="another model"):
        model.read(other.compress(kit.pixels(other.config)), torch.tensor([[5]]))
    with pytest.raises(InputError, match="axes"):
        VoCoCache(torch.zeros(3, 2, 4, 8))
    with pytest.raises(InputError, match="1 to 3 tokens"):
        model.compress(kit.pixels(model.config)).first_tokens(4)
    with pytest.raises(InputError, match="pixel values"):
        model.compress(torch.zeros(1, 3, 12, 12))
