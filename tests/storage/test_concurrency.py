"""Two at one store at once: whatever falls between any two steps of the one, nothing wrong is ever read.

Another's whole work is put between each pair of neighbouring writes of an ingest, one pair after the other.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.storage.samples import HEADER, add, kv, times
from tests.storage.test_crash import record_steps

from vococache.errors import CorruptionError, VideoNotFoundError, VoCoError
from vococache.storage import Store, StoreReader, maintenance, open_store
from vococache.storage.documents import Bytes, Stamp
from vococache.storage.local_objects import LocalObjects
from vococache.storage.maintenance import GC_AGE_S

Snapshot = Callable[[Store], dict[str, bytes]]
Work = Callable[[Store], object]


class Interrupted(LocalObjects):
    """Local files; `work` is done just before step number `at` that changes them."""

    def __init__(self, root: str, at: int, work: Callable[[], object]) -> None:
        super().__init__(root)
        self.steps, self.at, self.work = 0, at, work

    def _step(self) -> None:
        if self.steps == self.at:
            self.work()
        self.steps += 1

    def put(self, key: str, data: Bytes) -> None:
        self._step()
        super().put(key, data)

    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        def last_moment() -> bytes:
            end = b"" if tail is None else tail()
            self._step()
            return end

        return super().create(key, data, last_moment)

    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        self._step()
        return super().replace(key, expected, data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            self._step()
            super().delete([key])


Interruptions = Callable[..., Iterator[tuple[Store, VoCoError | None]]]


@pytest.fixture
def interruptions(tmp_path: Path) -> Interruptions:
    """Stores after `own` with `other` in front of its first, second, ... step, and how `own` failed, if it did."""

    def run(prepare: Work, own: Work, other: Work) -> Iterator[tuple[Store, VoCoError | None]]:
        for at in range(1000):
            url = str(tmp_path / f"interrupted-{at}")
            store = open_store(url, "a", header=HEADER)
            prepare(store)
            objects = Interrupted(url, at, partial(other, store))
            error = None
            try:
                own(Store(objects, store.header, store.identity))
            except VoCoError as raised:
                error = raised
            if objects.steps <= at:
                assert at > 5
                return
            yield store, error

    return run


def nothing(store: Store) -> None:
    pass


def ingest(video: str, content: str = "a", seed: int = 0, segments: int = 8) -> Callable[[Store], object]:
    return lambda store: add(store, video, segments=segments, seed=seed, content=content)


@pytest.mark.parametrize("prepare", [nothing, ingest("mine", "b", 3)])
def test_two_ingests_of_different_videos(
    local_store: Store, interruptions: Interruptions, snapshot: Snapshot, prepare: Work
) -> None:
    for video in ("mine", "theirs"):
        ingest(video)(local_store)
    for store, error in interruptions(prepare, ingest("mine"), ingest("theirs")):
        assert error is None
        assert snapshot(store) == snapshot(local_store)


@pytest.mark.parametrize("segments", [8, 3])
def test_two_equal_ingests_of_one_video(
    local_store: Store, interruptions: Interruptions, snapshot: Snapshot, segments: int
) -> None:
    own = ingest("clip", segments=segments)
    own(local_store)
    for store, error in interruptions(nothing, own, own):
        assert error is None
        maintenance.gc(store, older_than_s=-1)
        assert snapshot(store) == snapshot(local_store)


@pytest.mark.parametrize("segments", [8, 3])
@pytest.mark.parametrize("other", ["redo", "remove"])
def test_an_ingest_whose_video_is_redone_or_removed(
    local_store: Store, interruptions: Interruptions, snapshot: Snapshot, other: str, segments: int
) -> None:
    """It is told, or it finishes; the same command again finishes. Nothing of the other's is ever damaged."""

    def remove(store: Store) -> None:
        if "clip" in store.ids():
            maintenance.remove(store, "clip")

    own = ingest("clip", segments=segments)
    own(local_store)
    done = snapshot(local_store)
    told = 0
    work = remove if other == "remove" else ingest("clip", "b", 5, segments)
    for store, error in interruptions(nothing, own, work):
        told += error is not None
        problems = [problem for problem in maintenance.verify(store) if problem.problem != "expected no such object"]
        assert not problems
        try:
            found = store.read("clip")
            assert any(np.array_equal(found, kv(segments, seed=seed)) for seed in (0, 5))
        except VideoNotFoundError:
            assert error is not None or other == "remove", "nobody was told that the video is not there"
        own(store)
        maintenance.gc(store, older_than_s=-1)
        assert snapshot(store) == done
    assert told


