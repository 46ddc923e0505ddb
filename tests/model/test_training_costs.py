"""What a training step takes by the formulas, against what torch counts and keeps."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vococache.model.adapter import add_adapter
from vococache.model.objective import Objective
from vococache.model.training_costs import (
    TrainingStep,
    activation_bytes,
    cast_bytes,
    forward_flops,
    parameters,
    step_flops,
)

SHAPES = {
    "clip": {"family": "llama"},
    "siglip, grouped": {"family": "qwen3", "tower": "siglip"},
    "biases": {"family": "qwen2", "num_voco_tokens": 8},
    "linear projector, tied": {"family": "mistral", "projector": "linear", "text": {"tie_word_embeddings": True}},
}
# Wide enough that matrix products are what takes time and memory, as in a real model.
WIDE = {
    "text": {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_key_value_heads": 4, "head_dim": 32,
    },
    "vision": {"image_size": 32, "patch_size": 4},
}  # fmt: skip
STEP = TrainingStep(segments=8, rows=2, text=24, labels=16)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters(kit, shape):
    model = kit.model(**SHAPES[shape])
    counts = parameters(model.config)
    for part, count in counts.items():
        if part == "lm_head" and model.config.text.tie_word_embeddings:
            assert count == 0
        else:
            assert count == sum(weight.numel() for weight in getattr(model, part).parameters()), part
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())


def loss_of(kit, *, checkpointing):
    """A model whose tower is frozen, and a function from it to the loss of `STEP`."""
    model = kit.model(**WIDE)
    model.requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing = checkpointing
    side = model.config.geometry.size
    ids = torch.arange(STEP.rows * STEP.text).view(STEP.rows, -1) % 40
    labels = torch.full_like(ids, -100)
    each = STEP.labels // STEP.rows
    labels[:, -each:] = ids[:, -each:]
    objective = Objective(model).train()
    frames = torch.randint(0, 256, (STEP.segments, 1, side, side, 3), generator=torch.Generator().manual_seed(0)).byte()
    segments = [STEP.segments // STEP.rows] * STEP.rows

    def loss():
        return objective(ids, torch.ones_like(ids), labels, segments, frames=frames)["loss"]

    return model, loss


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops(kit, checkpointing):
    """Exact forward; backward within 3%: the first product, behind the frozen tower, needs no gradient of its input."""
    model, loss = loss_of(kit, checkpointing=checkpointing)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            value = loss()
        with FlopCounterMode(display=False) as backward:
            value.backward()
    assert forward.get_total_flops() == forward_flops(model.config, STEP).total
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert counted == pytest.approx(step_flops(model.config, STEP, checkpointing=checkpointing), rel=0.03)


def test_flops_beside_adapters(kit):
    """Frozen products pass gradients on and have none; attention's own, which have two, are little in a real model."""
    model, loss = loss_of(kit, checkpointing=False)
    add_adapter(model, {"r": 1})
    model.projector.requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()
    expected = step_flops(model.config, STEP, checkpointing=False, adapters=True)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.08)


def kept_bytes(model, loss):
    """Bytes that autograd keeps between the forward and the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no two share an address
        return tensor

    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    assert value.isfinite()
    return sum(tensor.untyped_storage().nbytes() for start, tensor in kept.items() if start not in weights)


def test_activations(kit):
    model, loss = loss_of(kit, checkpointing=False)
    estimate = activation_bytes(model.config, STEP, checkpointing=False, fused=False)
    assert kept_bytes(model, loss) == pytest.approx(estimate, rel=0.05)


def test_activations_behind_stored_caches(kit):
    """Stage 2's part, and nothing of stage 1's."""
    model, _ = loss_of(kit, checkpointing=False)
    config = model.config
    model.requires_grad_(False)
    model.add_reader({"kind": "full"})
    model.reader.requires_grad_(True)
    cache = torch.randn(
        STEP.segments, config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ids = torch.arange(STEP.rows * STEP.text).view(STEP.rows, -1) % 40
    labels = ids.clone()
    labels[:, : -STEP.labels // STEP.rows] = -100

    def loss():
        segments = [STEP.segments // STEP.rows] * STEP.rows
        return Objective(model)(ids, torch.ones_like(ids), labels, segments, cache=cache)["loss"]

    estimate = activation_bytes(config, STEP, checkpointing=False, fused=False, stored=True)
    assert kept_bytes(model, loss) == pytest.approx(estimate, rel=0.05)


def test_activations_with_checkpointing(kit):
    """Each layer's input, and what one layer needs while it is computed again."""
    model, loss = loss_of(kit, checkpointing=True)
    inputs = kept_bytes(model, loss)
    one_layer = activation_bytes(model.config, STEP, checkpointing=True, fused=False) - inputs
    everything = activation_bytes(model.config, STEP, checkpointing=False, fused=False)
    assert inputs < everything / 10
    assert everything / model.config.layers < one_layer < 1.3 * everything / model.config.layers


def test_copies_of_frozen_weights_that_autocast_keeps(kit):
    model = kit.model(**WIDE)
    model.requires_grad_(False)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    x = torch.randn(1, 8, model.config.text.hidden_size, requires_grad=True)
    kept = {}

    def keep(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.shape[-2:] not in {x.shape[-2:]}:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.lm_head(model.language_model.layers[0].self_attn.q_proj(x))
    assert not weights & kept.keys()
    used = [model.lm_head.weight, model.language_model.layers[0].self_attn.q_proj.weight]
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == cast_bytes(used)
    assert cast_bytes(model.requires_grad_(True).parameters()) == 0
    assert cast_bytes(model.requires_grad_(False).bfloat16().parameters()) == 0
