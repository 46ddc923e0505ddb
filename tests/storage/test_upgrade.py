"""Stores of earlier formats: nothing is written in them, and `upgrade` makes them like new ones, interrupted or not."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.storage.samples import add, intent, kv, times, vectors
from tests.storage.test_crash import Recorder
from tests.storage.test_format import DATA

from vococache.errors import StoreError
from vococache.storage import Store, maintenance, open_store, opening
from vococache.storage.documents import seal_video
from vococache.storage.format import DOCUMENT
from vococache.storage.index import index_vectors, keys_index
from vococache.storage.upgrade import upgrade


@pytest.fixture(params=["v1", "v2"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(shutil.copytree(DATA / request.param, tmp_path / "old"))


def check(store: Store, atol: float) -> None:
    np.testing.assert_allclose(store.read("clip"), kv(7), rtol=0, atol=atol)
    np.testing.assert_array_equal(store.timestamps("clip"), times(7))
    assert store.info("broken").status == "failed"


def test_nothing_is_written_in_an_old_store(old: str) -> None:
    store = open_store(old, "a")
    for write in (lambda: add(store, "new"), lambda: store.copy("clip", "new", "/new.mp4", 1, 1)):
        with pytest.raises(StoreError, match=r"nothing is written any more: `voco upgrade"):
            write()
    maintenance.remove(store, "second clip")
    assert store.ids() == ["broken", "clip"]


def test_it_becomes_a_store_like_any_other(old: str) -> None:
    before = open_store(old)
    same = {"chunks": before.read("clip"), "info": before.info("clip")}
    # What earlier software has begun, and what was moved since.
    begun = {"status": "partial", "token": intent().token, "intent": intent().to_dict()}
    Path(old, "videos/begun/kv").mkdir(parents=True)
    Path(old, "videos/begun/kv/c.0.0.0.0.0.0").write_bytes(b"x")
    Path(old, "videos/begun", DOCUMENT).write_bytes(seal_video(before.identity, "begun", begun))
    open_store(old, "a").record_source("clip", "/moved.mp4", 5, 6)
    found = upgrade(old)
    assert (found.done, found.left) == (["clip", "second clip"], {})
    store = open_store(old, "a")
    assert store.identity == before.identity
    assert list(maintenance.verify(store)) == []
    assert maintenance.gc(store, older_than_s=-60) == []
    assert store.ids() == ["broken", "clip", "second clip"]
    np.testing.assert_array_equal(store.read("clip"), same["chunks"])
    np.testing.assert_allclose(
        store.vectors("clip"), vectors(7), rtol=0, atol=4 * (store.header.quantization is not None)
    )
    assert store.info("clip").source == "/moved.mp4"
    assert store.info("clip").duration == same["info"].duration
    add(store, "new")
    np.testing.assert_allclose(store.read("new"), kv(7), rtol=0, atol=4)
    assert upgrade(old).done == []
    check(maintenance.export(store, ["clip"], f"{old}-copy") and store, 4)


def test_it_is_merged_into_stores_whatever_their_index(old: str, tmp_path: Path) -> None:
    origin = open_store(old)
    for layer, name in ((0, "first"), (1, "another layer"), (1, "the same")):
        header = replace(origin.header, index=keys_index(2, 1, 2, 4, layer))
        store = open_store(str(tmp_path / name), "a", header=header)
        assert maintenance.merge(store, origin).copied == ["clip", "second clip"]
        assert list(maintenance.verify(store)) == []
        np.testing.assert_array_equal(store.read("clip"), open_store(old).read("clip"))
        np.testing.assert_array_equal(store.vectors("clip"), index_vectors(header, store.read("clip")))
        origin = store


def test_interrupted_at_any_step_it_reads_and_goes_on(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders: list[Recorder] = []

    def recording(url: str) -> Recorder:
        if not recorders:
            recorders.append(Recorder(url, tmp_path / "steps"))
            recorders[0].threads = 1
        return recorders[0]

    with monkeypatch.context() as patched:
        patched.setattr(opening, "open_objects", recording)
        upgrade(old)
    done = {str(path.relative_to(old)): path.read_bytes() for path in Path(old).rglob("*") if path.is_file()}
    assert len(recorders[0].steps) > 20
    for step in recorders[0].steps:
        store = open_store(step)
        check(store, 4)
        assert list(maintenance.verify(store)) == []
        assert upgrade(step).left == {}
        maintenance.gc(open_store(step, "a"), older_than_s=-1)
        assert {
            str(path.relative_to(step)): path.read_bytes() for path in Path(step).rglob("*") if path.is_file()
        } == done


def test_a_damaged_video_is_left(old: str) -> None:
    path = Path(old, "videos/clip/kv/c.1.0.0.0.0.0")
    path.write_bytes(path.read_bytes()[:-1])
    found = upgrade(old)
    assert found.done == ["second clip"]
    assert "c.1.0.0.0.0.0 is not what was written" in found.left["clip"]
    store = open_store(old, "a")
    np.testing.assert_allclose(store.read("clip", 0, 3), kv(3), rtol=0, atol=4)
    add(store, "clip")
    assert list(maintenance.verify(store)) == []
