"""The driver's half of ingest: rows in any order, twice, stale or missing."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vococache.pipeline.ingest.outcomes import Collector
from vococache.storage import Intent, Store, StoreHeader, open_store
from vococache.workers.rows import End, Row, VideoTask

HEADER = StoreHeader(
    fingerprint="f" * 64, model="m", layers=1, kv_heads=1, tokens=1, head_dim=2, frames_per_segment=1,
    dtype="float32", compute_dtype="float32", geometry={}, prompt={}, chunk_segments=2, micro_batch=2,
)  # fmt: skip


def intent_of(decoder: str = "decord") -> Intent:
    return Intent(
        source="/v.mp4", content_hash="0" * 64, size=1, mtime_ns=1, sampling={}, decoder=decoder, chunk_segments=2
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), "a", header=HEADER)


def collecting(store: Store) -> Collector:
    """A collector that waits for the videos of these tests."""
    collector = Collector(store)
    names = ("a", "b", "whole", "torn")
    assert len(list(collector.expect(VideoTask(video=name, source="/v.mp4") for name in names))) == 4
    return collector


def written(store: Store, video: str, attempt: int, intent: Intent, chunks: int) -> list[Row]:
    """The rows of an attempt whose chunks are in the store; values tell video time apart."""
    store.begin(video, intent)
    rows = []
    for index in range(chunks):
        kv = np.full((2, 1, 2, 1, 1, 2), 10 * attempt + index, np.float32)
        rows.append(
            Row(
                video=video, attempt=attempt, index=index, intent=intent.token,
                timestamps=np.array([[2.0 * index], [2.0 * index + 1]]),
                receipt=store.write_chunk(video, intent.token, index, kv),
            )
        )  # fmt: skip
    end = End(duration=2.0 * chunks, decoder=intent.decoder, chunks=chunks)
    return [*rows[:-1], replace(rows[-1], end=end)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_may_come_in_any_order_and_twice(store: Store, seed: int) -> None:
    rows = written(store, "a", 0, intent_of(), 4) + written(store, "b", 0, intent_of(), 1)
    rows += rows[:3]
    random.Random(seed).shuffle(rows)
    collector = collecting(store)
    infos = [info for row in rows if (info := collector.add(row))]
    assert sorted(info.id for info in infos) == ["a", "b"]
    assert collector.waiting.keys() == {"whole", "torn"}
    assert store.timestamps("a")[:, 0].tolist() == list(range(8))
    assert store.read("a")[:, 0, 0, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_abandoned_attempt_is_neither_waited_for_nor_used(store: Store) -> None:
    stale = [replace(row, end=None) for row in written(store, "a", 0, intent_of(), 2)]  # decord gave up
    good = written(store, "a", 1, intent_of("pyav"), 3)
    collector = collecting(store)
    infos = [collector.add(row) for row in [stale[0], *good, stale[1]]]
    assert [info.decoder for info in infos if info] == ["pyav"]
    assert store.read("a")[::2, 0, 0, 0, 0, 0].tolist() == [10, 11, 12]


def test_a_chunk_that_was_removed_is_noticed(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    next(Path(store.url).glob("videos/a/kv.*/c*1.0.0.0.0.0")).unlink()
    collector = collecting(store)
    assert [collector.add(row) for row in rows] == [None] * 2
    assert "a" in collector.waiting
    assert store.list()[0].status == "partial"


def test_a_video_that_another_run_began_anew_is_left_to_it(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    store.begin("a", intent_of("pyav"))
    collector = collecting(store)
    assert [collector.add(row) for row in rows] == [None] * 2
    assert "a" in collector.waiting


def test_a_chunk_that_was_not_written_leaves_the_video_unfinished(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    rows[1] = replace(rows[1], receipt=None)
    collector = collecting(store)
    assert [collector.add(row) for row in rows] == [None] * 2
    assert "a" in collector.waiting


def test_rows_that_never_came_leave_the_video_unfinished(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    for missing in rows:
        collector = collecting(store)
        assert [collector.add(row) for row in rows if row is not missing] == [None]
        assert "a" in collector.waiting


def test_an_error_settles_the_video(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    failure = Row(video="a", error="decord: broken", end=End(source="/v.mp4", size=5, mtime_ns=7))
    collector = collecting(store)
    infos = [collector.add(row) for row in [rows[0], failure, *rows[1:]]]
    assert [info.status for info in infos if info] == ["failed"]
    (info,) = store.list()
    assert (info.status, info.reason, info.size, info.mtime_ns) == ("failed", "decord: broken", 5, 7)
    assert "a" not in collector.waiting


def completed(store: Store) -> None:
    collector = collecting(store)
    for row in written(store, "a", 0, intent_of(), 2):
        collector.add(row)
    assert store.info("a").status == "complete"


@pytest.mark.parametrize("content_hash", [None, "0" * 64])
def test_a_complete_video_outlives_a_source_out_of_reach(store: Store, content_hash: str | None) -> None:
    completed(store)
    collector = collecting(store)
    info = collector.add(Row(video="a", error="no such file", end=End(source="/v.mp4", content_hash=content_hash)))
    assert info is not None
    assert (info.status, info.reason) == ("failed", "no such file (the cache that the store holds is kept)")
    assert "a" not in collector.waiting
    assert store.info("a").status == "complete"
    assert len(store.read("a")) == 4


def test_a_complete_video_goes_when_its_source_became_another(store: Store) -> None:
    completed(store)
    info = collecting(store).add(Row(video="a", error="broken", end=End(source="/v.mp4", content_hash="1" * 64)))
    assert info == store.info("a")
    assert store.info("a").status == "failed"


def test_a_chunk_that_fails_names_its_video(store: Store) -> None:
    rows = written(store, "a", 0, intent_of(), 2)
    info = collecting(store).add(replace(rows[0], receipt=None, timestamps=None, error="not finite"))
    assert info == store.info("a")
    assert (info.status, info.source, info.size, info.mtime_ns) == ("failed", "/v.mp4", 1, 1)


def test_what_a_manifest_says_is_kept(store: Store) -> None:
    rows = [*written(store, "a", 0, intent_of(), 1), *written(store, "b", 0, intent_of(), 1)]
    rows[0] = replace(rows[0], end=replace(rows[0].end, metadata={"year": 2024}))  # type: ignore[type-var]
    collector = collecting(store)
    for row in rows:
        collector.add(row)
    assert [info.metadata for info in store.list()] == [{"year": 2024}, None]


def test_what_was_found_of_the_source_stands_in_its_row(store: Store) -> None:
    """Damage and discontinuities; and nothing at all where there is nothing to tell."""
    rows = written(store, "whole", 0, intent_of(), 1) + written(store, "torn", 0, intent_of(), 1)
    findings = {"damage": {"packets": 2, "seconds": 0.5}, "discontinuities": 1}
    rows[-1] = replace(rows[-1], end=replace(rows[-1].end, findings=findings))  # type: ignore[type-var]
    collector = collecting(store)
    for row in rows:
        collector.add(row)
    assert {info.id: info.findings for info in store.list()} == {"whole": {}, "torn": findings}
    assert store.info("torn").damage == findings["damage"]
    documents = {name: (Path(store.url) / f"videos/{name}/zarr.json").read_text() for name in ("whole", "torn")}
    assert "damage" in documents["torn"]
    assert "damage" not in documents["whole"]
    assert "discontinuities" not in documents["whole"]
