"""Training: loss and gradients of the two stages equal those of one masked forward of the stock decoder."""

import pytest
import torch
import torch.nn.functional as F

from vococache.errors import InputError


@pytest.fixture
def batch(kit):
    """Two rows of two segments each, padded on different sides; labels on the second half of each text."""

    def make(config):
        pixels = kit.pixels(config, segments=4)
        texts = kit.ids(9, 6)
        ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.bool)
        labels = torch.full((2, 11), -100)
        for row, (text, start) in enumerate(zip(texts, (0, 5), strict=True)):
            end = start + len(text)
            ids[row, start:end], mask[row, start:end] = text, True
            labels[row, start + 3 : end] = text[3:]
        return pixels, ids, mask, labels, texts

    return make


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_loss_and_gradients_equal_one_masked_forward(kit, batch, family, tower):
    model = kit.model(family, tower=tower, frames_per_segment=2).requires_grad_(True)
    pixels, ids, mask, labels, texts = batch(model.config)
    loss = model(pixels, ids, mask, labels)["loss"]
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)

    stock = kit.stock(model)
    logits = [kit.one_sequence(model, stock, pixels[2 * row : 2 * row + 2], text) for row, text in enumerate(texts)]
    expected = F.cross_entropy(torch.cat([row[2:-1] for row in logits]), torch.cat([text[3:] for text in texts]))
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    # The reference embeds with our table and decodes with the stock copy of everything behind it.
    reference = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    for name, weight in stock.named_parameters():
        if weight.grad is not None:
            reference[name.replace("model.", "language_model.", 1)] = weight.grad
    assert ours.keys() == reference.keys()
    assert {name.split(".")[0] for name in ours} == {"vision_tower", "projector", "language_model", "lm_head"}
    for name, gradient in ours.items():
        scale = reference[name].abs().max()
        torch.testing.assert_close(gradient, reference[name], atol=1e-4 * float(scale) + 1e-7, rtol=0, msg=name)
    table = "language_model.embed_tokens.weight"
    assert ours[table][model.config.voco_token_id].abs().max() > 0


def test_every_weight_that_the_answer_depends_on_gets_a_gradient(kit, batch):
    model = kit.model("qwen3").requires_grad_(True)
    pixels, ids, mask, labels, _ = batch(model.config)
    model(pixels, ids, mask, labels)["loss"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        # A key's bias shifts all scores of a query alike.
        assert weight.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name


def test_padding_changes_nothing(kit, batch):
    model = kit.model()
    pixels, ids, mask, labels, texts = batch(model.config)
    out, loss = model(pixels, ids, mask), model(pixels, ids, mask, labels)["loss"]
    noisy = ids.masked_fill(~mask, 40)
    assert model(pixels, noisy, mask, labels)["loss"].equal(loss)
    for row, text in enumerate(texts):
        alone = model(pixels[2 * row : 2 * row + 2], text[None], torch.ones(1, len(text)))["logits"][0]
        torch.testing.assert_close(out["logits"][row][mask[row]], alone, atol=1e-4, rtol=0)
    assert out.keys() == {"logits"}


def test_a_label_on_the_first_token_has_nothing_to_be_predicted_from(kit, batch):
    """The official loss predicts it from the last VoCo token; its data never labels it, and we do not compute it."""
    model = kit.model()
    pixels, ids, mask, labels, texts = batch(model.config)
    before = model(pixels, ids, mask, labels)["loss"]
    labels[0, 0], labels[1, 5] = texts[0][0], texts[1][0]
    assert model(pixels, ids, mask, labels)["loss"].equal(before)


def test_segments_that_do_not_divide_among_the_rows_are_refused(kit, batch):
    model = kit.model()
    pixels, ids, mask, labels, _ = batch(model.config)
    with pytest.raises(InputError, match=r"3 segments.* 2 rows"):
        model(pixels[:3], ids, mask, labels)


def test_a_row_without_text_adds_nothing(kit, batch):
    model = kit.model()
    pixels, ids, mask, labels, _ = batch(model.config)
    first = model(pixels[:2], ids[:1], mask[:1], labels[:1])
    mask[1] = False
    both = model(pixels, ids, mask, labels)
    torch.testing.assert_close(both["loss"], first["loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(both["hidden"], first["hidden"], atol=1e-4, rtol=0)


def test_rows_with_different_numbers_of_segments_and_several_texts(kit, batch):
    """Ragged rows, a row of text alone and packed texts: each text's logits are those of reading it alone."""
    model = kit.model("qwen3")
    pixels = kit.pixels(model.config, segments=4)
    texts = kit.ids(5, 3, 4, 6)
    rows, segments = [[0], [1, 2], [3]], [3, 1, 0]
    ids, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, numbers in enumerate(rows):
        joined = torch.cat([texts[number] for number in numbers])
        ids[row, : len(joined)] = joined
        mask[row, : len(joined)] = torch.cat([torch.full((len(texts[n]),), i) for i, n in enumerate(numbers, 1)])
    logits = model(pixels, ids, mask, segments=segments)["logits"]
    starts = [0, 3, 4]
    for row, numbers in enumerate(rows):
        mine = pixels[starts[row] : starts[row] + segments[row]]
        for index, number in enumerate(numbers, 1):
            one = torch.ones(1, len(texts[number]))
            alone = model(mine, texts[number][None], one, segments=[len(mine)])["logits"][0]
            torch.testing.assert_close(logits[row][mask[row] == index], alone, atol=1e-4, rtol=0)


def test_the_loss_of_a_ready_cache_and_of_fewer_tokens(kit, batch):
    model = kit.model()
    pixels, ids, mask, labels, _ = batch(model.config)
    cache = model.compress(pixels)
    whole, ready = model(pixels, ids, mask, labels)["loss"], model(cache, ids, mask, labels)["loss"]
    assert whole.equal(ready)
    fewer = model(pixels, ids, mask, labels, tokens=1)["loss"]
    torch.testing.assert_close(fewer, model(cache.first_tokens(1), ids, mask, labels)["loss"])
    assert not fewer.equal(whole)


def test_gradient_checkpointing_gives_the_same_gradients(kit, batch):
    model = kit.model("qwen2").requires_grad_(True)
    pixels, ids, mask, labels, _ = batch(model.config)

    def gradients():
        model.zero_grad()
        model(pixels, ids, mask, labels)["loss"].backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing = True
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=0)
