"""What every store does, on local disk, in fsspec's memory and on an S3 server."""

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import google_crc32c
import numpy as np
import pytest
import zarr
from tests.storage.samples import HEADER, INDEX, KV, TIMES, add, intent, kv, name, times, vectors, write

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError, VideoNotFoundError
from vococache.storage import Store, StoreReader, is_store, maintenance, open_store


def test_a_video_comes_back_bit_for_bit(store: Store) -> None:
    info = add(store, "clip", segments=7)
    assert (info.status, info.segments, info.duration, info.decoder) == ("complete", 7, 7.0, "decord")
    again = open_store(store.url)
    np.testing.assert_array_equal(again.read("clip"), kv(7))
    np.testing.assert_array_equal(again.timestamps("clip"), times(7))
    assert again.read("clip").dtype == np.float16
    assert again.info("clip") == info
    assert again.list() == [info]


def test_files_are_as_open_as_the_umask_lets_them_be(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        add(open_store(tmp_path / "store", "a", header=HEADER), "clip")
    finally:
        os.umask(before)
    found = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert {path.stat().st_mode & 0o7777 for path in found if path.is_file()} == {0o640}
    assert {path.stat().st_mode & 0o7777 for path in found if path.is_dir()} == {0o750}


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (2, 4), (3, 6), (6, 7), (1, None), (5, 5), (0, 0)])
def test_any_span_of_segments(store: Store, start: int, stop: int | None) -> None:
    add(store, "clip", segments=7)
    np.testing.assert_array_equal(store.read("clip", start, stop), kv(7)[start:stop])
    parts: dict[int, np.ndarray] = {}
    store.read_parts("clip", start, 7 if stop is None else stop, lambda index, part: parts.update({index: part}))
    found = [parts[index] for index in sorted(parts)]
    np.testing.assert_array_equal(np.concatenate([kv(0), *found]), kv(7)[start:stop])
    assert sorted(parts) == [0, *np.cumsum([len(part) for part in found])][: len(parts)]


@pytest.mark.filterwarnings("ignore:Object at (catalog|changed) is not recognized")  # Zarr lists all of the root
def test_plain_zarr_reads_it(store: Store) -> None:
    add(store, "clip", segments=7)
    group = zarr.open_group(store.url, mode="r")
    np.testing.assert_array_equal(group[f"videos/clip/{KV}"][:], kv(7))  # type: ignore[index]
    np.testing.assert_array_equal(group[f"videos/clip/{TIMES}"][:], times(7))  # type: ignore[index]
    np.testing.assert_array_equal(group[f"videos/clip/{INDEX}"][:], vectors(7))  # type: ignore[index, arg-type]
    assert group.attrs["vococache"]["format_version"] == 3  # type: ignore[index, call-overload]
    array = group[f"videos/clip/{KV}"]
    assert isinstance(array, zarr.Array)
    assert array.chunks == (3, *HEADER.segment_shape)
    assert dict(group.groups()).keys() == {"videos"}


def test_a_bucket_that_is_missing_is_named(s3_url: str) -> None:
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match="bucket does not exist"):
            open_store("s3://no-such-bucket/caches", mode, header=HEADER)  # type: ignore[arg-type]


def test_chunks_of_zeros_are_written(store: Store) -> None:
    write(store, "zeros", intent(), np.zeros_like(kv(3)))
    file_system, root = fsspec.url_to_fs(store.url, use_listings_cache=False)
    assert file_system.info(f"{root}/videos/zarr.json")["size"] > 0
    found = file_system.cat_file(f"{root}/videos/zeros/{KV}/c.0.0.0.0.0.0")
    assert found[:-4] == bytes(3 * HEADER.segment_bytes)
    assert int.from_bytes(found[-4:], "little") == google_crc32c.value(found[:-4])


