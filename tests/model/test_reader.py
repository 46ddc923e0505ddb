"""A reader with weights of its own: the compressor, and with it every stored cache, stays as it is."""

import pytest
import torch

import vococache
from vococache.errors import ModelError
from vococache.model.fingerprint import compressor_fingerprint, current_weights_digest
from vococache.model.saving import save_pretrained

LORA = {"kind": "lora", "r": 4, "lora_alpha": 8}


@pytest.fixture(params=[{"kind": "full"}, LORA], ids=["full", "lora"])
def scene(kit, request):
    """(model with a reader, pixels, text, the model's cache and logits before it had one)"""
    model = kit.model("qwen3")
    pixels, text = kit.pixels(model.config, segments=2), kit.ids(6)[0][None]
    cache = model.compress(pixels)
    logits = model.read(cache, text)
    model.add_reader(request.param)
    return model, pixels, text, cache, logits


def disturb(model):
    """Change every weight that a reader alone has."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("reader.") and (model.config.reader["kind"] == "full" or "lora_" in name):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)


def test_a_new_reader_reads_as_the_decoder_did(scene):
    model, _, text, cache, logits = scene
    torch.testing.assert_close(model.read(cache, text), logits, atol=1e-6, rtol=0)


def test_changing_the_reader_changes_answers_and_no_cache(scene):
    model, pixels, text, cache, logits = scene
    before, digest = compressor_fingerprint(model), current_weights_digest(model)
    disturb(model)
    assert (model.read(cache, text) - logits).abs().max() > 0.01
    assert model.compress(pixels).data.equal(cache.data)
    assert (compressor_fingerprint(model), current_weights_digest(model)) == (before, digest)


def test_a_reader_survives_saving(scene, tmp_path):
    model, pixels, text, cache, _ = scene
    disturb(model)
    save_pretrained(model, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    assert again.config.reader == model.config.reader
    assert again.compress(pixels).data.equal(cache.data)
    assert again.read(cache, text).equal(model.read(cache, text))
    assert compressor_fingerprint(again) == compressor_fingerprint(model)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    plain = sum(weight.numel() * 4 for name, weight in model.named_parameters() if "reader" not in name)
    limit = 1.5 if model.config.reader["kind"] == "lora" else 2.2
    assert size < limit * plain, "LoRA's base weights are stored once"


def test_a_full_reader_of_tied_embeddings_has_its_own(kit, tmp_path):
    model = kit.model(text={"tie_word_embeddings": True})
    model.add_reader({"kind": "full"})
    cache, text = model.compress(kit.pixels(model.config, segments=1)), kit.ids(4)[0][None]
    disturb(model)
    assert model.lm_head.weight is model.reader.embed_tokens.weight
    save_pretrained(model, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    assert again.lm_head.weight is again.reader.embed_tokens.weight
    assert again.read(cache, text).equal(model.read(cache, text))


@pytest.mark.parametrize("settings", [{"kind": "half"}, {}, {"kind": "lora", "ranks": 3}])
def test_settings_that_do_not_fit_are_refused(kit, settings):
    with pytest.raises(ModelError, match="reader"):
        kit.model().add_reader(settings)


def test_a_second_reader_is_refused(scene):
    with pytest.raises(ModelError, match="already has a reader"):
        scene[0].add_reader(LORA)
