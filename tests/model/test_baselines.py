"""What VoCo is compared with: each is the single forward that its paper describes."""

import pytest
import torch

import vococache
from vococache.errors import InputError, ModelError
from vococache.model.baselines import COMPRESSIONS, with_compression
from vococache.model.saving import save_pretrained


@pytest.fixture(params=[kind for kind in COMPRESSIONS if kind != "voco"])
def scene(kit, request):
    """(plain model, the same compressing another way, pixels of two segments, a text)"""
    model = kit.model("qwen2", num_voco_tokens=3)
    return model, with_compression(model, request.param, seed=3), kit.pixels(model.config, 2), kit.ids(7)[0][None]


def test_the_text_sees_the_segments_entries_as_in_one_forward(kit, scene):
    """One segment: the text behind the cache gets the logits of plain causal attention over the whole sequence."""
    model, other, pixels, text = scene
    kind = other.config.compression
    embeds = other.stage1_embeddings(pixels[:1], 3 if kind == "full" else 0)
    sequence = torch.cat((embeds, other.language_model.embed_tokens(text)), dim=1)
    expected = kit.stock(model)(inputs_embeds=sequence).logits[0, embeds.shape[1] :]
    torch.testing.assert_close(other.read(other.compress(pixels[:1]), text)[0], expected, atol=1e-4, rtol=0)
    visible = model.config.stage1_length if kind == "full" else 1 + 3 + len(model.config.prompt.newline_ids)
    assert other.compress(pixels).tokens == visible == other.segment_entries
    assert model.compress(pixels).tokens == model.segment_entries


def test_weights_are_shared_and_new_ones_depend_on_the_seed(scene):
    model, other, pixels, _ = scene
    assert other.language_model is model.language_model
    again = with_compression(model, other.config.compression, seed=3)
    assert again.compress(pixels).data.equal(other.compress(pixels).data)
    if other.config.compression != "full":
        third = with_compression(model, other.config.compression, seed=4)
        assert not third.compress(pixels).data.equal(other.compress(pixels).data)


def test_every_weight_learns(kit, scene):
    _, other, pixels, text = scene
    other.requires_grad_(True)
    labels = text.clone()
    other(pixels, text, torch.ones_like(text), labels)["loss"].backward()
    unused = "projector." if other.config.compression == "qformer" else "none"  # it has one of its own
    for name, weight in other.named_parameters():
        assert (weight.grad is None) == name.startswith(unused), name


def test_it_survives_saving(scene, tmp_path):
    _, other, pixels, text = scene
    save_pretrained(other, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    assert type(again) is type(other)
    assert again.read(again.compress(pixels), text).equal(other.read(other.compress(pixels), text))


def test_there_is_a_way_back(scene, tmp_path):
    model, other, pixels, _ = scene
    back = with_compression(other, "voco")
    assert back.compress(pixels).data.equal(model.compress(pixels).data)
    save_pretrained(back, tmp_path)
    assert vococache.load_model(tmp_path, device="cpu").compress(pixels).data.equal(back.compress(pixels).data)


def test_a_store_is_not_made_with_a_baseline(scene, tmp_path):
    from vococache.workers.compressor import Compressor

    save_pretrained(scene[1], tmp_path)
    with pytest.raises(InputError, match="a baseline for comparison"):
        Compressor(model=str(tmp_path)).load("cpu")


def test_unknown_kinds_are_refused(kit):
    with pytest.raises(InputError, match=r"unknown compression 'zip'; expected one of .*voco"):
        with_compression(kit.model(), "zip")
    with pytest.raises(ModelError, match="compression 'zip' is not supported"):
        kit.config(compression="zip")
