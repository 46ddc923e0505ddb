"""Killed at any moment: nothing completed is lost, nothing half-written is visible, the next run finishes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.storage.samples import HEADER, add, intent, kv, times, write

from vococache.errors import VideoNotFoundError
from vococache.storage import Store, maintenance, open_store
from vococache.storage.documents import Bytes
from vococache.storage.local_objects import LocalObjects

Snapshot = Callable[[Store], dict[str, bytes]]


class Recorder(LocalObjects):
    """Local files, with a copy of the tree after each step that changes it, and of each write torn in the middle."""

    def __init__(self, root: str, copies: Path) -> None:
        super().__init__(root)
        self.copies = copies
        self.steps: list[str] = []

    def _copy(self) -> None:
        to = self.copies / str(len(self.steps))
        shutil.copytree(self.url, to)
        self.steps.append(str(to))

    def _torn(self, key: str, data: Bytes) -> None:
        torn = Path(self.url, key).with_name(f".tmp-1-{'0' * 32}")  # what `put` itself writes before it moves it
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_bytes(bytes(data)[: len(bytes(data)) // 2])
        self._copy()
        torn.unlink()

    def put(self, key: str, data: Bytes) -> None:
        self._torn(key, data)
        super().put(key, data)
        self._copy()

    def create(self, key: str, data: Bytes, tail: Callable[[], bytes] | None = None) -> bool:
        self._torn(key, data)
        done = super().create(key, data, tail)
        self._copy()
        return done

    def replace(self, key: str, expected: bytes | None, data: bytes | None) -> bool:
        if data is not None:
            self._torn(key, data)
        done = super().replace(key, expected, data)
        self._copy()
        return done

    def delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            super().delete([key])
            self._copy()


def record_steps(store: Store, copies: Path, work: Callable[[Store], object]) -> list[str]:
    recorder = Recorder(store.url, copies)
    work(Store(recorder, store.header, store.identity))
    return recorder.steps


def redo(store: Store, segments: int = 8) -> None:
    add(store, "clip", segments=segments, seed=1, content="b")


@pytest.mark.parametrize("segments", [8, 3])
@pytest.mark.parametrize("before", ["nothing", "complete", "partial", "failed"])
def test_killed_after_any_step_of_an_ingest(
    local_store: Store, tmp_path: Path, snapshot: Snapshot, before: str, segments: int
) -> None:
    add(local_store, "other")
    if before == "complete":
        add(local_store, "clip", segments=11, content="a")
    elif before == "partial":
        write(local_store, "clip", intent(content="a"), kv(11))
    elif before == "failed":
        local_store.fail("clip", "was cut off")
    steps = record_steps(local_store, tmp_path / "steps", lambda store: redo(store, segments))
    assert len(steps) > 10
    done = snapshot(local_store)
    seen_complete = False
    for step in steps:
        store = open_store(step, "a")
        assert list(maintenance.verify(store)) == []
        np.testing.assert_array_equal(store.read("other"), kv(7))
        try:
            found = store.read("clip")
            if before == "complete" and not seen_complete and len(found) == 11:  # readable until it is replaced
                np.testing.assert_array_equal(found, kv(11))
            else:
                np.testing.assert_array_equal(found, kv(segments, seed=1))
                seen_complete = True
        except VideoNotFoundError:
            assert not seen_complete, "a complete video was lost"
            assert before != "complete", "the old cache was not readable while its video was redone"
        redo(store, segments)
        maintenance.gc(store, older_than_s=-1)
        assert snapshot(store) == done  # the same bytes, and nothing left behind
    assert seen_complete


def test_resuming_keeps_the_chunks(local_store: Store, tmp_path: Path) -> None:
    steps = record_steps(local_store, tmp_path / "steps", redo)
    stored = [len(open_store(step, "a").begin("clip", intent(content="b"))) for step in steps]
    assert stored == sorted(stored)
    assert {0, 1, 2, 3} == set(stored)


def test_killed_after_any_step_of_a_removal(local_store: Store, tmp_path: Path, snapshot: Snapshot) -> None:
    add(local_store, "other")
    add(local_store, "clip")
    steps = record_steps(local_store, tmp_path / "steps", lambda store: maintenance.remove(store, "clip"))
    done = snapshot(local_store)
    for step in steps:
        store = open_store(step, "a")
        assert list(maintenance.verify(store)) == []
        if step == steps[0]:  # torn in its very first write
            np.testing.assert_array_equal(store.read("clip"), kv(7))
            maintenance.remove(store, "clip")
        with pytest.raises(VideoNotFoundError):
            store.read("clip")
        maintenance.gc(store, older_than_s=-1)
        assert snapshot(store) == done


WRITER = """
import sys
from vococache.storage import open_store
from tests.storage.samples import add
store = open_store(sys.argv[1], "a")
print("ready", flush=True)
for number in range(10_000):
    add(store, f"v{number:04}", segments=9, seed=number)
"""


def test_kill_9(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    open_store(url, "a", header=HEADER)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done: set[str] = set()
    for pause in (0.05, 0.213, 0.431):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        while len(list(Path(url, "videos").glob("v*/timestamps.*"))) < len(done) + 2:  # on a slow machine too
            time.sleep(0.01)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = open_store(url, "a")
        assert list(maintenance.verify(store)) == []
        complete = {info.id for info in store.list() if info.status == "complete"}
        assert done <= complete
        done = complete
    assert done
    for video in sorted(done):
        np.testing.assert_array_equal(store.read(video), kv(9, seed=int(video[1:])))
        np.testing.assert_array_equal(store.timestamps(video), times(9))
