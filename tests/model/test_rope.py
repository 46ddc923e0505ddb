"""Angles stay float32 however the model computes: positions past 256 are not exact in bfloat16."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vococache.model.rope import rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
def test_angles_are_the_stock_ones_after_a_cast(kit, rope, dtype):
    model = kit.model(rope=rope).to(dtype)
    positions = torch.tensor([0, 1, 257, 3001, 4095])
    cos, sin = LlamaRotaryEmbedding(model.config.text.transformers())(torch.zeros(1, 1, dtype=dtype), positions[None])
    ours = model.rope.angles(positions, dtype)
    assert ours[0].equal(cos[0])
    assert ours[1].equal(sin[0])


def test_scores_depend_on_distance_alone(kit):
    model = kit.model()
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at, distance):
        angles = [model.rope.angles(torch.tensor([place]), torch.float32) for place in (at, at - distance)]
        return (rotate(query, angles[0]) * rotate(key, angles[1])).sum()

    torch.testing.assert_close(score(30, 20), score(200, 20), atol=1e-4, rtol=0)
    assert (score(30, 20) - score(30, 1)).abs() > 0.05
