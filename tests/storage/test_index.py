"""The index: kept beside the caches, checked as they are, read of all videos at once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.storage.samples import HEADER, INDEX, KV, add, intent, kv, times, vectors, write

from vococache.errors import CorruptionError, InputError, StoreError
from vococache.storage import Store, open_store
from vococache.storage.index import each_index, index_vectors, keys_index


def test_its_vectors_are_the_keys_of_a_layer(store: Store) -> None:
    add(store, "clip")
    found = store.vectors("clip", 2, 5)
    assert found.dtype == np.float16
    assert found.shape == (3, 2, 1, 4)  # tokens, heads, width
    np.testing.assert_array_equal(found[:, 1, 0], kv(7)[2:5, 1, 0, 0, 1])


def test_of_some_heads_alone() -> None:
    header = dataclasses.replace(HEADER, kv_heads=3, index=keys_index(2, 3, 2, 4, layer=1, heads=[2, 0]))
    assert header.index_shape == (2, 2, 4)
    caches = np.random.default_rng(0).standard_normal((5, 2, 2, 3, 2, 4)).astype(np.float32)
    found = index_vectors(header, caches)
    assert found is not None
    np.testing.assert_array_equal(found[:, 1, 0], caches[:, 1, 0, 2, 1].astype(np.float16))
    np.testing.assert_array_equal(found[:, 1, 1], caches[:, 1, 0, 0, 1].astype(np.float16))


def test_some_videos_alone(store: Store) -> None:
    for seed, video in enumerate("cab"):
        add(store, video, segments=4, seed=seed)
    assert [part.video.id for part in each_index(store, videos=["c", "none", "a"])] == ["c", "c", "a", "a"]


def test_all_videos_in_one_pass(store: Store) -> None:
    for seed, video in enumerate("cab"):
        add(store, video, segments=4 + seed, seed=seed)
    write(store, "partial", intent(), kv(4))
    store.fail("failed", "x")
    parts = list(each_index(store))
    assert [(part.video.id, part.start, len(part.vectors)) for part in parts] == [
        ("a", 0, 3), ("a", 3, 2), ("b", 0, 3), ("b", 3, 3), ("c", 0, 3), ("c", 3, 1),
    ]  # fmt: skip
    for seed, video in enumerate("cab"):
        found = np.concatenate([part.vectors for part in parts if part.video.id == video])
        np.testing.assert_array_equal(found, vectors(4 + seed, seed))
    assert {part.video.id for part in each_index(store, lambda info: info.segments > 4)} == {"a", "b"}


def test_damage_is_found_and_a_replaced_video_is_not_mixed(local_store: Store) -> None:
    for video in "abc":
        add(local_store, video, segments=300, content="a")
    parts = each_index(local_store)
    assert next(part for part in parts if part.video.id == "b").start == 0
    add(local_store, "b", segments=300, seed=3, content="b")
    found = [part for part in parts if part.video.id == "b"]
    assert len(found) < 100, "the rest is not there any more"
    for part in found:
        np.testing.assert_array_equal(part.vectors, vectors(300)[part.start : part.start + 3])  # type: ignore[index]
    path = Path(local_store.url, f"videos/c/{INDEX}/c.1.0.0.0")
    path.write_bytes(path.read_bytes()[:-5] + b"12345")
    with pytest.raises(CorruptionError, match=r"c\.1\.0\.0\.0"):
        list(each_index(local_store))
    with pytest.raises(CorruptionError, match=r"c\.1\.0\.0\.0"):
        local_store.vectors("c")
    np.testing.assert_array_equal(local_store.read("c"), kv(300))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 2, 1, 4), np.float16), r"expected vectors of float16 \(3, 2, 1, 4\)"),
        (np.zeros((3, 2, 1, 4), np.float32), "found float32"),
        (np.full((3, 2, 1, 4), np.nan, np.float16), "not finite"),
    ],
)
def test_vectors_are_refused_before_anything_is_written(local_store: Store, bad: np.ndarray, message: str) -> None:
    local_store.begin("clip", intent())
    with pytest.raises(InputError, match=message):
        local_store.write_chunk("clip", intent().token, 0, kv(3), bad)
    assert not Path(local_store.url, f"videos/clip/{KV}").exists()


def test_a_store_without_one(tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, index=None)
    store = open_store(str(tmp_path / "store"), "a", header=header)
    add(store, "clip")
    np.testing.assert_array_equal(store.read("clip"), kv(7))
    assert list(each_index(store)) == []
    with pytest.raises(InputError, match="has no index"):
        store.vectors("clip")
    with pytest.raises(InputError, match="the store has no index"):
        store.write_chunk("clip", intent().token, 0, kv(3), np.zeros((3, 1), np.float16))
    assert open_store(store.url, "a", header=HEADER).header.index is None, "as it was made"


def test_any_shape(tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, index={"kind": "tower", "shape": [5]})
    store = open_store(str(tmp_path / "store"), "a", header=header)
    wanted, given = intent(), np.arange(15, dtype=np.float16).reshape(3, 5)
    store.begin("clip", wanted)
    with pytest.raises(StoreError, match="'tower'"):
        store.write_chunk("clip", wanted.token, 0, kv(3))
    receipt = store.write_chunk("clip", wanted.token, 0, kv(3), given)
    assert receipt is not None
    store.complete("clip", wanted.token, [receipt], times(3), 3.0)
    np.testing.assert_array_equal(open_store(store.url).vectors("clip"), given)
