"""Stage 2 without a mask, text by text, against the mask: values and gradients."""

import pytest
import torch

from vococache.model import varlen
from vococache.model.objective import Objective
from vococache.model.packing import order, seen_before

# Texts of three rows: two and a gap between them, one with padding around it, none but padding.
TEXT = torch.tensor([[1, 1, 1, 0, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 0, 0], [0] * 8])


def test_order_is_that_of_what_each_token_sees():
    text = torch.cat((TEXT, torch.tensor([[2, 1, 1, 2, 0, 3, 1, 2]])))
    place, previous = order(text)
    seen = seen_before(text) & (text > 0)[:, :, None]
    assert place.equal(seen.sum(-1) - 1)
    assert previous.equal(torch.where(seen.tril(-1), torch.arange(8), -1).amax(-1))


@pytest.fixture
def as_spans(monkeypatch):
    """Texts are read one by one from now on, as a GPU reads them in one call."""
    calls = []

    def switch():
        one_by_one = varlen.one_by_one
        monkeypatch.setattr(varlen, "works", lambda *_: True)
        monkeypatch.setattr(varlen, "one_by_one", lambda *args: calls.append(1) or one_by_one(*args))
        return calls

    return switch


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_values_and_gradients_are_those_of_the_mask(kit, as_spans, family, checkpointing):
    changes = {"text": {"num_key_value_heads": 4}} if family == "llama" else {}  # else two groups of two heads
    model = kit.model(family, **changes).requires_grad_(True)
    model.gradient_checkpointing = checkpointing
    pixels = kit.pixels(model.config, segments=4)
    ids = torch.stack(kit.ids(8, 8, 8))
    labels = ids.masked_fill(torch.arange(8) % 3 == 0, -100)

    def result():
        model.zero_grad()
        logits = model(pixels, ids, TEXT, segments=[3, 1, 0])["logits"]
        loss = model(pixels, ids, TEXT, labels, segments=[3, 1, 0])["loss"]
        loss.backward()
        return [logits[TEXT > 0], loss, *(weight.grad.clone() for weight in model.parameters())]

    masked = result()
    calls = as_spans()
    for found, expected in zip(result(), masked, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert len(calls) == (3 if checkpointing else 2) * model.config.layers


def test_rows_without_any_text(kit, as_spans):
    model = kit.model()
    as_spans()
    out = model(kit.pixels(model.config), torch.zeros(1, 4).long(), torch.zeros(1, 4))
    assert out["logits"].isfinite().all()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_shapes_of_the_one_call(kit, family):
    """On tensors without storage, in bfloat16: what a GPU would be given."""
    model = kit.model(family).to("meta", torch.bfloat16).requires_grad_(True)
    model.gradient_checkpointing = True
    side = model.config.geometry.size
    ids = torch.stack(kit.ids(8, 8, 8))
    frames = torch.zeros(4, 1, side, side, 3, dtype=torch.uint8)
    Objective(model)(ids, TEXT, ids, [3, 1, 0], frames=frames)["loss"].backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_device_without_the_kernel_keeps_the_mask(monkeypatch, caplog):
    varlen.works.cache_clear()
    shape = (torch.device("cpu"), torch.bfloat16, 4, 2, 8)
    assert not varlen.works(*shape)
    assert not caplog.records, "there is none to try"
    varlen.works.cache_clear()
    monkeypatch.setattr(varlen, "DEVICES", {"cpu"})
    assert not varlen.works(*shape)
    assert "texts are read with a mask" in caplog.text
    varlen.works.cache_clear()


@pytest.mark.parametrize("right", [True, False])
def test_a_kernel_is_used_where_it_computes_the_same(monkeypatch, right):
    varlen.works.cache_clear()
    monkeypatch.setattr(varlen, "DEVICES", {"cpu"})
    same = varlen.one_by_one
    monkeypatch.setattr(varlen, "varlen", same if right else lambda *args: same(*args) * 1.5)
    assert varlen.works(torch.device("cpu"), torch.bfloat16, 4, 2, 8) == right
    varlen.works.cache_clear()
