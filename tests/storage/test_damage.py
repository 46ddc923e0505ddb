"""Any change of a store's bytes is found: by reading, and by verify."""

import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tests.storage.samples import HEADER, INDEX, KV, TIMES, add, intent, kv, write

from vococache.errors import CorruptionError, StoreError
from vococache.storage import Store, maintenance, open_store

Snapshot = Callable[[Store], dict[str, bytes]]


def read_all(url: str) -> None:
    """Use everything that the store holds; raises if anything was found."""
    store = open_store(url)
    for video in store.ids():
        if store.info(video).status == "complete":
            store.timestamps(video)
            store.read(video)
            store.vectors(video)


def problems(url: str) -> list[str]:
    try:
        return [problem.object for problem in maintenance.verify(open_store(url))]
    except StoreError as error:
        return [str(error)]


def names(url: str, key: str) -> bool:
    """Does `verify` name this object, and no other?"""
    try:
        return [problem.object for problem in maintenance.verify(open_store(url))] == [key]
    except StoreError as error:  # the store's own object: nothing opens
        return f"{url}/{key}" in str(error) or str(error).startswith(f"no store at {url}: expected {key} there")


@pytest.fixture
def damaged(local_store: Store) -> Iterator[Store]:
    """A store of two complete videos, a partial and a failed one."""
    add(local_store, "one", segments=5)
    add(local_store, "two", segments=5, seed=1)
    write(local_store, "partial", intent(), kv(4))
    local_store.fail("failed", "no video stream", source="/videos/failed.mp4")
    assert problems(local_store.url) == []
    read_all(local_store.url)
    return local_store


def test_every_single_byte_counts(damaged: Store, snapshot: Snapshot) -> None:
    maintenance.remove(damaged, "two")
    for key, data in snapshot(damaged).items():
        if "partial/kv" in key or "partial/index" in key:  # not visible yet; test_contract: resuming finds it
            continue
        path = Path(damaged.url, key)
        # Of chunks, whose bytes are all alike to a checksum, some.
        for at in range(0, len(data), 1 if key.endswith("zarr.json") else 7):
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            path.write_bytes(changed)
            with pytest.raises(StoreError):
                read_all(damaged.url)
            assert names(damaged.url, key), f"verify missed byte {at} of {key}"
        path.write_bytes(data)
    assert problems(damaged.url) == []


def test_missing_truncated_and_grown_objects(damaged: Store, snapshot: Snapshot) -> None:
    for key, data in snapshot(damaged).items():
        if "partial/kv" in key or "partial/index" in key:
            continue
        path = Path(damaged.url, key)
        for changed in (b"", data[:-1], data + b"\0", None):
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            gone = changed is None and key.endswith(("partial/zarr.json", "failed/zarr.json"))
            if not gone:  # else the next ingest begins that video anew
                assert names(damaged.url, key), f"verify missed {key}"
                with pytest.raises(StoreError):
                    read_all(damaged.url)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"videos/one/{KV}/c.0.0.0.0.0.0", f"videos/one/{KV}/c.1.0.0.0.0.0"),
        (f"videos/one/{KV}/c.0.0.0.0.0.0", f"videos/two/{KV}/c.0.0.0.0.0.0"),
        (f"videos/one/{INDEX}/c.0.0.0.0", f"videos/one/{INDEX}/c.1.0.0.0"),
        (f"videos/one/{INDEX}/c.0.0.0.0", f"videos/two/{INDEX}/c.0.0.0.0"),
        ("videos/one/zarr.json", "videos/two/zarr.json"),
        (f"videos/one/{KV}", f"videos/two/{KV}"),
        ("videos/one", "videos/two"),
        (f"videos/one/{KV}/zarr.json", f"videos/one/{TIMES}/zarr.json"),
        ("zarr.json", "videos/zarr.json"),
    ],
)
def test_swapped_objects(damaged: Store, first: str, second: str) -> None:
    root = Path(damaged.url)
    (root / first).rename(root / "aside")
    (root / second).rename(root / first)
    (root / "aside").rename(root / second)
    assert problems(damaged.url)
    with pytest.raises(StoreError):
        read_all(damaged.url)


