"""The loss that training minimises, with its options."""

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from vococache.errors import InputError
from vococache.model import chunks
from vococache.model.baselines import with_compression
from vococache.model.objective import Objective
from vococache.model.voco import VoCoModel


@pytest.fixture
def batch(kit):
    """(model with K = 4, a batch of two rows: three segments and one)"""
    model = kit.model(num_voco_tokens=4)
    size = model.config.geometry.size
    frames = torch.randint(0, 256, (4, 1, size, size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ids = torch.stack(kit.ids(8, 8))
    labels = ids.masked_fill(torch.arange(8) < 5, -100)
    return model, {
        "frames": frames, "segments": [3, 1], "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels
    }  # fmt: skip


def test_the_loss_is_the_models_own(batch):
    model, inputs = batch
    out = Objective(model).eval()(**inputs)
    pixels = model.pixel_values(inputs["frames"])
    expected = model(pixels, inputs["input_ids"], inputs["attention_mask"], inputs["labels"], segments=[3, 1])
    torch.testing.assert_close(out["loss"], expected["loss"])
    labelled = inputs["labels"] != -100
    assert out["predicted"][labelled].equal(model.logits(expected["hidden"]).argmax(-1))
    assert (out["predicted"][~labelled] == -100).all()
    assert Objective(model).train()(**inputs).keys() == {"loss"}


def test_chunks_of_logits_give_the_same_loss_and_gradients_and_hold_one_chunk(batch, kit, monkeypatch):
    model, inputs = batch
    teacher = with_compression(kit.model(num_voco_tokens=4, seed=5), "full")
    model.requires_grad_(True)
    inputs["labels"] = inputs["input_ids"].clone()  # 14 are predicted
    vocabulary, results, widest, kept = model.config.text.vocab_size, [], [], []
    compute = VoCoModel.logits
    monkeypatch.setattr(VoCoModel, "logits", lambda *args: widest.append(len(args[1])) or compute(*args))
    for positions in (1000, 5):
        monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", positions * vocabulary)
        objective = Objective(model, teacher=teacher, weight=0.25)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
            loss = objective.train()(**inputs)["loss"]
        loss.backward()
        gradients = [weight.grad.clone() for weight in model.parameters()]
        results.append([loss, *gradients, objective.eval()(**inputs)["predicted"]])
        assert max(widest) == min(positions, 14)
        widest.clear()
    assert not {(rows, vocabulary) for rows in (14, 5, 4)} & set(kept), "logits are computed again, not kept"
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_a_ready_cache_gives_the_same_loss(batch):
    model, inputs = batch
    expected = Objective(model)(**inputs)["loss"]
    frames = inputs.pop("frames")
    cache = model.compress(model.pixel_values(frames)).data
    assert Objective(model)(cache=cache, **inputs)["loss"].equal(expected)
    with pytest.raises(InputError, match="either frames or a cache"):
        Objective(model)(cache=cache, frames=frames, **inputs)


def test_accumulated_batches_are_weighted_by_their_labels(batch):
    """Two micro-batches of an accumulated step, divided by the labels of both, sum to the loss of both together."""
    model, inputs = batch
    inputs["labels"][0, 5:7] = -100  # one label in the first row, three in the second
    whole = Objective(model)(**inputs)["loss"]
    rows = [(slice(0, 3), 0, 3), (slice(3, 4), 1, 1)]
    parts = [
        Objective(model)(
            frames=inputs["frames"][some], segments=[count], num_items_in_batch=torch.tensor(4),
            **{name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask", "labels")},
        )["loss"]
        for some, row, count in rows
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)


def test_elastic_training_shows_every_power_of_two_of_the_tokens(batch):
    model, inputs = batch
    objective = Objective(model, elastic=True).train()
    pixels, rest = model.pixel_values(inputs["frames"]), [inputs[n] for n in ("input_ids", "attention_mask", "labels")]
    expected = {model(pixels, *rest, segments=[3, 1], tokens=k)["loss"].item() for k in (1, 2, 4)}
    random.seed(0)
    found = Counter(objective(**inputs)["loss"].item() for _ in range(60))
    assert len(found) == 3
    assert sorted(found) == pytest.approx(sorted(expected))
    whole = model(pixels, *rest, segments=[3, 1])["loss"]
    assert found.most_common(1)[0] == (
        pytest.approx(whole.item()),
        pytest.approx(30, abs=10),
    )  # all K, every other time
    torch.testing.assert_close(objective.eval()(**inputs)["loss"], whole)


def test_distillation_adds_the_divergence_from_the_teacher(batch, kit):
    model, inputs = batch
    teacher = with_compression(kit.model(num_voco_tokens=4, seed=5), "full")
    plain = Objective(model)(**inputs)["loss"]
    objective = Objective(model, teacher=teacher, weight=0.25).train()
    pixels, rest = model.pixel_values(inputs["frames"]), [inputs[n] for n in ("input_ids", "attention_mask", "labels")]
    student, taught = (m.logits(m(pixels, *rest, segments=[3, 1])["hidden"]).log_softmax(-1) for m in (model, teacher))
    divergence = (taught.exp() * (taught - student)).sum(-1).mean()
    torch.testing.assert_close(objective(**inputs)["loss"], 0.75 * plain + 0.25 * divergence)
    assert not any(name.startswith("_teacher") for name in objective.state_dict())
    same = Objective(model, teacher=with_compression(kit.model(num_voco_tokens=4), "voco"), weight=1.0).train()
    assert same(**inputs)["loss"].item() == pytest.approx(0.0, abs=1e-5)


def test_a_batch_of_texts_alone_uses_every_weight(batch):
    """Processes that train together must all use the same weights."""
    model, inputs = batch
    model.requires_grad_(True)
    inputs |= {"frames": inputs["frames"][:0], "segments": [0, 0]}
    out = Objective(model).train()(**inputs)
    out["loss"].backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert not any(weight.grad.any() for weight in model.vision_tower.parameters())
    torch.testing.assert_close(out["loss"], Objective(model).eval()(**inputs)["loss"])


def test_a_batch_without_labels_has_no_loss(batch):
    """Rows whose media are broken: nothing is learned, nothing is not-a-number."""
    model, inputs = batch
    model.requires_grad_(True)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    loss = Objective(model).train()(num_items_in_batch=torch.tensor(0), **inputs)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert F.cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan(), "what a mean would give"