def test_bytes_are_told_apart(store: Store) -> None:
    info = add(store, "clip", segments=7)
    file_system, root = fsspec.url_to_fs(store.url, use_listings_cache=False)
    objects = file_system.find(f"{root}/videos/clip", detail=True)
    assert info.bytes == sum(entry["size"] for entry in objects.values())
    assert info.payload_bytes == kv(7).nbytes + times(7).nbytes + 7 * HEADER.index_segment_bytes
    assert info.padding_bytes == 2 * (HEADER.segment_bytes + HEADER.index_segment_bytes)
    documents = sum(entry["size"] for path, entry in objects.items() if path.endswith(".json"))
    assert info.metadata_bytes == documents + 2 * 3 * 4  # what three chunks and their vectors end in


def test_what_is_written_whole_is_as_one_that_is_written_by_chunks(store: Store) -> None:
    wanted = intent()
    store.begin("whole", wanted)
    with pytest.raises(InputError, match="3 segments, and timestamps of 2"):
        store.write_whole("whole", wanted.token, kv(3), times(2), 3.0)
    about = {"damage": {"packets": 1, "seconds": 0.5}}, {"year": 2024}
    done = store.write_whole("whole", wanted.token, kv(3), times(3), 3.0, *about)
    receipts = write(store, "parts", wanted, kv(3))
    info = store.complete("parts", wanted.token, receipts, times(3), 3.0, *about)
    assert done == (receipts[0], replace(info, id="whole"))
    assert store.info("whole") == done[1]
    assert store.write_whole("whole", wanted.token, kv(3), times(3), 3.0, *about) == done, "a retry finds it"
    assert store.write_whole("whole", intent(content="b").token, kv(3), times(3), 3.0) is None
    np.testing.assert_array_equal(store.vectors("whole"), vectors(3))  # type: ignore[arg-type]


def test_nothing_of_a_partial_video_is_readable(store: Store) -> None:
    write(store, "clip", intent(), kv(7))
    assert store.info("clip").status == "partial"
    for access in (store.read, store.timestamps):
        with pytest.raises(VideoNotFoundError, match="is partial"):
            access("clip")


def test_chunks_come_in_any_order(store: Store) -> None:
    store.begin("clip", intent())
    receipt = store.write_chunk("clip", intent().token, 11, kv(3))
    assert store.begin("clip", intent()) == {11: receipt}


def test_interrupted_work_resumes_at_its_chunks(store: Store) -> None:
    receipts = write(store, "clip", intent(), kv(7))
    resumed = open_store(store.url, "a")
    assert resumed.begin("clip", intent()) == {receipt.index: receipt for receipt in receipts}
    resumed.complete("clip", intent().token, receipts[::-1], times(7), 7.0)
    np.testing.assert_array_equal(store.read("clip"), kv(7))


def test_writing_twice_changes_nothing(store: Store) -> None:
    first = add(store, "clip")
    assert add(store, "clip") == first
    receipt = store.write_chunk("clip", intent().token, 0, kv(3))
    assert receipt == store.begin("clip", intent())[0]
    np.testing.assert_array_equal(store.read("clip"), kv(7))


def test_another_intent_discards_the_chunks(store: Store) -> None:
    write(store, "clip", intent(content="a"), kv(9))
    assert store.begin("clip", intent(content="b")) == {}
    assert store.write_chunk("clip", intent(content="a").token, 0, kv(3)) is None
    assert add(store, "clip", segments=4, seed=1, content="b").segments == 4
    np.testing.assert_array_equal(store.read("clip"), kv(4, seed=1))
    kv_b, index_b, times_b = (f"videos/clip/{name(array, 'b')}" for array in ("kv", "index", "timestamps"))
    assert [entry.key for entry in store.objects.walk("videos/clip")] == [
        *(f"{index_b}/{key}" for key in ("c.0.0.0.0", "c.1.0.0.0", "zarr.json")),
        *(f"{kv_b}/{key}" for key in ("c.0.0.0.0.0.0", "c.1.0.0.0.0.0", "zarr.json")),
        *(f"{times_b}/{key}" for key in ("c.0.0", "zarr.json")),
        "videos/clip/zarr.json",
    ]


