"""Caches in 8 and 4 bits: how far they differ, how many bytes they take, and that Zarr itself reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.storage.samples import HEADER, KV, add, intent, kv, write

from vococache.errors import CorruptionError, InputError, StoreMismatchError
from vococache.storage import Store, maintenance, open_store, quantize
from vococache.storage.index import index_vectors

KINDS = sorted(quantize.BITS)
SHAPE = (3, 2, 2, 2, 4, 8)  # [segments, layers, 2, kv_heads, tokens, head_dim]


def caches(segments: int, dtype: str = "float16", seed: int = 0) -> npt.NDArray[np.floating]:
    """Like real ones: keys whose channels differ in range, values whose tokens do."""
    random = np.random.default_rng(seed)
    kv = random.standard_normal((segments, *HEADER.segment_shape))
    kv[:, :, 0] = kv[:, :, 0] * random.uniform(0.1, 8, 4) + random.uniform(-20, 20, 4)
    kv[:, :, 1] *= random.uniform(0.01, 4, (segments, 2, 1, 2, 1))
    return kv.astype(dtype)


def there_and_back(kv: npt.NDArray[np.floating], kind: str) -> npt.NDArray[np.floating]:
    data = quantize.encode(kv, kind)
    assert len(data) == quantize.chunk_bytes(kv.shape, kind)
    out = np.empty_like(kv)
    quantize.decode(data, out, kind)
    return out


def bounds(kv: npt.NDArray[np.floating], kind: str) -> npt.NDArray[np.float64]:
    """Half a step of each value's range, and what float16 adds in the range's ends and in the result."""
    exact = kv.astype(np.float64)
    keys, values = exact[:, :, 0], exact[:, :, 1]
    spread = np.empty_like(exact)
    spread[:, :, 0] = keys.max((0, 3), keepdims=True) - keys.min((0, 3), keepdims=True)
    spread[:, :, 1] = values.max(-1, keepdims=True) - values.min(-1, keepdims=True)
    largest = np.empty_like(exact)
    largest[:, :, 0] = np.abs(keys).max((0, 3), keepdims=True)
    largest[:, :, 1] = np.abs(values).max(-1, keepdims=True)
    step = (spread + largest * 2**-10 + 2**-24) / ((1 << quantize.BITS[kind]) - 1) * (1 + 2**-10) + 2**-24
    return np.asarray(step / 2 + (largest + step) * 2**-11 + 2**-25)


@pytest.mark.parametrize("kind", KINDS)
@given(arrays(np.float16, SHAPE, elements=st.floats(-60000, 60000, width=16)))
@settings(max_examples=100, deadline=None)
def test_no_value_differs_by_more_than_half_a_step(kind: str, kv: npt.NDArray[np.float16]) -> None:
    found = there_and_back(kv, kind).astype(np.float64)
    assert (np.abs(found - kv) <= bounds(kv, kind)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_typical_caches(kind: str, dtype: str) -> None:
    kv = caches(16, dtype)
    found = there_and_back(kv, kind)
    assert found.dtype == kv.dtype
    assert (np.abs(found.astype(np.float64) - kv) <= bounds(kv, kind)).all()
    assert np.abs(found - kv).mean() < {"int8": 0.02, "int4": 0.3}[kind]
    assert not np.array_equal(found, kv)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -3.25, 65504.0, 6e-8])
def test_a_single_value_stays_exact(kind: str, value: float) -> None:
    kv = np.full(SHAPE, value, np.float16)
    np.testing.assert_array_equal(there_and_back(kv, kind), kv)


@pytest.mark.parametrize("kind", KINDS)
class TestStore:
    @pytest.fixture
    def small(self, tmp_path: Path, kind: str) -> Store:
        header = dataclasses.replace(HEADER, quantization=kind)
        return open_store(str(tmp_path / "store"), "a", header=header)

    def test_read_part_by_part(self, small: Store, kind: str) -> None:
        kv = caches(7)  # chunks of 3, 3, 1
        receipts = write(small, "clip", intent(), kv)  # type: ignore[arg-type]
        info = small.complete("clip", intent().token, receipts, np.zeros((7, 2)), 3.5)
        np.testing.assert_array_equal(
            small.vectors("clip"), index_vectors(HEADER, kv), "of what was, not of what is kept"
        )
        chunks = [kv[:3], kv[3:6], np.repeat(kv[6:], 3, axis=0)]
        expected = np.concatenate([there_and_back(chunk, kind) for chunk in chunks])[:7]
        for start, stop in ((0, 7), (2, 5), (6, 7)):
            np.testing.assert_array_equal(small.read("clip", start, stop), expected[start:stop])
        assert info.padding_bytes == 2 * (small.header.stored_segment_bytes + HEADER.index_segment_bytes)
        assert {r.length for r in receipts} == {quantize.chunk_bytes((3, *HEADER.segment_shape), kind) + 4}
        assert list(maintenance.verify(small)) == []

    def test_zarr_reads_it(self, small: Store) -> None:
        add(small, "clip")
        group = zarr.open_group(small.url, mode="r", path="videos/clip")
        np.testing.assert_array_equal(group[KV][:], small.read("clip"))
        copy = zarr.open_group(f"{small.url}-copy", mode="w")
        chunks = (3, *HEADER.segment_shape)
        array = copy.create_array("kv", data=kv(3), chunks=chunks, serializer=group[KV].serializer, compressors=None)
        np.testing.assert_array_equal(array[:], group[KV][:3], "written by Zarr")

    def test_damage_is_found(self, small: Store) -> None:
        add(small, "clip")
        (path, *_) = Path(small.url).glob(f"videos/clip/{KV}/c.*")
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
        assert [problem.object for problem in maintenance.verify(small)] == [f"videos/clip/{KV}/{path.name}"]
        with pytest.raises(CorruptionError):
            small.read("clip")

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e8])
    def test_what_no_range_holds_is_refused(self, tmp_path: Path, kind: str, value: float) -> None:
        header = dataclasses.replace(HEADER, dtype="float32", quantization=kind)
        store = open_store(str(tmp_path / "wide"), "a", header=header)
        kv = caches(2, "float32")
        for index in (0, 1):  # a key, a value
            broken = kv.copy()
            broken[1, 0, index, 0, 1, 2] = value
            with pytest.raises(InputError, match="not finite"):
                write(store, "clip", intent(), broken)  # type: ignore[arg-type]

    def test_the_store_says_so(self, small: Store, kind: str) -> None:
        assert open_store(small.url).header.quantization == kind
        assert open_store(small.url, "a", header=HEADER).header.quantization == kind, "as it was made, unless asked"
        other = dataclasses.replace(HEADER, quantization=KINDS[1 - KINDS.index(kind)])
        with pytest.raises(StoreMismatchError, match="quantization"):
            open_store(small.url, "a", header=other)


def test_an_unknown_kind() -> None:
    with pytest.raises(InputError, match=r"'int3': expected one of \['int4', 'int8'\]"):
        dataclasses.replace(HEADER, quantization="int3")
