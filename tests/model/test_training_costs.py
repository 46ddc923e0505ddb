"""What a training step takes: the closed formulas against the model's weights, what torch counts and what it keeps."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vococache.model.objective import Objective
from vococache.model.training_costs import Step, activation_bytes, forward_flops, parameters, step_flops

SHAPES = {
    "clip": {"family": "llama"},
    "siglip, grouped": {"family": "qwen3", "tower": "siglip"},
    "biases": {"family": "qwen2"},
    "linear projector, tied": {"family": "mistral", "projector": "linear", "text": {"tie_word_embeddings": True}},
}
DEEP = {"text": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 8, "head_dim": 16}}
SEGMENTS, ROWS, TEXT, LABELLED = 6, 2, 8, 3


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_the_models(kit, name):
    model = kit.model(**SHAPES[name])
    found = {part: sum(weight.numel() for weight in getattr(model, part).parameters()) for part in PARTS}
    found["lm_head"] *= not model.config.text.tie_word_embeddings
    assert parameters(model.config) == found


PARTS = ("vision_tower", "projector", "language_model", "lm_head")


@pytest.fixture
def learner(kit):
    """(objective of a deeper model whose tower is frozen, a batch, the same as `Step`)"""
    model = kit.model(**DEEP).requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    size = model.config.geometry.size
    ids = torch.stack(kit.ids(*[TEXT] * ROWS))
    batch = {
        "frames": torch.zeros(SEGMENTS, 1, size, size, 3, dtype=torch.uint8), "segments": [SEGMENTS // ROWS] * ROWS,
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(torch.arange(TEXT) < TEXT - LABELLED, -100),
    }  # fmt: skip
    return Objective(model).train(), batch, Step(segments=SEGMENTS, rows=ROWS, text=TEXT, labels=ROWS * LABELLED)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_a_step(learner, checkpointing):
    objective, batch, step = learner
    config = objective.voco.config
    objective.voco.gradient_checkpointing = checkpointing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = objective(**batch)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    assert forward == forward_flops(config, step).total
    assert counter.get_total_flops() == pytest.approx(step_flops(config, step, checkpointing=checkpointing), rel=0.02)


def test_bytes_that_the_backward_pass_needs(learner):
    objective, batch, step = learner
    weights = {weight.untyped_storage().data_ptr() for weight in objective.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(**batch)
    expected = activation_bytes(objective.voco.config, step, checkpointing=False, fused=False)
    assert sum(size for size, _ in kept.values()) == pytest.approx(expected, rel=0.15)


def test_checkpointing_keeps_a_fraction(kit):
    config, step = kit.config(**DEEP), Step(segments=SEGMENTS, rows=ROWS, text=TEXT, labels=ROWS * LABELLED)
    plain, again = (activation_bytes(config, step, checkpointing=on) for on in (False, True))
    assert again < 0.3 * plain