def test_redoing_a_complete_video(store: Store) -> None:
    add(store, "clip", segments=7, content="a")
    add(store, "clip", segments=2, seed=3, content="b")
    np.testing.assert_array_equal(store.read("clip"), kv(2, seed=3))


def test_the_old_cache_is_read_while_a_video_is_redone(store: Store) -> None:
    add(store, "clip", segments=7, content="a")
    write(store, "clip", intent(content="b"), kv(8, seed=3))
    info = store.info("clip")
    assert (info.status, info.segments, (info.begun or {})["source"]) == ("complete", 7, "/videos/b.mp4")
    assert store.list() == [info]
    np.testing.assert_array_equal(store.read("clip"), kv(7))
    assert set(store.begin("clip", intent(content="b"))) == {0, 1, 2}


def test_a_stale_workers_late_chunk_is_found(store: Store) -> None:
    """That of another intent lies elsewhere. Damage and holes are found on resuming, holes at the end too."""
    receipts = write(store, "clip", intent(), kv(7))
    place = f"videos/clip/{name('kv', 'b')}/c.1.0.0.0.0.0"
    store.objects.put(place, kv(3, seed=9).tobytes())  # after the last check of its intent
    store.objects.put(f"videos/clip/{KV}/c.0.0.0.0.0.0", kv(3, seed=9).tobytes() + b"1234")
    store.objects.delete([f"videos/clip/{INDEX}/c.1.0.0.0"])
    with pytest.raises(CorruptionError, match=r"c\.1\.0.*found no object"):
        store.complete("clip", intent().token, receipts, times(7), 7.0)
    assert set(store.begin("clip", intent())) == {2}
    add(store, "clip")
    np.testing.assert_array_equal(store.read("clip"), kv(7))
    assert [item.object for item in maintenance.gc(store, older_than_s=-60)] == [place]


def test_completing_a_replaced_intent_is_refused(store: Store) -> None:
    receipts = write(store, "clip", intent(content="a"), kv(7))
    store.begin("clip", intent(content="b"))
    with pytest.raises(StoreMismatchError, match="begun again"):
        store.complete("clip", intent(content="a").token, receipts, times(7), 7.0)


def test_failed_videos_are_rows(store: Store) -> None:
    write(store, "clip", intent(), kv(3))
    info = store.fail("clip", "no video stream", source="/videos/clip.mp4", size=12, mtime_ns=5)
    assert (info.status, info.reason, info.source, info.size, info.mtime_ns) == (
        "failed",
        "no video stream",
        "/videos/clip.mp4",
        12,
        5,
    )
    assert store.list() == [info]
    assert [entry.key for entry in store.objects.walk("videos/clip")] == ["videos/clip/zarr.json"]
    with pytest.raises(VideoNotFoundError, match="no video stream"):
        store.read("clip")
    assert add(store, "clip").status == "complete"


def test_what_a_manifest_says_is_kept(store: Store) -> None:
    said = {"course": "physics", "year": 2024, "score": 0.5, "live": True}
    receipts = write(store, "clip", intent(), kv(7))
    info = store.complete("clip", intent().token, receipts, times(7), 7.0, metadata=said)
    assert info.metadata == said
    assert open_store(store.url).list() == [info]
    store.record_metadata("clip", {"course": "art"})
    assert store.info("clip").metadata == {"course": "art"}
    store.record_metadata("clip", {})
    assert store.info("clip").metadata is None
    np.testing.assert_array_equal(store.read("clip"), kv(7))
    for bad in ({"x": []}, {"x": "y" * 1001}, {"": 1}):
        with pytest.raises(InputError, match="metadata"):
            store.record_metadata("clip", bad)
        with pytest.raises(InputError, match="metadata"):
            store.complete("clip", intent().token, receipts, times(7), 7.0, metadata=bad)


