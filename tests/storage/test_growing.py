"""A video whose source has not ended: read up to its last committed chunk, consistently, while it grows."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.storage.samples import INDEX, KV, TIMES, add, intent, kv, times, vectors, write
from tests.storage.test_concurrency import Switched
from tests.storage.test_crash import record_steps

from vococache.errors import CorruptionError, InputError, StoreMismatchError, VideoNotFoundError
from vococache.storage import ChunkReceipt, Store, StoreReader, VideoInfo, maintenance, open_store

TOKEN = intent().token


def grow(store: Store, segments: int, upto: int | None = None) -> list[ChunkReceipt]:
    """Write all chunks of `segments`, and commit the first `upto`; all full ones by default."""
    receipts = write(store, "live", intent(), kv(segments))
    for receipt in receipts[: segments // 3 if upto is None else upto]:
        commit(store, receipt)
    return receipts


def commit(store: Store, receipt: ChunkReceipt) -> VideoInfo:
    start = 3 * receipt.index
    return store.append("live", TOKEN, receipt, times(start + 3)[start:], start + 3.0, {"camera": "door"})


def live(store: Store) -> None:
    store.complete("live", TOKEN, grow(store, 7), times(7), 7.0)


def ended(store: Store) -> None:
    store.append("live", TOKEN, grow(store, 7)[2], times(7)[6:], 7.0, ends=True)
    store.complete_grown("live", TOKEN)


def check(store: Store, segments: int) -> None:
    np.testing.assert_array_equal(store.read("live"), kv(segments))
    np.testing.assert_array_equal(store.timestamps("live"), times(segments))
    np.testing.assert_array_equal(store.vectors("live"), vectors(segments))


def test_it_is_read_as_far_as_it_is_committed(store: Store) -> None:
    receipts = grow(store, 7, upto=1)
    assert store.info("live").status == "growing"
    check(store, 3)
    for _ in range(2):  # a retry
        info = commit(store, receipts[1])
        assert (info.status, info.segments, info.duration, info.metadata) == ("growing", 6, 6.0, {"camera": "door"})
        assert store.list() == [info]
        check(open_store(store.url), 6)
    with pytest.raises(InputError, match=r"segments 0 to 7"):
        store.read("live", 0, 7)
    assert list(maintenance.verify(store)) == []
    assert set(store.begin("live", intent())) == {0, 1, 2}, "a killed source goes on"
    maintenance.gc(store, older_than_s=-60)
    check(store, 6)


def test_in_the_end_it_is_like_any_other(store: Store) -> None:
    receipts = grow(store, 7)
    assert store.complete("live", TOKEN, receipts, times(7), 7.0).status == "complete"
    check(store, 7)
    add(store, "clip", segments=7)
    found = {entry.key.partition("/clip/")[2] for entry in store.objects.walk("videos/clip")}
    assert found == {entry.key.partition("/live/")[2] for entry in store.objects.walk("videos/live")}


def test_its_last_chunk_may_be_short_and_nothing_follows(store: Store) -> None:
    receipts = grow(store, 7)
    info = store.append("live", TOKEN, receipts[2], times(7)[6:], 7.0, ends=True)
    assert (info.status, info.segments, info.payload_bytes) == ("growing", 7, add(store, "clip", 7).payload_bytes)
    check(open_store(store.url), 7)
    assert list(maintenance.verify(store)) == []
    assert store.write_chunk("live", TOKEN, 3, kv(3)) is None
    with pytest.raises(StoreMismatchError, match="has ended"):
        store.append("live", TOKEN, replace(receipts[2], index=3), times(3), 10.0)
    complete = store.complete_grown("live", TOKEN)
    assert (complete.status, complete.segments, complete.metadata) == ("complete", 7, {"camera": "door"})
    assert store.complete_grown("live", TOKEN) == complete
    assert commit(store, receipts[1]) == complete, "a retry that comes late"
    check(store, 7)
    assert list(maintenance.verify(store)) == []


def test_whoever_grows_it_on_is_refused_when_another_has_completed_it(store: Store) -> None:
    receipts = grow(store, 9, upto=1)  # the third chunk is written, and in nobody's document
    assert store.complete_grown("live", TOKEN).segments == 3
    for _ in range(2):
        with pytest.raises(StoreMismatchError, match="has ended"):
            commit(store, receipts[1])
        assert store.write_chunk("live", TOKEN, 1, kv(3)) is None
    assert store.complete_grown("live", TOKEN).segments == 3
    check(store, 3)
    assert list(maintenance.verify(store)) == []
    assert maintenance.gc(store, older_than_s=-60) == []


def test_what_was_begun_is_abandoned_while_nothing_of_it_is_read(store: Store) -> None:
    receipts = grow(store, 7, upto=0)
    assert not store.abandon("live", intent(content="b").token)
    assert store.abandon("live", TOKEN)
    assert store.ids() == []
    with pytest.raises(StoreMismatchError):
        commit(store, receipts[0])
    grow(store, 7, upto=1)
    assert not store.abandon("live", TOKEN)
    check(store, 3)


def test_completed_by_another_at_any_step_it_is_whole(local_store: Store, tmp_path: Path) -> None:
    """And the first, which goes on as if nothing had happened, changes nothing any more."""
    seen = set()
    for step in record_steps(local_store, tmp_path / "steps", ended):
        store = open_store(step, "a")
        with suppress(StoreMismatchError):  # nothing is begun yet
            store.complete_grown("live", TOKEN)
        with suppress(StoreMismatchError):
            ended(store)
        assert list(maintenance.verify(store)) == []
        segments = store.info("live").segments
        check(store, segments)
        seen.add(segments)
    assert seen == {3, 6, 7}


def test_what_does_not_follow_is_refused(store: Store) -> None:
    receipts = grow(store, 9, upto=1)
    with pytest.raises(InputError, match="expected 1, the next one"):
        commit(store, receipts[2])
    with pytest.raises(InputError, match="of 2 segments: expected 3"):
        store.append("live", TOKEN, receipts[1], times(2), 5.0)
    store.objects.delete([f"videos/live/{KV}/c.1.0.0.0.0.0"])
    with pytest.raises(CorruptionError, match="found no object"):
        commit(store, receipts[1])
    store.begin("live", intent(content="b"))
    with pytest.raises(StoreMismatchError, match="begun again"):
        commit(store, receipts[1])
    check(store, 3)


def test_it_takes_the_place_of_what_was_there(store: Store) -> None:
    add(store, "live", segments=8, content="b")
    grow(store, 7, upto=0)
    np.testing.assert_array_equal(store.read("live"), kv(8))
    grow(store, 7, upto=1)
    check(store, 3)
    assert maintenance.gc(store, older_than_s=-60) == [], "what follows is under way"
    assert maintenance.gc(store, older_than_s=-60, partial=True) != []
    check(store, 3)
    assert {entry.key.split("/")[2] for entry in store.objects.walk("videos/live")} == {KV, INDEX, TIMES, "zarr.json"}


def test_damage_is_found(local_store: Store) -> None:
    grow(local_store, 7)
    for path in sorted(Path(local_store.url, "videos/live").rglob("*")):
        if path.is_file() and not path.name.startswith(("c.2.", "zarr")):
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            assert [problem.object for problem in maintenance.verify(local_store)] == [
                str(path.relative_to(local_store.url))
            ]
            with pytest.raises(CorruptionError):
                check(local_store, 6)
            path.write_bytes(data)
    check(local_store, 6)


@pytest.mark.parametrize("work", [live, ended])
def test_killed_at_any_step_it_reads_and_goes_on(
    local_store: Store, tmp_path: Path, work: Callable[[Store], None]
) -> None:
    seen = 0
    for step in record_steps(local_store, tmp_path / "steps", work):
        store = open_store(step, "a")
        assert list(maintenance.verify(store)) == []
        try:
            found = store.info("live").segments
            check(store, found)
        except VideoNotFoundError:
            found = 0
        assert found >= seen
        seen = found
        work(store)
        check(store, 7)
        maintenance.gc(store, older_than_s=-1)
        assert {entry.key for entry in store.objects.walk("")} == {entry.key for entry in local_store.objects.walk("")}
    assert seen == 7


def test_a_reader_sees_one_moment(local_store: Store, tmp_path: Path) -> None:
    """Its document and what that names, whenever it looks; it need not look again while the video grows."""
    steps = record_steps(local_store, tmp_path / "steps", live)
    seen: set[int] = set()
    for first, step in enumerate(steps):
        for second in steps[first + 1 :]:
            reader = StoreReader(Switched(step, second, 1), local_store.header, local_store.identity)
            try:
                found: npt.NDArray[np.float16] = reader.read("live")
            except VideoNotFoundError:
                continue
            np.testing.assert_array_equal(found, kv(len(found)))
            seen.add(len(found))
    assert seen == {3, 6, 7}
