"""The fingerprint changes with everything that changes a cache's numbers, and with nothing else."""

from pathlib import Path

import pytest
import torch

import vococache
from vococache.model.fingerprint import compressor_fingerprint, current_weights_digest
from vococache.model.saving import save_pretrained

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TABLE = "language_model.embed_tokens.weight"


@pytest.fixture
def model(kit):
    return kit.model("qwen3", text={"attention_bias": True})


def nudged(model, name, row=0):
    """The model with one value of a weight changed."""
    with torch.no_grad():
        model.get_parameter(name).view(len(model.get_parameter(name)), -1)[row, 0] += 0.5
    return model


def outcome(kit, model):
    pixels = kit.pixels(model.config, segments=2)
    return model.compress(pixels).data


def weights(model):
    return [name for name, _ in model.named_parameters() if name != TABLE]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_weight_counts_exactly_if_it_changes_a_cache(kit, family, tower):
    """Every weight, one at a time, with the cache itself as the judge."""
    model = kit.model(family, tower=tower)
    fingerprint, cache = compressor_fingerprint(model), outcome(kit, model)
    unused = set()
    for name in weights(model):
        weight = model.get_parameter(name)
        kept = weight.detach().clone()
        weight.data = weight + 0.5 * torch.arange(weight.numel()).reshape(weight.shape) / weight.numel()
        changed = not outcome(kit, model).equal(cache)
        assert (compressor_fingerprint(model) != fingerprint) == changed, name
        if not changed:
            unused.add(name)
        weight.data = kept
    last = "language_model.layers.2."
    assert unused >= {"lm_head.weight", "language_model.norm.weight", f"{last}mlp.up_proj.weight"}
    assert {name for name in unused if name.startswith("language_model.layers")} == {
        name
        for name in weights(model)
        if name.startswith(last)
        and not name.startswith((f"{last}input_layernorm", f"{last}self_attn.k_", f"{last}self_attn.v_"))
    }
    assert compressor_fingerprint(model) == fingerprint


@pytest.mark.parametrize(("row", "counts"), [(47, True), (1, True), (5, True), (6, True), (7, False), (0, False)])
def test_only_the_embedding_rows_of_stage_1_count(model, row, counts):
    before = compressor_fingerprint(model)
    assert (compressor_fingerprint(nudged(model, TABLE, row)) != before) == counts


def test_tied_embeddings(kit):
    model = kit.model(text={"tie_word_embeddings": True})
    before = compressor_fingerprint(model)
    assert compressor_fingerprint(nudged(model, TABLE, 9)) == before
    assert compressor_fingerprint(nudged(model, TABLE, 47)) != before


@pytest.mark.parametrize(
    "change",
    [
        {"num_voco_tokens": 4},
        {"frames_per_segment": 2},
        {"image_mean": (0.5, 0.5, 0.5)},
        {"image_std": (0.5, 0.5, 0.5)},
        {"voco_token_id": 46},
    ],
)
def test_settings_that_count(model, config_with, change):
    changed = config_with(model.config, **change)
    assert compressor_fingerprint(model, config=changed) != compressor_fingerprint(model)


@pytest.mark.parametrize("change", [{"newline_ids": (6,)}, {"newline_ids": (6, 5)}, {"bos_id": None}, {"bos_id": 3}])
def test_prompt_pieces_of_stage_1_count(model, config_with, change):
    changed = config_with(model.config, prompt=config_with(model.config.prompt, **change))
    assert compressor_fingerprint(model, config=changed) != compressor_fingerprint(model)


@pytest.mark.parametrize("change", [{"pad": False}, {"background": (0, 0, 0)}, {"resample": 2}])
def test_geometry_counts(model, config_with, change):
    changed = config_with(model.config, geometry=config_with(model.config.geometry, **change))
    assert compressor_fingerprint(model, config=changed) != compressor_fingerprint(model)


@pytest.mark.parametrize(
    "text",
    [
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 2.0}},
        {"num_attention_heads": 8},
    ],
)
def test_settings_of_the_decoder_count(kit, text):
    """The weights stay as they are."""
    model = kit.model("qwen3")
    assert compressor_fingerprint(model) != compressor_fingerprint(model, config=kit.config("qwen3", text=text))