def test_every_two_objects_swapped(damaged: Store, snapshot: Snapshot) -> None:
    objects = {key: data for key, data in snapshot(damaged).items() if key.startswith(("videos/one/", "videos/two/"))}
    pairs = [(one, two) for one, two in combinations(objects, 2) if objects[one] != objects[two]]
    assert len(pairs) > 50
    for pair in pairs:
        for key, other in (pair, pair[::-1]):
            Path(damaged.url, key).write_bytes(objects[other])
        # With a video's document gone, what its other objects should be is not known.
        gone = [key.removesuffix("zarr.json") for key in pair if key.count("/") == 2]
        expected = [key for key in pair if key.count("/") == 2 or not key.startswith(tuple(gone))]
        assert sorted(problems(damaged.url)) == expected
        with pytest.raises(StoreError):
            read_all(damaged.url)
        for key in pair:
            Path(damaged.url, key).write_bytes(objects[key])
    assert problems(damaged.url) == []


def test_a_retyped_array_is_found(damaged: Store) -> None:
    path = Path(damaged.url, f"videos/one/{KV}/zarr.json")
    path.write_text(path.read_text().replace("float16", "uint16"))
    with pytest.raises(CorruptionError, match=r"kv\..*/zarr\.json.*expected"):
        damaged.read("one")
    assert problems(damaged.url) == [f"videos/one/{KV}/zarr.json"]


def test_unexpected_objects_are_found(damaged: Store) -> None:
    for key in ("stray", "videos/stray", "videos/one/stray", f"videos/one/{KV}/c.9.0.0.0.0.0", "videos/new/kv/c.0"):
        damaged.objects.put(key, b"x")
        assert problems(damaged.url), key
        damaged.objects.delete([key])
    assert problems(damaged.url) == []


def test_another_stores_video_or_document_is_refused(damaged: Store, tmp_path: Path) -> None:
    import dataclasses

    other = open_store(str(tmp_path / "other"), "a", header=dataclasses.replace(HEADER, fingerprint="0" * 64))
    add(other, "theirs")
    shutil.copytree(Path(other.url, "videos/theirs"), Path(damaged.url, "videos/theirs"))
    with pytest.raises(StoreError, match="made for another store"):
        damaged.read("theirs")
    shutil.copy(Path(other.url, "zarr.json"), Path(damaged.url, "zarr.json"))
    with pytest.raises(StoreError, match="made for another store"):
        open_store(damaged.url).read("one")


def test_a_damaged_video_costs_itself_alone(damaged: Store) -> None:
    Path(damaged.url, "videos/one/zarr.json").write_bytes(b"{}")
    rows = {info.id: info.status for info in damaged.list()}
    assert rows == {"failed": "failed", "one": "failed", "partial": "partial", "two": "complete"}
    np.testing.assert_array_equal(damaged.read("two"), kv(5, seed=1))
    add(damaged, "one", segments=2)
    np.testing.assert_array_equal(damaged.read("one"), kv(2))


def test_a_damaged_chunk_is_made_again(damaged: Store) -> None:
    Path(damaged.url, f"videos/one/{KV}/c.0.0.0.0.0.0").unlink()
    with pytest.raises(CorruptionError, match="found no object"):
        damaged.read("one")
    np.testing.assert_array_equal(damaged.read("one", 3, 5), kv(5)[3:])  # the other chunk is sound
    assert set(damaged.begin("one", intent())) == {1}
    np.testing.assert_array_equal(damaged.read("one", 3, 5), kv(5)[3:])  # meanwhile too
    add(damaged, "one", segments=5)
    np.testing.assert_array_equal(damaged.read("one"), kv(5))


def test_a_store_copied_in_among_the_videos_is_found(damaged: Store) -> None:
    shutil.copytree(damaged.url, f"{damaged.url}-copy")
    shutil.move(f"{damaged.url}-copy", f"{damaged.url}/videos/inner")
    rows = {info.id: info for info in open_store(damaged.url).list()}
    assert rows["inner"].status == "failed"
    assert "videos/inner/zarr.json" in problems(damaged.url)


def test_a_folder_out_of_reach_is_not_taken_for_an_empty_one(damaged: Store) -> None:
    kv = next(Path(damaged.url).glob("videos/*/kv.*"))
    kv.rename(kv.with_name("away"))
    for target in ("away", kv):  # no listing can follow the second
        kv.symlink_to(target)
        assert str(kv.relative_to(damaged.url)) in problems(damaged.url), "whatever the video's status"
        kv.unlink()
