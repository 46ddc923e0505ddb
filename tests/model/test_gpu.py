"""The same numbers on a GPU. `make test-all` runs these where there is CUDA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import vococache
from vococache.model.decoder import attend
from vococache.model.float8 import CAPABILITY, FLOAT8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GOLDEN = Path(__file__).parent / "data" / "golden_a"


def test_a_golden_case_on_the_gpu() -> None:
    case = np.load(GOLDEN / "cases" / "k2_a.npz")
    ids = case["input_ids"][0].tolist()
    voco = ids.index(32000)
    model = vococache.load_model(GOLDEN, newline_ids=ids[2:voco], dtype="float32", device="cuda")
    cache = model.compress(torch.from_numpy(case["pixel_values"])[:, None])
    text = torch.tensor([ids[voco + 2 :]], device="cuda")
    logits = model.read(cache, text)[0, :, case["logits_cols"]].cpu().numpy()
    assert np.abs(logits - case["logits_sub"][0, -text.shape[1] :]).max() < 1e-3
    assert model.generate_ids(cache, text, 8)[0].tolist() == case["gen_ids"].tolist()


@pytest.mark.parametrize(("dtype", "most"), [("float16", 0.02), ("bfloat16", 0.02), ("float8", 0.06)])
def test_fewer_bits_stay_near_float32(dtype: str, most: float) -> None:
    if dtype == FLOAT8 and torch.cuda.get_device_capability() < CAPABILITY:
        pytest.skip("this GPU has no float8 products")
    exact = vococache.load_model("synthetic", device="cuda", dtype="float32")
    fewer = vococache.load_model("synthetic", device="cuda", dtype=dtype)
    side = exact.config.geometry.size
    frames = np.random.default_rng(0).integers(0, 256, (4, 1, side, side, 3), dtype=np.uint8)
    expected = exact.compress(exact.pixel_values(frames)).data
    found = fewer.compress(fewer.pixel_values(frames)).data.float()
    assert (found - expected).abs().mean() < most * expected.abs().mean()


def test_plain_causal_attention_reaches_the_flash_kernel() -> None:
    model = vococache.load_model("synthetic", device="cuda", dtype="bfloat16")
    heads, groups, width = model.config.heads, model.config.kv_heads, model.config.head_dim
    query, key, value = (
        torch.randn(2, count, 40, width, device="cuda", dtype=torch.bfloat16) for count in (heads, groups, groups)
    )
    attention = model.language_model.layers[0].self_attn
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses where that kernel cannot serve
        found = attend(attention, query, key, value, None)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(attention, query, key, value, None)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