def test_another_video_is_removed(local_store: Store, interruptions: Interruptions, snapshot: Snapshot) -> None:
    ingest("clip")(local_store)
    for store, error in interruptions(
        ingest("other"), ingest("clip"), lambda store: maintenance.remove(store, "other")
    ):
        assert error is None
        assert snapshot(store) == snapshot(local_store)


@pytest.mark.parametrize("partial_too", [False, True])
def test_gc_during_an_ingest(
    local_store: Store, interruptions: Interruptions, snapshot: Snapshot, partial_too: bool
) -> None:
    """With its own age limit it never touches what is being made."""
    ingest("clip")(local_store)
    for store, error in interruptions(
        nothing, ingest("clip"), lambda store: maintenance.gc(store, partial=partial_too)
    ):
        assert error is None
        assert snapshot(store) == snapshot(local_store)


@pytest.mark.parametrize("years", [-20, 20])
@pytest.mark.parametrize("partial_too", [False, True])
def test_gc_by_a_clock_that_jumped(
    local_store: Store, interruptions: Interruptions, snapshot: Snapshot, partial_too: bool, years: int
) -> None:
    """Behind, it leaves everything alone. Ahead, it may take what is being made: then the ingest is told, or it
    finishes all the same; the same command again finishes.
    """
    ingest("clip")(local_store)
    ahead = GC_AGE_S - years * 365 * 86400
    for store, error in interruptions(
        nothing, ingest("clip"), lambda store: maintenance.gc(store, older_than_s=ahead, partial=partial_too)
    ):
        assert error is None or years > 0
        if error is None:
            assert snapshot(store) == snapshot(local_store)
        ingest("clip")(store)
        maintenance.gc(store, older_than_s=-1)
        assert snapshot(store) == snapshot(local_store)


class Switched(LocalObjects):
    """What a reader sees whose first `before` reads find one tree, and the later ones another."""

    def __init__(self, first: str, second: str, before: int) -> None:
        super().__init__(first)
        self.second, self.before, self.reads = second, before, 0
        self.threads = 1

    def _read(self) -> None:
        if self.reads == self.before:
            self.url = self.second
        self.reads += 1

    def get(self, key: str) -> bytes | None:
        self._read()
        return super().get(key)

    def read_into(self, key: str, out: npt.NDArray[np.uint8], trailer: int = 0) -> Stamp | None:
        self._read()
        return super().read_into(key, out, trailer)


@pytest.mark.parametrize("work", ["redo", "remove"])
def test_a_reader_during_it(local_store: Store, tmp_path: Path, work: str) -> None:
    """A reader gets the old content or the new, whole, or an error; never a mixture, whenever it looks."""
    add(local_store, "clip", segments=8, content="a")
    steps = record_steps(
        local_store,
        tmp_path / "steps",
        lambda store: (
            add(store, "clip", segments=8, seed=5, content="b") if work == "redo" else maintenance.remove(store, "clip")
        ),
    )
    outcomes = {"old": 0, "new": 0, "error": 0}
    for first in range(len(steps)):
        for second in range(first + 1, len(steps)):
            for before in range(1, 6):
                objects = Switched(steps[first], steps[second], before)
                reader = StoreReader(objects, local_store.header, local_store.identity)
                try:
                    found = reader.read("clip")
                    np.testing.assert_array_equal(reader.timestamps("clip"), times(8))
                except (CorruptionError, VideoNotFoundError):
                    outcomes["error"] += 1
                    continue
                kind = "old" if np.array_equal(found, kv(8)) else "new"
                if kind == "new":
                    np.testing.assert_array_equal(found, kv(8, seed=5))
                outcomes[kind] += 1
    assert outcomes["new" if work == "redo" else "error"]
    assert bool(outcomes["error"]) == (work == "remove"), "while it is redone it is always readable"
