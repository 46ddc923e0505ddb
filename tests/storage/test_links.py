"""Links, FIFOs and sockets in a store: named, never followed or opened; nothing outside the store is touched."""

import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.storage.samples import HEADER, INDEX, KV, TIMES, add, intent, kv, times, write

from vococache.errors import CorruptionError, StoreError
from vococache.storage import Store, maintenance, open_store

Snapshot = Callable[[Store], dict[str, bytes]]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else's, shaped as a video's group is: whatever is deleted by key exists there."""
    folder = tmp_path / "victim"
    for name in ("zarr.json", f"{KV}/zarr.json", f"{KV}/c.0.0.0.0.0.0", f"{TIMES}/c.0.0", ".tmp-1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def untouched(victim: Path) -> Callable[[], bool]:
    def look() -> dict[str, bytes | None]:
        return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(victim.rglob("*"))}

    before = look()
    return lambda: look() == before


PLACES = ["extra", KV, f"{KV}/extra", f"{KV}/c.1.0.0.0.0.0", TIMES, INDEX, "zarr.json", ".tmp-1"]


def plant(store: Store, place: str, victim: Path) -> Path:
    """A link to the victim, or its file of that name, in the place of what a video has there."""
    link = Path(store.url, "videos/clip", place)
    if link.is_dir():
        link.rename(Path(store.url).with_name(f"moved-{uuid.uuid4().hex}"))
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim / place if (victim / place).exists() else victim)
    return link


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_link_of_a_video_is_followed(
    local_store: Store, victim: Path, untouched: Callable[[], bool], place: str, partial: bool
) -> None:
    (write if partial else add)(local_store, "clip", *((intent(), kv(7)) if partial else ()))
    link = plant(local_store, place, victim)
    named = {problem.object for problem in maintenance.verify(local_store) if "symbolic link" in problem.problem}
    assert named == {f"videos/clip/{place}"}
    assert [info.id for info in local_store.list()] == ["clip"]
    maintenance.gc(local_store, older_than_s=-60, partial=partial)
    assert untouched()
    if not link.is_symlink():
        plant(local_store, place, victim)
    add(local_store, "clip", content="b")  # begins the video anew
    np.testing.assert_array_equal(local_store.read("clip"), kv(7))
    assert untouched()
    maintenance.gc(local_store, older_than_s=-60)  # temporary files
    assert not list(maintenance.verify(local_store)), "what was in the way is gone"
    plant(local_store, place, victim)
    maintenance.remove(local_store, "clip")
    assert untouched()
    assert local_store.list() == []


def test_a_linked_video_is_named_and_only_the_link_removed(
    local_store: Store, victim: Path, untouched: Callable[[], bool]
) -> None:
    add(local_store, "other")
    link = Path(local_store.url, "videos/clip")
    link.symlink_to(victim)
    rows = {info.id: info for info in local_store.list()}
    assert rows["other"].status == "complete"
    assert rows["clip"].status == "failed"
    assert "symbolic link" in (rows["clip"].reason or "")
    assert [problem.object for problem in maintenance.verify(local_store)] == ["videos/clip"]
    assert [problem.object for problem in maintenance.verify(local_store, "clip")] == ["videos/clip"]
    for access in (local_store.read, local_store.info, lambda video: local_store.begin(video, intent())):
        with pytest.raises(CorruptionError, match="is a symbolic link"):
            access("clip")
    assert maintenance.gc(local_store, older_than_s=-60, partial=True) == []
    assert link.is_symlink(), "no job left it behind"
    maintenance.remove(local_store, "clip")
    assert not link.is_symlink()
    assert untouched()
    assert [info.id for info in local_store.list()] == ["other"]


def test_links_within_a_store_are_not_followed_either(local_store: Store) -> None:
    add(local_store, "clip")
    Path(local_store.url, "videos/again").symlink_to("clip")
    Path(local_store.url, "videos/clip/loop").symlink_to(".")
    assert {problem.object for problem in maintenance.verify(local_store)} == {"videos/again", "videos/clip/loop"}
    maintenance.remove(local_store, "again")
    assert [garbage.object for garbage in maintenance.gc(local_store, older_than_s=-60)] == ["videos/clip/loop"]
    np.testing.assert_array_equal(local_store.read("clip"), kv(7))
    assert list(maintenance.verify(local_store)) == []


@pytest.mark.parametrize("key", ["zarr.json", "videos", "videos/zarr.json"])
def test_a_store_that_is_a_link_inside_is_refused(local_store: Store, key: str) -> None:
    place = Path(local_store.url, key)
    place.rename(Path(local_store.url).with_name("elsewhere"))
    place.symlink_to(Path(local_store.url).with_name("elsewhere"))
    with pytest.raises(StoreError, match=rf"{key} is a symbolic link"):
        open_store(local_store.url)


def test_a_store_may_be_reached_through_a_link(local_store: Store, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(local_store.url)
    store = open_store(str(tmp_path / "here"), "a")
    add(store, "clip")
    np.testing.assert_array_equal(local_store.read("clip"), kv(7))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path has 107 bytes at most
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "FIFO"), (make_socket, "socket")])
@pytest.mark.parametrize("place", ["zarr.json", f"{KV}/c.0.0.0.0.0.0", f"{TIMES}/c.0.0", "extra"])
def test_nothing_but_plain_files_is_opened(
    local_store: Store, make: Callable[[Path], None], kind: str, place: str
) -> None:
    add(local_store, "clip")
    path = Path(local_store.url, "videos/clip", place)
    path.unlink(missing_ok=True)
    make(path)
    if place != "extra":
        read = local_store.timestamps if place.startswith("timestamps") else local_store.read
        with pytest.raises(CorruptionError, match=f"{place} is a {kind}"):
            read("clip")
    assert f"videos/clip/{place}" in {problem.object for problem in maintenance.verify(local_store)}
    maintenance.gc(local_store, older_than_s=-60)
    add(local_store, "clip", content="b")
    assert list(maintenance.verify(local_store)) == []
    maintenance.remove(local_store, "clip")
    assert local_store.ids() == []


def test_an_export_takes_nothing_from_behind_a_link(local_store: Store, victim: Path, tmp_path: Path) -> None:
    add(local_store, "clip")
    plant(local_store, KV, victim)
    with pytest.raises(CorruptionError, match="symbolic link"):
        maintenance.export(local_store, ["clip"], str(tmp_path / "copy"))


def test_other_work_beside_a_link_goes_on(local_store: Store, victim: Path) -> None:
    Path(local_store.url, "videos/bad").symlink_to(victim)
    wanted = intent()
    receipts = write(local_store, "clip", wanted, kv(7))
    assert open_store(local_store.url, "a", header=HEADER).complete("clip", wanted.token, receipts, times(7), 7.0)
