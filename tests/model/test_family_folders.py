"""The folder of each family, as releases of Transformers have saved it: what is read there, and what is refused."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.families import FAMILIES, TOLERANCE, load, stock_logits
from transformers import (
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

import vococache
from vococache.errors import ModelError
from vococache.model.fingerprint import compressor_fingerprint, current_weights_digest, model_digest
from vococache.model.saving import save_pretrained


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


@pytest.mark.parametrize("name", FAMILIES)
def test_without_its_tower_a_model_reads_the_same_caches(make, inputs, name, tmp_path):
    made = make(name)
    options = {"compression": "cover", "frames_per_segment": 2, "num_voco_tokens": 3}
    model, reading = load(made, **options), load(made, tower=False, **options)
    assert compressor_fingerprint(reading) == compressor_fingerprint(model)
    assert model_digest(reading) == model_digest(model)
    assert not [weight for weight in reading.state_dict() if weight.startswith(("vision_tower.", "projector."))]
    pixels, text = inputs(model)
    cache = model.compress(pixels)
    assert reading.read(cache, text[None]).equal(model.read(cache, text[None]))
    reading.language_model.embed_tokens.weight += 1  # from here on the file's digest is not its own
    for refused in (
        lambda: reading.compress(pixels),
        lambda: save_pretrained(reading, tmp_path / "half"),
        lambda: compressor_fingerprint(reading),
    ):
        with pytest.raises(ModelError, match="without its vision tower"):
            refused()


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


def test_k_and_f_unless_told(make):
    model = load(make("smolvlm"))
    assert (model.config.compression, model.config.frames_per_segment) == ("cover", 8)
    assert model.config.num_voco_tokens == 7  # a tenth of 8 x 9
    assert load(make("smolvlm"), compression="pool").config.num_voco_tokens == 8
    assert load(make("smolvlm"), frames_per_segment=4).config.num_voco_tokens == 3


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
