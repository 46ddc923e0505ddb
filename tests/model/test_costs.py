"""The closed formulas against what torch counts and what a cache weighs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vococache.errors import InputError
from vococache.model import costs
from vococache.model.baselines import full_cache
from vococache.model.generate import GenerationOptions, generate
from vococache.model.scratch import llava_7b

SHAPES = {
    "clip": {"family": "llama"},
    "siglip, grouped, 3 frames": {"family": "qwen3", "tower": "siglip", "frames_per_segment": 3},
    "biases, K = 8": {"family": "qwen2", "num_voco_tokens": 8, "frames_per_segment": 2},
    "linear projector": {"family": "mistral", "projector": "linear", "num_voco_tokens": 1},
    "one layer": {"family": "llama", "text": {"num_hidden_layers": 1}},
    "wide": {
        "family": "llama",
        "text": {"hidden_size": 64, "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 160},
        "vision": {"image_size": 20, "num_hidden_layers": 3, "hidden_size": 32},
    },
}


def counted(work):
    """FLOPs of the matrix products inside, attention as the eager product."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.fixture(params=SHAPES)
def model(kit, request):
    return kit.model(**SHAPES[request.param])


def test_compress(kit, model):
    pixels = kit.pixels(model.config, segments=2)
    assert 2 * costs.compress_flops(model.config).total == counted(lambda: model.compress(pixels))


def test_vision(kit, model):
    pixels = kit.pixels(model.config)
    expected = costs.vision_flops(model.config, model.config.frames_per_segment)
    assert expected.total == counted(lambda: model.vision_tokens(pixels))
    assert expected.vision > 0 < expected.projector


def test_read(kit, model):
    cache, [text] = model.compress(kit.pixels(model.config, segments=4)), kit.ids(11)
    expected = costs.read_flops(model.config, entries=cache.positions, tokens=11, logits=11)
    assert expected.total == counted(lambda: model.read(cache, text[None]))


def test_generate(kit, model):
    """A prefill of the question, then one step for each further token behind all that came before."""
    cache, [text] = model.compress(kit.pixels(model.config, segments=4)), kit.ids(11)
    placed = model.place(cache)
    expected = costs.read_flops(model.config, entries=cache.positions, tokens=11).total
    for step in range(4):
        expected += costs.read_flops(model.config, entries=cache.positions + 11 + step, tokens=1).total
    assert expected == counted(lambda: generate(model, placed, [text], 5, GenerationOptions(stop_ids=())))


def test_full_attention_against_the_stock_decoder(kit, model):
    pixels, [text] = kit.pixels(model.config), kit.ids(7)
    stock = kit.stock(model)

    def forward():
        stage1 = model.stage1_embeddings(pixels, 0)[0]
        sequence = torch.cat((stage1, model.language_model.embed_tokens(text)))
        stock(inputs_embeds=sequence[None], logits_to_keep=1)

    expected = costs.full_attention_flops(model.config, frames=pixels.shape[1], tokens=7).total
    # The stock decoder also multiplies positions by frequencies, which the formula leaves out.
    assert expected == pytest.approx(counted(forward), rel=0.01)


def test_bytes_are_those_of_a_cache(kit, model):
    cache = model.compress(kit.pixels(model.config, segments=5))
    for dtype in ("float16", "bfloat16", "float32"):
        nbytes = cache.data.to(getattr(torch, dtype)).nbytes
        assert nbytes == 5 * costs.cache_bytes_per_segment(model.config, dtype)
        assert nbytes == cache.positions * costs.cache_bytes_per_token(model.config, dtype)
    with pytest.raises(InputError, match="int8"):
        costs.cache_bytes_per_token(model.config, "int8")


@pytest.fixture
def vicuna():
    return llava_7b(voco_tokens=1)


def test_vicuna_7b(vicuna):
    """524,288 bytes a token in float16; the paper's Table 7 says 0.525 MB, and 9.6 and 0.5 TFLOPs for a short text."""
    assert vicuna.tokens_per_frame == 576
    assert costs.cache_bytes_per_token(vicuna) == 524_288
    baseline = costs.full_attention_flops(vicuna, frames=1, tokens=40).total
    voco = costs.read_flops(vicuna, entries=1, tokens=40).total
    assert 7e12 < baseline < 11e12
    assert 0.93 < 1 - voco / baseline < 0.96  # the paper: 94.8 % less
    skipped = 1 - costs.compress_flops(vicuna).decoder / costs.read_flops(vicuna, entries=0, tokens=580).decoder
    assert 0.03 < skipped < 0.07  # almost two of 32 layers are not computed


def test_full_cache_is_as_long_as_stage_1(kit):
    model = kit.model()
    cache = full_cache(model, kit.pixels(model.config))
    assert cache.data.nbytes == model.config.prefix_length * costs.cache_bytes_per_token(model.config, "float32")
