"""remove, gc, export on every kind of place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.storage.samples import KV, add, intent, kv, name, write

from vococache.errors import CorruptionError, InputError, StoreError, VideoNotFoundError
from vococache.storage import Store, catalog, maintenance, open_store
from vococache.storage.documents import parts, seal_video, stamp


def keys(store: Store) -> set[str]:
    """All objects but the catalog's."""
    return {entry.key for entry in store.objects.walk("") if not catalog.is_part(entry.key)}


def test_verify_is_clean_and_finds_a_change(store: Store) -> None:
    add(store, "clip")
    write(store, "partial", intent(), kv(4))
    assert list(maintenance.verify(store)) == []
    assert list(maintenance.verify(store, "clip")) == []
    store.objects.put(f"videos/clip/{KV}/c.1.0.0.0.0.0", kv(3, seed=5).tobytes() + b"1234")
    for found in (maintenance.verify(store), maintenance.verify(store, "clip")):
        (problem,) = found
        assert (problem.video, problem.object) == ("clip", f"videos/clip/{KV}/c.1.0.0.0.0.0")
        assert "expected crc32c" in problem.problem
    with pytest.raises(VideoNotFoundError, match="'clip'"):
        list(maintenance.verify(store, "clap"))


def test_remove_leaves_nothing(store: Store) -> None:
    before = keys(store)
    add(store, "clip")
    maintenance.remove(store, "clip")
    assert keys(store) == before
    assert store.list() == []
    with pytest.raises(VideoNotFoundError):
        maintenance.remove(store, "clip")


def test_gc_takes_leftovers_and_nothing_else(store: Store) -> None:
    add(store, "clip")
    write(store, "partial", intent(), kv(4))
    before = keys(store)
    leftovers = {
        f"videos/clip/{KV}/.tmp-1-a",
        f"videos/clip/{name('kv', 'b')}/c.0.0.0.0.0.0",
        "videos/clip/stray",
        "videos/gone/kv/c.0.0.0.0.0.0",
        "videos/.tmp-1-b",
    }
    for key in leftovers:
        store.objects.put(key, b"xyz")
    assert maintenance.gc(store) == []  # a running ingest may be at them
    garbage = maintenance.gc(store, older_than_s=-60)
    assert {item.object for item in garbage} == leftovers
    assert {item.bytes for item in garbage} == {3}
    assert keys(store) == before
    assert {item.reason for item in maintenance.gc(store, older_than_s=-60, partial=True)} == {"partial video"}
    assert store.ids() == ["clip"]
    np.testing.assert_array_equal(store.read("clip"), kv(7))


def test_gc_leaves_a_video_that_changes_between_its_two_looks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "clip")
    stray, fresh = "videos/clip/stray", f"videos/clip/{KV}/.tmp-1-a"
    store.objects.put(stray, b"xyz")
    judge = maintenance._garbage_of

    def judged(*looked: Any) -> dict[str, str]:
        found = judge(*looked)
        store.objects.put(fresh, b"somebody is at it")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "_garbage_of", judged)
        assert maintenance.gc(store, older_than_s=-60) == []
    assert {stray, fresh} <= keys(store)
    assert {item.object for item in maintenance.gc(store, older_than_s=-60)} == {stray, fresh}


def test_export_is_a_store_of_its_own(store: Store, tmp_path: Path) -> None:
    for seed, video in enumerate("abc"):
        add(store, video, seed=seed)
    copy = maintenance.export(store, ["c", "a"], str(tmp_path / "copy"))
    assert copy.header == store.header
    assert copy.list() == [store.info("a"), store.info("c")]
    np.testing.assert_array_equal(copy.read("c"), kv(7, seed=2))
    assert list(maintenance.verify(copy)) == []
    with pytest.raises(StoreError, match="not empty"):
        maintenance.export(store, ["b"], copy.url)
    back = maintenance.export(copy, ["a"], f"{store.url}-back")
    np.testing.assert_array_equal(back.read("a"), kv(7))


def test_export_refuses_what_it_cannot_copy(local_store: Store, tmp_path: Path) -> None:
    add(local_store, "clip")
    write(local_store, "partial", intent(), kv(4))
    with pytest.raises(VideoNotFoundError, match="not complete"):
        maintenance.export(local_store, ["clip", "partial"], str(tmp_path / "copy"))
    with pytest.raises(InputError, match="apart"):
        maintenance.export(local_store, ["clip"], f"{local_store.url}/videos/x")
    with pytest.raises(InputError, match="safe"):
        maintenance.export(local_store, ["../clip"], str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
    Path(local_store.url, f"videos/clip/{KV}/c.0.0.0.0.0.0").write_bytes(bytes(192))
    with pytest.raises(CorruptionError, match="cannot export"):
        maintenance.export(local_store, ["clip"], str(tmp_path / "copy"))
    with pytest.raises(StoreError, match="no store"):
        open_store(str(tmp_path / "copy"))


def test_a_hostile_document_leads_nowhere(local_store: Store, tmp_path: Path) -> None:
    """A store that somebody sends names objects outside of it, for an export to read and to write."""
    add(local_store, "clip")
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    before = keys(local_store)
    fields, _ = local_store.document("clip")
    fields, record = parts(fields)
    record["objects"]["../../../secret"] = stamp(b"mine")
    local_store.objects.put("videos/clip/zarr.json", seal_video(local_store.identity, "clip", fields, record))
    (tmp_path / "deep").mkdir()
    copy = maintenance.export(local_store, ["clip"], str(tmp_path / "deep/copy"))
    assert keys(copy) == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]
    assert list(maintenance.verify(local_store)) == []
    assert maintenance.gc(local_store, older_than_s=-60, partial=True) == []
    maintenance.remove(local_store, "clip")
    assert secret.read_bytes() == b"mine"
