"""Each family untrained, against its own model as Transformers builds, saves and runs it."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import vococache
from vococache.errors import ModelError
from vococache.model import costs
from vococache.model.checkpoints import save_pretrained
from vococache.model.fingerprint import compressor_fingerprint, current_weights_digest
from vococache.workers.caches import to_stored

MEDIUM, PREFIX = 46, [1, 7, 8]
TOLERANCE = {"atol": 1e-4, "rtol": 0}
# The model classes; text decoders; side and patch of the tower (n tokens a frame); how pixels go in.
FAMILIES = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration, "llama", 12, 4, 9),
    "llava_siglip": (LlavaConfig, LlavaForConditionalGeneration, "qwen2", 12, 4, 9),
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration, "mistral", 12, 4, 9),
    "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, "llama", 20, 4, 4),
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, "qwen2", 20, 4, 9),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, "llama", 24, 4, 9),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, "llama", 24, 4, 9),
    "internvl": (InternVLConfig, InternVLForConditionalGeneration, "qwen2", 24, 4, 9),
    "internvl_qwen3": (InternVLConfig, InternVLForConditionalGeneration, "qwen3", 24, 4, 9),
}


@pytest.fixture
def make(kit, tmp_path):
    """A family's stock model, tiny and random, the folder it was saved to, and how it is run."""

    def build(name, **changes):
        config_class, model_class, decoder, side, patch, tokens = FAMILIES[name]
        family = name.removesuffix("_qwen3").removesuffix("_siglip")
        vision = {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": side, "patch_size": patch,
        }  # fmt: skip
        settings = {"text_config": kit.text_config(decoder).to_dict(), "tie_word_embeddings": False}
        if family in ("idefics3", "smolvlm"):
            settings |= {"vision_config": vision, "image_token_id": MEDIUM, "scale_factor": 2}
        elif family == "internvl":
            vision |= {"use_qk_norm": decoder == "qwen3", "use_mean_pooling": decoder != "qwen3"}
            settings |= {"vision_config": vision, "image_token_id": MEDIUM, "downsample_ratio": 0.5}
        else:
            tower = "siglip" if family == "llava_onevision" or name == "llava_siglip" else "clip"
            settings["vision_config"] = kit.vision_config(tower, **vision).to_dict()
            settings["image_token_index"] = MEDIUM
        if name == "llava_siglip":
            settings["vision_feature_select_strategy"] = "full"
        if family in ("llava_next_video", "llava_onevision"):
            settings |= {"image_token_index": MEDIUM - 1, "video_token_index": MEDIUM}
        torch.manual_seed(0)
        stock = model_class(config_class(**(settings | changes))).eval()
        kit.fill(stock, 3)
        with torch.no_grad():  # what `fill` takes for norms, or names without a sign
            for weight_name, weight in stock.named_parameters():
                if weight_name.endswith(("lambda_1", "lambda_2")):
                    weight.fill_(0.7)
        stock.save_pretrained(tmp_path / name)
        newline = family == "llava_onevision"
        return SimpleNamespace(stock=stock, folder=tmp_path / name, tokens=tokens, newline=newline, family=family)

    return build


def load(made, **options):
    return vococache.load_model(made.folder, prefix_ids=PREFIX, device="cpu", **options)


def stock_ids(made, frames, text):
    media = [MEDIUM] * (frames * made.tokens + made.newline)
    return torch.tensor([[*PREFIX, *media, *text.tolist()]])


def stock_pixels(made, pixels):
    """Pixels [1, F, 3, H, W] as the family's forward takes them."""
    if made.family in ("llava_next_video", "llava_onevision"):
        return {"pixel_values_videos": pixels}
    return {"pixel_values": pixels if made.family in ("idefics3", "smolvlm") else pixels[0]}


