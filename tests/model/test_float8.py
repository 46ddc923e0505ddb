"""Products in float8: the numbers that the two sides hold, row by row, wherever they are computed."""

from pathlib import Path

import pytest
import torch
from torch import nn

import vococache
from vococache.errors import ModelError
from vococache.model.fingerprint import compressor_fingerprint
from vococache.model.float8 import Float8Linear, to_float8, use_float8
from vococache.model.saving import save_pretrained


def rows(count: int, width: int = 48) -> torch.Tensor:
    """Rows of very different size."""
    spread = torch.logspace(-3, 2, count)[:, None]
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * spread).bfloat16()


def exact(rows: torch.Tensor) -> torch.Tensor:
    """The numbers that float8 rows stand for."""
    values, scale = to_float8(rows)
    return values.double() * scale.double()


def test_a_row_loses_what_three_bits_of_mantissa_lose() -> None:
    x = rows(7)
    error = (exact(x) - x.double()).abs()
    largest = x.double().abs().amax(dim=1, keepdim=True)
    # Half a unit in the last place; below the smallest normal number (2^-6 of 448), of that one.
    assert (error <= torch.maximum(x.double().abs() / 16, largest / 448 * 2**-10) * 1.01).all()


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_the_rounded_numbers(bias: bool) -> None:
    linear = nn.Linear(48, 32, bias=bias).bfloat16()
    x = rows(10)
    found = Float8Linear(linear)(x.reshape(2, 5, 48))
    expected = exact(x) @ exact(linear.weight.detach()).T
    size = exact(x).abs() @ exact(linear.weight.detach()).abs().T
    if bias:
        expected, size = expected + linear.bias.detach().double(), size + linear.bias.detach().double().abs()
    assert found.shape == (2, 5, 32)
    assert found.dtype == torch.bfloat16
    assert ((found.reshape(10, 32).double() - expected).abs() <= 2**-7 * size).all()


def test_rows_do_not_depend_on_one_another() -> None:
    linear = Float8Linear(nn.Linear(48, 32).bfloat16())
    x = rows(6)
    x[2] = 0
    together = linear(x)
    assert together.isfinite().all()
    assert all(linear(x[index : index + 1]).equal(together[index : index + 1]) for index in range(6))


def test_a_model_in_float8(tmp_path: Path) -> None:
    exact, half, eight = (vococache.load_model("synthetic", dtype=dtype) for dtype in ("float32", "bfloat16", "float8"))
    held = {name: tensor.dtype for name, tensor in eight.state_dict().items()}
    products = {name for name, dtype in held.items() if dtype == torch.float8_e4m3fn}
    assert products == {
        f"{name}.weight" for name, module in half.named_modules()
        if name.startswith("language_model.layers.") and isinstance(module, nn.Linear)
    }  # fmt: skip
    pixels = torch.rand(4, 1, 3, *[exact.config.geometry.size] * 2, generator=torch.Generator().manual_seed(0))
    cache = exact.compress(pixels).data
    away = [float((model.compress(pixels).data.float() - cache).norm() / cache.norm()) for model in (half, eight)]
    assert away[0] < away[1] < 0.06
    assert len({compressor_fingerprint(model) for model in (exact, half, eight)}) == 3
    assert compressor_fingerprint(exact, dtype="float8") == compressor_fingerprint(eight)
    with pytest.raises(ModelError, match="in float8, which is not saved"):
        save_pretrained(eight, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_width_that_the_products_cannot_have() -> None:
    with pytest.raises(ModelError, match=r"widths that 16 divides, layer 0 is 24 to 32"):
        use_float8(nn.Sequential(nn.Linear(24, 32)))