def test_list_is_sorted_and_names_are_kept(store: Store) -> None:
    names = ["b", "a b", "-x", "日本", "naïve", "50%25 off", "v_1.2"]
    for video in names:
        store.fail(video, "x")
    assert [info.id for info in store.list()] == sorted(names)


def test_unknown_videos_name_the_nearest(store: Store) -> None:
    add(store, "holiday")
    with pytest.raises(VideoNotFoundError, match=r"did you mean 'holiday'\?.*voco ingest"):
        store.read("holidy")


@pytest.mark.parametrize("video", ["", "..", "../x", "a/b", ".hidden", "a\\b", "zarr.json", "__x", "a\n", "x" * 201])
def test_unsafe_ids_are_refused(store: Store, video: str) -> None:
    for access in (store.info, store.read, lambda v: store.begin(v, intent()), lambda v: store.fail(v, "x")):
        with pytest.raises(InputError, match="expected a safe one"):
            access(video)


def test_opening_another_compressors_store_is_refused(store: Store) -> None:
    import dataclasses

    other = dataclasses.replace(HEADER, fingerprint="0" * 64, model="other")
    with pytest.raises(StoreMismatchError, match="another compressor"):
        open_store(store.url, "a", header=other)
    with pytest.raises(StoreMismatchError, match="expected tokens 3, found 2"):
        open_store(store.url, "r", header=dataclasses.replace(HEADER, tokens=3))
    looser = dataclasses.replace(HEADER, chunk_segments=99, micro_batch=99, model="elsewhere")
    assert open_store(store.url, "a", header=looser).header == HEADER


def test_reading_stores_do_not_write(store: Store) -> None:
    reader = open_store(store.url)
    assert type(reader) is StoreReader
    assert not {"begin", "write_chunk", "append", "complete", "fail", "discard"} & set(dir(reader))


def test_absent_stores(url: str) -> None:
    assert not is_store(url)
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match="no store at"):
            open_store(url, mode)  # type: ignore[arg-type]
    open_store(url, "a", header=HEADER)
    assert is_store(url)


def test_pickles_small(store: Store) -> None:
    add(store, "clip")
    data = pickle.dumps(store)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).read("clip"), kv(7))


def test_forked_processes_read(store: Store) -> None:
    """As a data loader's workers do, when this process has read before."""
    add(store, "v", 5)
    assert np.array_equal(store.read("v"), kv(5))
    child = multiprocessing.get_context("fork").Process(target=_read_and_leave, args=(store,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _read_and_leave(store: Store) -> None:
    os._exit(0 if len(store.read("v")) == 5 else 1)


def test_an_object_is_created_once(store: Store) -> None:
    assert store.objects.create("new", b"a", lambda: b"b")
    assert not store.objects.create("new", b"c")
    assert store.objects.get("new") == b"ab"


def test_an_object_is_replaced_by_who_knows_it(store: Store) -> None:
    assert not store.objects.replace("new", b"a", b"b")
    assert store.objects.replace("new", None, b"a")
    assert not store.objects.replace("new", None, b"b")
    assert not store.objects.replace("new", b"b", b"c")
    assert store.objects.replace("new", b"a", b"b")
    assert store.objects.get("new") == b"b"
    assert not store.objects.replace("new", b"a", None)
    assert store.objects.replace("new", b"b", None)
    assert store.objects.get("new") is None


def test_no_replacement_is_lost(store: Store) -> None:
    """Each of many at once sees what the one before it made."""
    store.objects.put("names", b"")

    def enter(number: int) -> None:
        done = False
        while not done:
            found = store.objects.get("names") or b""
            done = store.objects.replace("names", found, found + b"%x" % number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enter, range(12)))
    assert sorted(store.objects.get("names") or b"") == sorted(b"0123456789ab")
