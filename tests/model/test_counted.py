"""A step on tensors without storage, against the formulas: bytes in bfloat16 with flash attention, and FLOPs."""

import pytest

from vococache.model.counted import count_step
from vococache.model.training_costs import (
    TrainingStep,
    activation_bytes,
    step_flops,
    waiting_gradient_values,
    whole_gradient_bytes,
)

LARGE = {
    "text": {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 4000, "max_position_embeddings": 1024,
    },
    "vision": {"image_size": 64, "patch_size": 4},
}  # fmt: skip
STEP = TrainingStep(segments=8, rows=4, text=200, labels=400)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_and_flops_are_those_of_the_formulas(kit, checkpointing):
    config = kit.config(**LARGE)
    counted = count_step(config, STEP, checkpointing=checkpointing)
    assert counted.flops == pytest.approx(step_flops(config, STEP, checkpointing=checkpointing), rel=0.03)
    estimate = activation_bytes(config, STEP, checkpointing=checkpointing, bytes_per_value=2)
    if checkpointing:  # what waits at the end of stage 2's backward pass is more than that stage's activations
        assert counted.kept_bytes < estimate / 3
        estimate += 2 * waiting_gradient_values(config)
    assert counted.peak_bytes == pytest.approx(estimate, rel=0.1)


def test_whole_gradients(kit):
    model = kit.model()
    learned = sum(weight.numel() for weight in model.parameters())
    learned -= sum(weight.numel() for weight in model.vision_tower.parameters())
    assert whole_gradient_bytes(model.config) == 4 * learned