def stock_logits(made, pixels, text):
    """The family's own forward; LLaVA-NeXT's knows no frame, so its own parts are put together."""
    frames, ids = pixels.shape[1], stock_ids(made, pixels.shape[1], text)
    if made.family != "llava_next":
        logits = made.stock(input_ids=ids, **stock_pixels(made, pixels)).logits
    else:
        inner = made.stock.model
        features = inner.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-2][:, 1:]
        embedded = made.stock.get_input_embeddings()(ids)
        start = len(PREFIX)
        embedded[0, start : start + frames * made.tokens] = inner.multi_modal_projector(features).flatten(0, 1)
        logits = made.stock(inputs_embeds=embedded).logits
    return logits[0, -len(text) :]


@pytest.fixture
def inputs(kit):
    def draw(model, segments=1, length=7):
        return kit.pixels(model.config, segments), kit.ids(length)[0].clamp(max=MEDIUM - 2)

    return draw


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


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_as_ours_it_is_the_same(make, inputs, name, tmp_path):
    made = make(name)
    model = load(made, compression="cover", frames_per_segment=2, num_voco_tokens=3)
    save_pretrained(model, tmp_path / "ours")
    again = vococache.load_model(tmp_path / "ours", device="cpu")
    assert again.config.to_dict() | {"x": 0} == model.config.to_dict() | again.config.extra | {"x": 0}
    assert compressor_fingerprint(again) == compressor_fingerprint(model)
    assert again.weights_digest == current_weights_digest(again)
    pixels, _ = inputs(model)
    assert again.compress(pixels).data.equal(model.compress(pixels).data)


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


def as_first_saved(name, family):
    """A weight's name in Transformers 4.36, or in the release that first had the family."""
    if family in ("smolvlm", "idefics3"):
        return name
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.", "language_model.model.", re.sub(r"^lm_head\.", "language_model.lm_head.", name))
    name = name.replace("language_model.model.lm_head.", "language_model.lm_head.")
    if family != "internvl" and "vision_model." not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name


@pytest.mark.parametrize("named", ["first", "now"])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_found_under_old_and_new_names(make, name, named):
    made = make(name)
    expected = load(made).state_dict()
    weights = {
        as_first_saved(name, made.family) if named == "first" else name: weight.contiguous()
        for name, weight in made.stock.state_dict().items()
    }
    save_file(weights, made.folder / "model.safetensors")
    found = load(made).state_dict()
    assert all(weight.equal(found[name]) for name, weight in expected.items())


@pytest.mark.parametrize("outer", [True, False, None])
@pytest.mark.parametrize("inner", [True, False, None])
def test_a_stored_output_projection_counts_whatever_a_config_says_of_tying(make, inputs, outer, inner):
    """As in Transformers 5; without one it is the embedding."""
    made = make("llava_onevision")
    data = json.loads((made.folder / "config.json").read_text())
    for part, tied in ((data, outer), (data["text_config"], inner)):
        part.pop("tie_word_embeddings", None)
        part |= {} if tied is None else {"tie_word_embeddings": tied}
    (made.folder / "config.json").write_text(json.dumps(data))
    made.stock = LlavaOnevisionForConditionalGeneration.from_pretrained(made.folder).eval()
    model = load(made, compression="full", frames_per_segment=2)
    pixels, text = inputs(model)
    with torch.no_grad():
        expected = stock_logits(made, pixels, text)
        torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, **TOLERANCE)
    file = made.folder / "model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "lm_head" not in name}, file)
    tied = load(made)
    assert tied.lm_head.weight is tied.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"text_config": None}), ("config.json", {"vision_config": []}),
        ("config.json", {"model_type": ["llava"]}), ("config.json", {"vision_config": {"patch_size": 0}}),
        ("config.json", {"text_config": {"num_attention_heads": "many"}}),
        ("preprocessor_config.json", {"size": 5}), ("preprocessor_config.json", {"image_mean": 0.5}),
        ("preprocessor_config.json", {"fps": "often"}), ("generation_config.json", []), ("generation_config.json", "{"),
        ("model.safetensors.index.json", []), ("model.safetensors.index.json", {"weight_map": {"a": 1}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}}),
    ],
)  # fmt: skip
def test_a_malformed_file_of_a_folder_is_told_in_one_line(make, file, content):
    made = make("llava")
    path = made.folder / file
    if file == "config.json":
        content = json.loads(path.read_text()) | content
    if file == "model.safetensors.index.json":
        (made.folder / "model.safetensors").rename(made.folder / "other.safetensors")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelError) as caught:
        load(made)
    assert "\n" not in str(caught.value)


