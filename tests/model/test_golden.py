"""Against outputs of the official VoCo-LLaMA code (data/golden_a/README.md says how they were made)."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vococache
from vococache.model.baselines import full_cache

SINGLE = [f"k{k}_{newline}" for k in (1, 2, 4, 8) for newline in "ab"]
PADDED = ["batch2_k2", "batch3_k1"]
IMAGE, VOCO = -200, 32000


@pytest.fixture(scope="module")
def case(golden):
    """A case's arrays, its model, its pixels made from the raw images, and the text ids of each row."""

    @cache
    def load(name):
        with np.load(golden / "cases" / f"{name}.npz") as arrays:
            z = SimpleNamespace(**{key: arrays[key] for key in arrays.files})
        ids = z.input_ids[0].tolist()
        k = int(z.voco_num) if VOCO in ids else 0
        image = ids.index(IMAGE)
        # Without VoCo tokens there is one newline, between image and text: it belongs to the text here.
        z.newline = ids[image + 1 : ids.index(VOCO)] if k else []
        z.model = vococache.load_model(golden, num_voco_tokens=k or None, newline_ids=z.newline, device="cpu")
        z.k, z.text_start = k, image + 1 + len(z.newline) + k
        images = [getattr(z, f"image_u8_{row}") for row in range(len(z.input_ids))]
        z.pixels = z.model.pixel_values(np.stack([z.model.config.geometry.apply(image) for image in images])[:, None])
        return z

    return load


def text_of(z):
    return torch.from_numpy(z.input_ids[0, z.text_start :])


@pytest.mark.parametrize("name", [*SINGLE, *PADDED, "novoco"])
def test_images_become_the_official_pixels_and_vision_tokens(case, name):
    z = case(name)
    np.testing.assert_array_equal(z.pixels[:, 0], z.pixel_values)
    np.testing.assert_allclose(z.model.vision_tokens(z.pixels), z.image_features, atol=1e-5, rtol=0)


def test_both_newline_variants_are_among_the_cases(case):
    assert {tuple(case(name).newline) for name in SINGLE} == {(13,), (29871, 13)}


@pytest.mark.parametrize("name", SINGLE)
def test_text_logits(case, name):
    z = case(name)
    text = text_of(z)
    logits = z.model.read(z.model.compress(z.pixels), text[None])[0].numpy()
    np.testing.assert_allclose(logits[:, z.logits_cols], z.logits_sub[0, -len(text) :], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(logits.argmax(-1), z.logits_argmax[0, -len(text) :])
    lse = torch.from_numpy(logits).logsumexp(-1)
    np.testing.assert_allclose(lse, z.logits_lse[0, -len(text) :], atol=1e-4, rtol=0)
    if name == "k2_a":
        np.testing.assert_allclose(logits[-1:], z.logits_last_full, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SINGLE)
def test_voco_keys_and_values(case, name):
    z = case(name)
    rotated = z.model.rotated(z.model.compress(z.pixels), int(z.voco_positions[0]))[:, :, 0]
    np.testing.assert_allclose(rotated, z.voco_kv, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SINGLE)
def test_greedy_answer(case, name):
    z = case(name)
    steps = []
    compute = z.model.logits
    z.model.logits = lambda hidden: steps.append(compute(hidden)) or steps[-1]
    try:
        ids = z.model.generate_ids(z.model.compress(z.pixels), text_of(z)[None], 8)
    finally:
        del z.model.logits
    assert ids[0].tolist() == z.gen_ids.tolist()
    np.testing.assert_allclose(torch.cat(steps)[:, z.logits_cols], z.gen_logits_sub, atol=1e-4, rtol=0)


def test_first_tokens_of_a_larger_k(case):
    """The first 2 of 8 tokens are the official 2-token cache of the same image and newline."""
    z = case("k2_a")
    eight = vococache.load_model(z.model.name, num_voco_tokens=8, newline_ids=z.newline)
    cut = eight.compress(z.pixels).first_tokens(2)
    rotated = z.model.rotated(cut, int(z.voco_positions[0]))[:, :, 0]
    np.testing.assert_allclose(rotated, z.voco_kv, atol=1e-5, rtol=0)


def newline_before_voco(row):
    ids = row.tolist()
    return tuple(ids[ids.index(IMAGE) + 1 : ids.index(VOCO)])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", PADDED)
def test_padded_batch_gives_official_logits_and_loss(case, name, side):
    """Rows of one stage-1 newline go through `forward` together: the newline belongs to the model's config."""
    z = case(name)
    left = "_left" if side == "left" else ""
    ids, mask = getattr(z, f"input_ids{left}"), getattr(z, f"attention_mask{left}")
    labels = getattr(z, f"labels{left}")
    # `forward` takes what follows the last VoCo token: everything before is masked like padding.
    text = mask & (np.cumsum(ids == VOCO, axis=1) == z.k) & (ids != VOCO)
    first = text & (np.cumsum(text, axis=1) == 1)
    assert (labels[~text | first] == -100).all(), "the official data has labels on the answer only"
    newlines = [newline_before_voco(row) for row in ids]
    total = 0.0
    for newline in set(newlines):
        rows = [row for row, other in enumerate(newlines) if other == newline]
        model = vococache.load_model(z.model.name, num_voco_tokens=z.k, newline_ids=newline, device="cpu")
        batch = [torch.from_numpy(array[rows]) for array in (ids, text, labels)]
        total += model(z.pixels[rows], *batch)["loss"].item() * (labels[rows] != -100).sum()
        for row, logits in zip(rows, model(z.pixels[rows], *batch[:2])["logits"], strict=True):
            length = text[row].sum()
            official = z.logits_sub[row, -length:]  # its rows are padded on the left
            np.testing.assert_allclose(logits[text[row]][:, z.logits_cols], official, atol=1e-4, rtol=0)
    assert total / (labels != -100).sum() == pytest.approx(float(z.loss), abs=1e-5)


def test_without_voco_tokens_it_is_plain_llava(case):
    z = case("novoco")
    text = text_of(z)
    cache = full_cache(z.model, z.pixels)
    logits = z.model.read(cache, text[None])[0].numpy()
    np.testing.assert_allclose(logits[:, z.logits_cols], z.logits_sub[0, -len(text) :], atol=1e-4, rtol=0)
    assert z.model.generate_ids(cache, text[None], 8)[0].tolist() == z.gen_ids.tolist()
