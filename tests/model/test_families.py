"""Each family untrained, against its own model as Transformers runs it."""

import pytest
import torch
from tests.model.families import FAMILIES, PREFIX, TOLERANCE, load, stock_ids, stock_logits, stock_pixels
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vococache
from vococache.model import costs
from vococache.model.fingerprint import compressor_fingerprint
from vococache.workers.caches import to_stored


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_tokens_give_the_familys_own_logits(make, inputs, name, frames):
    made = make(name)
    model = load(made, compression="full", frames_per_segment=frames)
    pixels, text = inputs(model)
    expected = stock_logits(made, pixels, text)
    assert 0.3 < expected.std() < 6
    cache = model.compress(pixels)
    assert cache.tokens == frames * made.tokens + made.newline == model.config.num_voco_tokens
    torch.testing.assert_close(model.read(cache, text[None])[0], expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava_next"])
def test_greedy_tokens_are_those_of_the_familys_generate(make, inputs, name):
    made = make(name)
    model = load(made, compression="full", frames_per_segment=2)
    pixels, text = inputs(model)
    ids = stock_ids(made, 2, text)
    expected = made.stock.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=99,
        **stock_pixels(made, pixels),
    )[0, ids.shape[1] :]  # fmt: skip
    found = model.generate_ids(model.compress(pixels), text[None], 8, stop_ids=())
    assert found[0].tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cover", "pool"])
@pytest.mark.parametrize("name", FAMILIES)
def test_fewer_tokens_are_the_stock_decoder_over_prefix_chosen_tokens_and_text(kit, make, inputs, name, kind):
    made = make(name)
    model = load(made, compression=kind, frames_per_segment=2, num_voco_tokens=2)
    pixels, text = inputs(model)
    table = model.language_model.embed_tokens
    sequence = torch.cat((table(torch.tensor(PREFIX)), model.kept_tokens(model.vision_tokens(pixels))[0], table(text)))
    expected = kit.stock(model)(inputs_embeds=sequence[None]).logits[0, -len(text) :]
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cover", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_several_segments_equal_one_masked_forward(kit, make, inputs, name, kind):
    """A segment sees the prefix and itself, the text sees all; each segment as if right behind the prefix."""
    made = make(name)
    model = load(made, compression=kind, frames_per_segment=2)
    pixels, text = inputs(model, segments=3)
    expected = one_forward(kit, model, pixels, text)
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, **TOLERANCE)


