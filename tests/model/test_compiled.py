"""Compiled layers give what plain ones give: here by the compiler's CPU half, on a GPU in test_gpu.py."""

import pytest
import torch

import vococache
from vococache.model.compiled import compile_layers, fuse, warm_up
from vococache.model.generate import GenerationOptions, generate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own
def test_compiled_layers_give_what_plain_ones_give() -> None:
    model = vococache.load_model("synthetic", device="cpu", dtype="float32")
    side = model.config.geometry.size
    pixels = torch.randn(5, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = [torch.arange(3, 3 + length) for length in (5, 9, 2)]

    def outcome(segments: int) -> tuple[torch.Tensor, list[list[int]]]:
        with torch.inference_mode():
            cache = model.compress(pixels[:segments])
            return cache.data, generate(model, model.place(cache), texts, 12, GenerationOptions(stop_ids=())).ids

    plain = {segments: outcome(segments) for segments in (1, 2, 5)}
    fuse(model.language_model.layers)
    warm_up(model)
    for segments, (cache, ids) in plain.items():
        found = outcome(segments)
        torch.testing.assert_close(found[0], cache, atol=1e-4, rtol=1e-4)
        assert found[1] == ids


def test_a_cpu_is_left_as_it_is() -> None:
    model = vococache.load_model("synthetic", device="cpu")
    compile_layers(model)
    assert all("before_attention" not in vars(layer) for layer in model.language_model.layers)
