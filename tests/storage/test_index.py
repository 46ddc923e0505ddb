"""The index: kept beside the caches, checked as they are, read of all videos at once."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.storage.samples import HEADER, INDEX, KV, add, intent, kv, times, vectors, write

from vococache.errors import CorruptionError, InputError, StoreError
from vococache.storage import Store, catalog, maintenance, open_store, sealing
from vococache.storage.index import IndexScan, index_vectors, keys_index, scan_index


def joined(scan: IndexScan) -> dict[str, npt.NDArray[np.float16]]:
    """The vectors of each video of a scan, in the order of its segments."""
    parts: dict[str, dict[int, npt.NDArray[np.float16]]] = {}
    for spans, whole in scan.map(np.array):
        for video, start, stop, at in spans:
            parts.setdefault(video, {})[start] = whole[at : at + stop - start]
    return {video: np.concatenate([found[start] for start in sorted(found)]) for video, found in parts.items()}


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
    scan = scan_index(store, videos=["c", "none", "a"])
    assert {video: each.segments for video, each in scan.videos.items()} == {"c": 4, "a": 4}
    assert [span.video for spans, _ in scan.map(len) for span in spans] == ["c", "c", "a", "a"]


def test_all_videos_in_one_pass(store: Store) -> None:
    for seed, video in enumerate("cab"):
        add(store, video, segments=4 + seed, seed=seed)
    write(store, "partial", intent(), kv(4))
    store.fail("failed", "x")
    scan = scan_index(store)
    assert [(*span,) for spans, _ in scan.map(len) for span in spans] == [
        ("a", 0, 3, 0), ("a", 3, 5, 0), ("b", 0, 3, 0), ("b", 3, 6, 0), ("c", 0, 3, 0), ("c", 3, 4, 0),
    ]  # fmt: skip
    found = joined(scan)
    for seed, video in enumerate("cab"):
        np.testing.assert_array_equal(found[video], vectors(4 + seed, seed))
    assert {*joined(scan_index(store, lambda info: info.segments > 4))} == {"a", "b"}


def test_sealed_vectors_are_those_of_the_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of many videos' vectors, made anew by and by, say what each video's own index says."""
    monkeypatch.setattr(catalog, "FEW", 3)
    monkeypatch.setattr(sealing, "MOST_PARTS", 3)
    monkeypatch.setattr(sealing, "VECTORS_BYTES", 8 * HEADER.index_segment_bytes)

    def check(expected: dict[str, tuple[int, int]], opened: set[str]) -> None:
        scan = scan_index(store)
        assert {*scan.open} == opened
        found = joined(scan)
        assert [*sorted(found)] == [*sorted(expected)]
        for video, (segments, seed) in expected.items():
            np.testing.assert_array_equal(found[video], vectors(segments, seed))
        some = [*expected][:2]
        assert {*joined(scan_index(store, videos=some))} == {*some}

    expected = {}
    for seed, video in enumerate("abcdefg"):
        add(store, video, segments=2 + 3 * seed, seed=seed)
        expected[video] = (2 + 3 * seed, seed)
    check(expected, {*expected})
    sealing.seal(store)
    check(expected, set())
    add(store, "b", segments=5, seed=9, content="b")
    maintenance.remove(store, "c")
    del expected["c"]
    expected["b"] = (5, 9)
    sealing.seal(store)
    check(expected, {"b"})  # two chunks: too few
    for seed, video in enumerate("xyzuvw", start=10):
        add(store, video, segments=7, seed=seed)
        expected[video] = (7, seed)
        sealing.seal(store)
    check(expected, set())
    names = {name for name in store.objects.names(catalog.PARTS) if name.endswith(catalog.VECTORS)}
    known = catalog.read(store.objects, store.identity)
    assert known is not None
    assert {f"{name}{catalog.VECTORS}" for name in known.vectors} == names, "what nothing needs is gone"
    assert list(maintenance.verify(store)) == []


def test_damaged_or_lost_vectors_are_read_from_the_videos_themselves(store: Store) -> None:
    add(store, "a", segments=200)
    add(store, "b", segments=7, seed=3)
    sealing.seal(store)
    scan = scan_index(store)
    (name,) = scan.sealed
    assert scan.open == {}
    key = catalog.vectors_key(name)
    whole = store.objects.get(key) or b""
    for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-2], b"", None):
        store.objects.delete([key])
        if data is not None:
            store.objects.put(key, data)
        found = joined(scan)
        np.testing.assert_array_equal(found["a"], vectors(200))
        np.testing.assert_array_equal(found["b"], vectors(7, 3))


def test_what_is_damaged_is_not_sealed(local_store: Store) -> None:
    for video in "ab":
        add(local_store, video, segments=200)
    path = Path(local_store.url, f"videos/a/{INDEX}/c.1.0.0.0")
    path.write_bytes(path.read_bytes()[:-5] + b"12345")
    sealing.seal(local_store)
    scan = scan_index(local_store)
    assert scan.open == {"a": 3}
    np.testing.assert_array_equal(joined(scan_index(local_store, videos=["b"]))["b"], vectors(200))
    with pytest.raises(CorruptionError, match=r"c\.1\.0\.0\.0"):
        list(scan.map(len))


def test_damage_is_found_and_a_replaced_video_is_not_mixed(local_store: Store) -> None:
    for video in "abc":
        add(local_store, video, segments=300, content="a")
    parts = scan_index(local_store).map(np.array)
    assert next(spans[0] for spans, _ in parts if spans[0].video == "b").start == 0
    add(local_store, "b", segments=300, seed=3, content="b")
    rest = [(spans[0], found) for spans, found in parts if spans[0].video == "b"]
    assert len(rest) < 99, "the rest is not there any more"
    for span, found in rest:
        np.testing.assert_array_equal(found, vectors(300)[span.start : span.stop])  # type: ignore[index]
    path = Path(local_store.url, f"videos/c/{INDEX}/c.1.0.0.0")
    path.write_bytes(path.read_bytes()[:-5] + b"12345")
    with pytest.raises(CorruptionError, match=r"c\.1\.0\.0\.0"):
        list(scan_index(local_store).map(len))
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
    assert list(scan_index(store).map(len)) == []
    sealing.seal(store)
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
