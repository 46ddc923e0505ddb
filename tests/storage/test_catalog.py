"""The catalog of an object store: a listing with it is the listing without it, whatever falls between any two steps."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from tests.storage.samples import HEADER, add, intent, kv, write

from vococache.storage import Store, catalog, maintenance, open_store, sealing
from vococache.storage.documents import Bytes
from vococache.storage.format import DOCUMENT
from vococache.storage.remote_objects import RemoteObjects


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: str) -> Store:
    base = "memory:/" if request.param == "memory" else request.getfixturevalue("s3_url")
    return open_store(f"{base}/{time.time_ns()}", "a", header=HEADER)


def seal(store: Store, older_than_s: float = -60) -> None:
    sealing.seal(store, older_than_s=older_than_s)


def check(store: Store, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A listing is what the documents say; the videos whose documents it asked for."""
    with monkeypatch.context() as without:
        without.setattr(catalog, "read", lambda *_: None)
        expected = store.list()
    asked: set[str] = set()
    get = RemoteObjects.get

    def noted(objects: RemoteObjects, key: str) -> bytes | None:
        if key.endswith(f"/{DOCUMENT}"):
            asked.add(key.split("/")[1])
        return get(objects, key)

    with monkeypatch.context() as watched:
        watched.setattr(RemoteObjects, "get", noted)
        assert store.list() == expected
    return asked


def test_only_what_changed_is_asked(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        add(remote, f"v{number}", segments=2)
    remote.fail("bad", "no video stream")
    write(remote, "partial", intent(), kv(4))
    assert len(check(remote, monkeypatch)) == 8, "there is no catalog yet"
    seal(remote)
    assert check(remote, monkeypatch) == set()
    add(remote, "v1", segments=3, content="b")
    remote.record_source("v2", "/elsewhere.mp4", 1, 2)
    maintenance.remove(remote, "v3")
    add(remote, "new", segments=1)
    assert check(remote, monkeypatch) == {"v1", "v2", "v3", "new"}
    seal(remote, older_than_s=60)  # swaps that can happen no more are settled at once, deletions by time
    assert check(remote, monkeypatch) == {"v3"}
    catalog.mark(remote.objects, "v0", remote.objects.get(f"videos/v0/{DOCUMENT}"))  # a swap that may happen yet
    seal(remote, older_than_s=60)
    assert check(remote, monkeypatch) == {"v0", "v3"}
    seal(remote)
    assert check(remote, monkeypatch) == set()
    assert list(maintenance.verify(remote)) == []
    assert [info.id for info in remote.list()] == ["bad", "new", "partial", "v0", "v1", "v2", "v4", "v5"]


def test_parts_are_put_together_and_rebuilt(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(sealing.MOST_PARTS + 3):
        remote.fail(f"v{number}", "x")
        seal(remote)
    assert len(remote.objects.names(catalog.PARTS)) == 3
    assert check(remote, monkeypatch) == set()
    (part, *_) = remote.objects.walk(catalog.PARTS)
    remote.objects.put(part.key, (remote.objects.get(part.key) or b"").replace(b"v1", b"v7"))
    assert len(check(remote, monkeypatch)) == sealing.MOST_PARTS + 3, "a damaged part is not believed"
    seal(remote)
    assert check(remote, monkeypatch) == set()


def test_a_well_sealed_part_is_checked_like_documents(remote: Store) -> None:
    add(remote, "clip")
    summary = {"store": remote.identity, "video": "clip", "status": "complete", "segments": "x"}
    rows = {"clip": [summary, 5], "list": [], "text": "x", "../x": [summary, 5], "number": [7, 7]}
    data = catalog.documents.seal(catalog.HEAD, {"store": remote.identity, "full": True, "rows": rows})
    remote.objects.delete(entry.key for entry in remote.objects.walk(catalog.MARKS))
    remote.objects.put(f"{catalog.PARTS}/00000001", data)
    assert {info.id: info.status for info in remote.list()} == dict.fromkeys(rows, "failed")
    find = remote.finder(catalog.FEW)
    assert find("clip") == remote.list()[1]
    assert find("other") is None
    for vectors in ({"x": 1}, {"x": [1, [["clip", "g", 5, 2]]]}, ["x"]):
        fields = {"store": remote.identity, "full": True, "rows": {}, "vectors": vectors}
        remote.objects.put(f"{catalog.PARTS}/00000001", catalog.documents.seal(catalog.HEAD, fields))
        assert catalog.read(remote.objects, remote.identity) is None
        assert [info.status for info in remote.list()] == ["complete"]


def test_where_it_pays(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        remote.fail(f"v{number}", "x")
    sealing.seal(remote, least=7)
    assert len(check(remote, monkeypatch)) == 6, "few documents are no reason for one"
    sealing.seal(remote, least=6)
    assert check(remote, monkeypatch) == set()
    remote.fail("v1", "y")
    sealing.seal(remote, least=2)
    assert check(remote, monkeypatch) == {"v1"}
    sealing.seal(remote, least=2, written=2)
    assert check(remote, monkeypatch) == set()
    assert catalog.read(remote.objects, remote.identity, most_bytes=10) is None
    monkeypatch.setattr(catalog, "FEW", 6)
    found = remote.finder(6)
    remote.fail("v2", "z")
    assert [info.reason for video in ("v1", "v2") if (info := found(video))] == ["y", "x"], "as it was then"


def test_what_is_removed_behind_our_back_is_seen_by_gc(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for video in "abc":
        add(remote, video, segments=2)
    maintenance.gc(remote)
    assert check(remote, monkeypatch) == set()
    remote.objects.delete([entry.key for entry in remote.objects.walk("videos/b")])
    assert [info.id for info in remote.list()] == ["a", "b", "c"]
    maintenance.gc(remote)
    assert check(remote, monkeypatch) == set()
    assert [info.id for info in remote.list()] == ["a", "c"]


class Interrupted(RemoteObjects):
    """`work` is done just before step number `at` that changes something."""

    def __init__(self, url: str, at: int, work: Callable[[], object]) -> None:
        super().__init__(url)
        self.threads, self.steps, self.at, self.work = 1, 0, at, work

    def _step(self) -> None:
        self.steps += 1
        if self.steps - 1 == self.at:
            self.work()

    def put(self, key: str, data: Bytes) -> None:
        self._step()
        super().put(key, data)

    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        self._step()
        return super().create(key, data, tail)

    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        self._step()
        return super().replace(key, expected, data)

    def delete(self, keys: object) -> None:
        self._step()
        super().delete(keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("own", ["ingest", "seal"])
def test_whatever_falls_between(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is right in the middle of an ingest and after it, when a catalog is sealed, and the other way round."""
    for at in range(100):
        url = f"memory://between/{time.time_ns()}"
        store = open_store(url, "a", header=HEADER)
        add(store, "other")
        seal(store)
        add(store, "clip")
        works: dict[str, Callable[[Store], object]] = {
            "ingest": lambda store: add(store, "clip", content="b", seed=3),
            "seal": partial(seal, older_than_s=0.5),  # such marks as an ingest under way has are younger
        }
        other = works["seal" if own == "ingest" else "ingest"]

        def work(store: Store = store, other: Callable[[Store], object] = other) -> None:
            other(store)
            check(store, monkeypatch)

        objects = Interrupted(url, at, work)
        works[own](Store(objects, store.header, store.identity))
        check(store, monkeypatch)
        seal(store)
        assert check(store, monkeypatch) == set()
        if objects.steps <= at:
            assert at >= (10 if own == "ingest" else 1)
            return