@pytest.mark.parametrize("vision", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}, {"num_attention_heads": 4}])
def test_settings_of_the_tower_count(kit, vision):
    model = kit.model()
    assert compressor_fingerprint(model) != compressor_fingerprint(model, config=kit.config(vision=vision))


def test_dtype_counts_and_may_be_asked_for(model):
    in_float32 = compressor_fingerprint(model)
    assert compressor_fingerprint(model, dtype="bfloat16") != in_float32
    assert compressor_fingerprint(model, dtype="float32") == in_float32


def test_what_only_the_reader_uses_does_not_count(model, config_with):
    prompt = config_with(
        model.config.prompt, template="{question}", followup="{question}", stop_ids=(9,), text_newline_ids=(3, 4)
    )
    changed = config_with(model.config, prompt=prompt)
    assert compressor_fingerprint(model, config=changed) == compressor_fingerprint(model)
    model.name = "another"
    assert compressor_fingerprint(model, config=changed) == compressor_fingerprint(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_it_is_the_same(kit, tmp_path, family):
    model = kit.model(family)
    before = compressor_fingerprint(model)
    save_pretrained(model, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    assert compressor_fingerprint(model) == before == compressor_fingerprint(again)
    assert again.weights_digest == current_weights_digest(again)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight", ["language_model.layers.0.self_attn.k_proj.weight", "projector.2.bias"])
def test_weights_changed_in_place_are_another_compressor(kit, tmp_path, dtype, weight):
    save_pretrained(kit.model(), tmp_path)
    model, same = (vococache.load_model(tmp_path, dtype=dtype, device="cpu") for _ in range(2))
    loaded = compressor_fingerprint(model)
    changed = model.get_parameter(weight)
    changed.data[-1] += 1  # which no version counter of torch tells
    assert compressor_fingerprint(model) != loaded
    changed.data.copy_(same.get_parameter(weight))
    assert compressor_fingerprint(model) == loaded
    model.lm_head.weight.data.zero_()  # no part of the compressor
    model.reading.norm.weight.data.zero_()
    assert compressor_fingerprint(model) == loaded == compressor_fingerprint(same)


def test_a_reader_of_another_dtype_can_check_a_store(kit, tmp_path):
    """The store was made in bfloat16; a reader in float32 asks what the compressor's fingerprint was."""
    save_pretrained(kit.model(), tmp_path)
    compressor = vococache.load_model(tmp_path, dtype="bfloat16", device="cpu")
    reader = vococache.load_model(tmp_path, dtype="float32", device="cpu")
    assert compressor_fingerprint(compressor) == compressor_fingerprint(reader, dtype="bfloat16")
    assert compressor_fingerprint(compressor) != compressor_fingerprint(reader)


def test_overrides_at_load_count(kit, tmp_path):
    save_pretrained(kit.model(), tmp_path)
    prints = [
        compressor_fingerprint(vococache.load_model(tmp_path, device="cpu", **overrides))
        for overrides in ({}, {"num_voco_tokens": 1}, {"newline_ids": [6]}, {"newline_ids": []})
    ]
    assert len(set(prints)) == 4
    digest = vococache.load_model(tmp_path, newline_ids=[6], device="cpu")
    assert digest.weights_digest == current_weights_digest(digest)


def test_weights_in_the_dtype_of_their_file_are_its_mapped_pages(kit, tmp_path):
    save_pretrained(kit.model().bfloat16(), tmp_path)
    model = vococache.load_model(tmp_path, dtype="bfloat16", device="cpu", hashed=False)
    mapped = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    ranges = [range(int(first, 16), int(last, 16)) for first, last in mapped]
    for weight in model.parameters():
        assert any(weight.data_ptr() in found for found in ranges)


def test_weights_need_not_be_hashed(kit, tmp_path):
    save_pretrained(kit.model(), tmp_path)
    model = vococache.load_model(tmp_path, device="cpu", hashed=False)
    assert model.weights_digest is None
    assert compressor_fingerprint(model) == compressor_fingerprint(vococache.load_model(tmp_path, device="cpu"))


def test_official_checkpoint(golden, tmp_path):
    """float16 on disk, float32 in memory: one fingerprint, and the same after conversion to our layout."""
    model = vococache.load_model(golden, device="cpu")
    assert model.weights_digest == current_weights_digest(model)
    before = compressor_fingerprint(model)
    save_pretrained(model, tmp_path)
    assert compressor_fingerprint(vococache.load_model(tmp_path, device="cpu")) == before