def one_forward(kit, model, pixels, text, stock=None):
    """Logits of `text` from one forward of the stock decoder over prefix, all segments and text.

    Attention is relative, so a segment that sees the prefix at another distance than the text does needs the prefix
    once more, for itself: the text sees the first one alone.
    """
    kept, table = model.kept_tokens(model.vision_tokens(pixels)), model.language_model.embed_tokens
    prefix, (segments, k, _) = torch.tensor(PREFIX), kept.shape
    p, parts, owners, shown, positions = len(prefix), [table(prefix)], [-1] * len(prefix), [True] * len(prefix), []
    positions += range(p)
    for segment in range(segments):
        parts += [table(prefix), kept[segment]]
        owners += [segment] * (p + k)
        shown += [False] * p + [True] * k
        # Its entries stand at p + segment * k when read; what it sees of the prefix, right in front of that.
        positions += range(segment * k, segment * k + p + k)
    parts.append(table(text))
    owners += [-2] * len(text)
    shown += [True] * len(text)
    positions += range(p + segments * k, p + segments * k + len(text))
    owner, seen = torch.tensor(owners), torch.tensor(shown)
    mask = (owner[:, None] == owner[None]) | ((owner == -2)[:, None] & seen[None])
    mask = mask.tril()
    sequence = torch.cat(parts)
    out = (stock or kit.stock(model))(
        inputs_embeds=sequence[None], position_ids=torch.tensor([positions]), use_cache=False,
        attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None],
    )  # fmt: skip
    return out.logits[0, -len(text) :]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_questions_and_windows(make, inputs, name):
    made = make(name)
    model = load(made, compression="cover", frames_per_segment=2, num_voco_tokens=3)
    pixels, text = inputs(model, segments=4)
    cache = model.compress(pixels)
    window = model.compress(pixels[1:3])
    torch.testing.assert_close(cache.slice(1, 3).data, window.data, atol=1e-5, rtol=0)
    both = model.read(cache, torch.stack((text, text.flip(0))))
    for row, question in enumerate((text, text.flip(0))):
        torch.testing.assert_close(both[row], model.read(cache, question[None])[0], atol=1e-5, rtol=0)
    generated = model.generate_ids(cache, [text, text[:4]], 5, stop_ids=())
    assert generated[1].tolist() == model.generate_ids(cache, [text[:4]], 5, stop_ids=())[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_through_float16_and_bfloat16(make, inputs, name):
    made = make(name)
    model = load(made, compression="cover", frames_per_segment=2, num_voco_tokens=3)
    pixels, text = inputs(model)
    cache = model.compress(pixels)
    exact = model.read(cache, text[None])[0]
    stored = type(cache)(torch.from_numpy(to_stored(cache.data, "float16")))
    assert (model.read(stored, text[None])[0] - exact).abs().max() < 0.02
    half = load(made, compression="cover", frames_per_segment=2, num_voco_tokens=3, dtype="bfloat16")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    error = (half.read(half.compress(pixels), text[None])[0].float() - exact).square().mean().sqrt()
    assert error < 0.25 * exact.std()


def test_the_fingerprint_covers_kind_sizes_and_prefix(make):
    made = make("smolvlm")
    options = [
        {"compression": "cover"}, {"compression": "pool", "num_voco_tokens": 2}, {"compression": "full"},
        {"compression": "cover", "num_voco_tokens": 2}, {"compression": "cover", "frames_per_segment": 3},
    ]  # fmt: skip
    prints = [compressor_fingerprint(load(made, **({"frames_per_segment": 2} | option))) for option in options]
    other = vococache.load_model(made.folder, prefix_ids=[1, 7], frames_per_segment=2, device="cpu")
    assert len({*prints, compressor_fingerprint(other)}) == len(prints) + 1


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_computed_that_nobody_keeps(make, inputs, name):
    """The tower ends at the feature layer; what lies behind is not even there."""
    made = make(name)
    model = load(made, compression="full", frames_per_segment=1)
    depth = 2 if made.family in ("llava", "llava_next", "llava_next_video") else 3
    layers = getattr(model.vision_tower.encoder, "layers", None) or model.vision_tower.encoder.layer
    assert len(layers) == depth == model.config.vision.num_hidden_layers


@pytest.mark.parametrize("name", FAMILIES)
def test_training_flows_through_both_stages(kit, make, inputs, name):
    """Loss and gradients with VoCo tokens equal those of one masked forward, for each family's vision path."""
    made = make(name)
    model = vococache.load_model(made.folder, compression="voco", newline_ids=[5], num_voco_tokens=2, device="cpu")
    model.requires_grad_(True)
    pixels, text = inputs(model, segments=2)
    mask = torch.ones(1, len(text), dtype=torch.bool)
    loss = model(pixels, text[None], mask, text[None])["loss"]
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert any(name.startswith("projector.") for name in ours)
    model.zero_grad(set_to_none=True)
    stock = kit.stock(model)
    logits = kit.one_sequence(model, stock, pixels, text)
    expected = torch.nn.functional.cross_entropy(logits[:-1], text[1:])
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for weight_name, weight in model.named_parameters():
        if weight_name.startswith(("projector.", "vision_tower.")) and weight.grad is not None:
            torch.testing.assert_close(ours[weight_name], weight.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["cover", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_without_voco_tokens_are_those_of_one_masked_forward(kit, make, inputs, name, kind):
    model = load(make(name), compression=kind, frames_per_segment=2).requires_grad_(True)
    pixels, text = inputs(model, segments=2)
    mask = torch.ones(1, len(text), dtype=torch.bool)
    loss = model(pixels, text[None], mask, text[None])["loss"]
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    stock = kit.stock(model)
    expected = torch.nn.functional.cross_entropy(one_forward(kit, model, pixels, text, stock)[:-1], text[1:])
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    decoder = dict(stock.named_parameters())
    for weight_name, weight in model.named_parameters():
        found = weight.grad
        if weight_name.startswith(("language_model.layers", "lm_head")):
            found = decoder[weight_name.replace("language_model.", "model.")].grad
        if found is not None and "embed_tokens" not in weight_name and weight_name != "language_model.norm.weight":
            torch.testing.assert_close(ours[weight_name], found, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_rows_of_different_numbers_of_segments_stand_behind_the_prefix(make, inputs):
    model = load(make("smolvlm"), compression="cover", frames_per_segment=2, num_voco_tokens=3)
    pixels, text = inputs(model, segments=3)
    ids, mask = torch.stack((text, text.flip(0), text)), torch.ones(3, len(text), dtype=torch.bool)
    logits = model(pixels, ids, mask, segments=[2, 0, 1])["logits"]
    cache = model.compress(pixels)
    alone = (cache.slice(0, 2), model.empty_cache(), cache.slice(2, 3))
    for row, part in enumerate(alone):
        torch.testing.assert_close(logits[row], model.read(part, ids[row : row + 1])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["cover", "full"])
def test_each_weight_counts_in_the_fingerprint_if_it_changes_a_cache(make, inputs, kind):
    """Every weight of the family with a newline of its own, one at a time, with the cache itself as the judge."""
    model = load(make("llava_onevision"), compression=kind, frames_per_segment=2)
    model.weights_digest = None
    pixels, _ = inputs(model)
    with torch.no_grad():
        fingerprint, cache = compressor_fingerprint(model), model.compress(pixels).data
        for name, weight in model.named_parameters():
            if name == "language_model.embed_tokens.weight":
                continue
            kept = weight.detach().clone()
            weight.data = weight + 0.5 * torch.arange(weight.numel()).reshape(weight.shape) / weight.numel()
            changed = not model.compress(pixels).data.equal(cache)
            assert (compressor_fingerprint(model) != fingerprint) == changed, name
            weight.data = kept


@pytest.mark.parametrize("kind", ["cover", "pool", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_what_torch_counts(make, inputs, name, kind):
    made = make(name)
    model = load(made, compression=kind, frames_per_segment=2, **({} if kind == "full" else {"num_voco_tokens": 2}))
    pixels, text = inputs(model)

    def counted(work):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops()

    assert costs.compress_flops(model.config).total == counted(lambda: model.compress(pixels))
    assert costs.vision_flops(model.config, 2).total == counted(lambda: model.vision_tokens(pixels))
    cache = model.compress(pixels)
    entries = len(PREFIX) + cache.positions
    expected = costs.read_flops(model.config, entries=entries, tokens=len(text), logits=len(text))
    prefix = costs.prefix_flops(model.config)
    assert expected.total + prefix.total == counted(lambda: model.read(cache, text[None]))
    assert cache.data.nbytes == costs.cache_bytes_per_segment(model.config, "float32")