def test_processors_without_settings_leave_the_defaults(make):
    made = make("llava")
    (made.folder / "processor_config.json").write_text('{"image_processor": null, "video_processor": null}')
    assert load(made).config.geometry.size == 12


def test_families_that_cannot_be_cached_are_refused_by_name(tmp_path):
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(ModelError, match=f"'{family}' model, which is not supported: "):
            vococache.load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_voco_tokens": 0}, "expected 1 to 18"),
        ({"num_voco_tokens": 19}, "2 frames have 18 vision tokens: expected 1 to 18 to keep, found 19"),
        ({"compression": "pool", "num_voco_tokens": 5}, "of at most 3 x 3: 5 tokens are none"),
        ({"compression": "pool", "num_voco_tokens": 14}, "14 tokens are none"),
        ({"compression": "full", "num_voco_tokens": 6}, "all tokens of 2 frames are 18, asked for 6"),
        ({"compression": "mean"}, "without VoCo tokens"),
        ({"compression": "voco"}, "takes no prefix|without VoCo tokens"),
        ({"frames_per_segment": 0}, "at least 1 frame"),
    ],
)
def test_what_a_checkpoint_cannot_is_refused(make, options, message):
    with pytest.raises(ModelError, match=message):
        load(make("smolvlm"), **({"frames_per_segment": 2} | options))


@torch.no_grad()
def test_dynamic_rope_is_the_default_within_the_models_positions(make, inputs):
    """As published InternVL checkpoints have it, in the older form of a config."""
    made = make("internvl")
    data = json.loads((made.folder / "config.json").read_text())
    rope = data["text_config"].pop("rope_parameters")
    data["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    (made.folder / "config.json").write_text(json.dumps(data))
    dynamic = InternVLForConditionalGeneration.from_pretrained(made.folder).eval()
    assert dynamic.config.text_config.rope_parameters["rope_type"] == "dynamic"
    made.stock = dynamic
    model = load(made, compression="full", frames_per_segment=2)
    pixels, text = inputs(model)
    expected = stock_logits(made, pixels, text)
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, **TOLERANCE)


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


def test_k_and_f_unless_told(make):
    model = load(make("smolvlm"))
    assert (model.config.compression, model.config.frames_per_segment) == ("cover", 8)
    assert model.config.num_voco_tokens == 7  # a tenth of 8 x 9
    assert load(make("smolvlm"), compression="pool").config.num_voco_tokens == 8
    assert load(make("smolvlm"), frames_per_segment=4).config.num_voco_tokens == 3


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


PEAK = """
import resource, sys
from vococache.model.checkpoints import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_model(sys.argv[1], dtype="bfloat16", device="cpu", prefix_ids=[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(1024 * peak, sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_loading_takes_a_models_own_size_and_a_shard(kit, tmp_path):
    shard = 50 << 20
    text = kit.text_config("llama", vocab_size=16000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12,
                           num_attention_heads=16, num_key_value_heads=16, head_dim=64)  # fmt: skip
    config = LlavaConfig(text_config=text.to_dict(), vision_config=kit.vision_config("clip").to_dict())
    stock = LlavaForConditionalGeneration(config).bfloat16()
    stock.save_pretrained(tmp_path, max_shard_size=shard)
    del stock
    found = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, own = map(int, found.stdout.split())
    assert own > 5 * shard
    assert peak < own + shard
