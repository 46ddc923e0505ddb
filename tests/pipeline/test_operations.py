"""What an operator does with a store: list, sum up, remove, prune, export, merge. Each is told before it is done."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.pipeline.command import Voco
from tests.storage.samples import HEADER, add, intent, kv, write

from vococache.pipeline.prune import is_gone
from vococache.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three complete videos, one of them longer, a failed and a partial one."""
    store = open_store(str(tmp_path / "store"), "a", header=HEADER)
    for video, segments in (("clip_1", 3), ("clip_2", 8), ("other", 2)):
        add(store, video, segments)
    store.fail("broken", "no frames", source="/videos/broken.mp4", size=7, mtime_ns=1)
    write(store, "half", intent(), kv(3))
    return store


def ids(store: Store) -> list[str]:
    return [info.id for info in store.list()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["broken", "clip_1", "clip_2", "half", "other"]),
        (("--status", "complete"), ["clip_1", "clip_2", "other"]),
        (("--status", "complete", "--sort", "segments"), ["clip_2", "clip_1", "other"]),
        (("--sort", "bytes"), ["clip_2", "clip_1", "other"]),
        (("--sort", "status"), ["clip_1", "clip_2", "other", "broken", "half"]),
    ],
)
def test_ls(voco: Voco, store: Store, options: tuple[str, ...], expected: list[str]) -> None:
    found = [row["id"] for row in json.loads(voco("ls", store.url, *options, "--json")[1])]
    assert found[: len(expected)] == expected
    assert options == ("--sort", "bytes") or len(found) == len(expected)


def test_stats_of_several_stores(voco: Voco, store: Store, tmp_path: Path) -> None:
    second = open_store(str(tmp_path / "second"), "a", header=replace(HEADER, model="another"))
    add(second, "one", 7)
    code, out, _ = voco("stats", store.url, second.url, "--json")
    rows = {(row["model"], row["status"]): row for row in json.loads(out)}
    assert code == 0
    complete = rows["tiny", "complete"]
    infos = [info for info in store.list() if info.status == "complete"]
    assert (complete["videos"], complete["segments"], complete["seconds"]) == (3, 13, 13.0)
    assert complete["bytes"] == sum(info.bytes for info in infos)
    assert complete["source_bytes"] == 3000
    assert [rows["tiny", status]["videos"] for status in ("partial", "failed")] == [1, 1]
    assert rows["another", "complete"]["videos"] == 1
    assert "source_bytes" in voco("stats", store.url)[1]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (("clip_*",), {"clip_1", "clip_2"}),
        (("*", "--status", "failed"), {"broken"}),
        (("--status", "partial"), {"half"}),
        (("--from", "ids.txt"), {"other", "clip_1"}),
        (("clip_?", "--from", "ids.txt", "--status", "complete"), {"other", "clip_1", "clip_2"}),
    ],
)
def test_rm_says_first_what_it_would_do(
    voco: Voco,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    gone: set[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("other\n\n clip_1 \n")
    before = ids(store)
    code, out, _ = voco("rm", store.url, *arguments, "--dry-run")
    assert (code, {line.removeprefix("would remove ") for line in out.splitlines()}) == (0, gone)
    assert ids(store) == before
    assert voco("rm", store.url, *arguments)[0] == 0
    assert set(before) - set(ids(store)) == gone


@pytest.mark.parametrize("arguments", [(), ("nothing*",), ("clip_*", "--status", "failed"), ("nosuch",)])
def test_what_means_no_video_removes_none(voco: Voco, store: Store, arguments: tuple[str, ...]) -> None:
    before = ids(store)
    code, out, err = voco("rm", store.url, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert ids(store) == before


def test_export_and_verify_by_glob(voco: Voco, store: Store, tmp_path: Path) -> None:
    assert voco("export", store.url, "clip_*", "--to", tmp_path / "copy")[0] == 0
    assert ids(open_store(str(tmp_path / "copy"))) == ["clip_1", "clip_2"]
    next(Path(store.url).glob("videos/other/kv.*/c.*")).write_bytes(b"damaged")
    assert voco("verify", store.url, "clip_*")[0] == 0
    code, out, _ = voco("verify", store.url, "--status", "complete")
    assert (code, "videos/other/kv." in out) == (1, True)


def test_gc_says_first_what_it_would_do(voco: Voco, store: Store) -> None:
    command = ("gc", store.url, "--partial", "--older-than", 0)
    os.utime(Path(store.url))
    code, out, _ = voco(*command, "--dry-run")
    assert (code, "half" in ids(store)) == (0, True)
    assert "would remove videos/half/zarr.json" in out
    assert out.splitlines()[-1].endswith("would be freed")
    done = voco(*command)[1]
    assert "half" not in ids(store)
    assert done.replace("removed", "would remove").replace("freed", "would be freed") == out


def test_prune_takes_what_was_deleted_and_leaves_what_is_out_of_reach(voco: Voco, store: Store, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/other.mp4").write_text("here")
    places = {
        "clip_1": tmp_path / "videos/clip_1.mp4",
        "clip_2": "/not/mounted.mp4",
        "other": tmp_path / "videos/other.mp4",
    }
    for video, place in places.items():
        store.record_source(video, str(place), 1000, 1)
    before = ids(store)
    code, out, err = voco("prune", store.url)
    assert (code, ids(store)) == (0, before)
    assert out.splitlines()[0] == f"would remove clip_1 (of {tmp_path}/videos/clip_1.mp4)"
    assert "left: clip_2: /not/mounted.mp4 is out of reach" in err
    found = json.loads(voco("prune", store.url, "--yes", "--json")[1])
    assert (found["gone"], found["removed"]) == (["clip_1"], True)
    assert ids(store) == [video for video in before if video != "clip_1"]


def test_a_bucket_that_is_missing_is_out_of_reach(s3_url: str) -> None:
    assert is_gone(f"{s3_url}/no/such.mp4") is True
    assert is_gone("s3://no-such-bucket/such.mp4") is None
    open_store(f"{s3_url}/pruned", "a", header=HEADER)
    assert is_gone(f"{s3_url}/pruned/zarr.json") is False


def test_merge_copies_what_is_missing_and_checks_it(voco: Voco, store: Store, tmp_path: Path) -> None:
    other = open_store(str(tmp_path / "second"), "a", header=HEADER)
    for video, segments, content in (
        ("new", 7, "a"),
        ("clip_1", 3, "a"),
        ("other", 2, "b"),
        ("half", 5, "c"),
        ("bad", 4, "a"),
    ):
        add(other, video, segments, content=content)
    other.fail("failed", "no frames")
    other.record_metadata("new", {"year": 2024})
    next(Path(other.url).glob("videos/bad/kv.*/c.1*")).write_bytes(b"damaged")
    kept = store.read("other").tobytes()
    code, out, _ = voco("merge", store.url, other.url, "--json")
    found = json.loads(out)
    assert (code, found["copied"], found["present"]) == (1, ["half", "new"], ["clip_1"])
    assert set(found["left"]) == {"other", "bad", "failed"}
    assert "another video of that id" in found["left"]["other"]
    assert "damaged" in found["left"]["bad"]
    for video in ("new", "half"):
        assert store.read(video).tobytes() == other.read(video).tobytes()
        assert store.timestamps(video).tobytes() == other.timestamps(video).tobytes()
        assert replace(store.info(video)) == other.info(video)
    assert store.read("other").tobytes() == kept
    assert voco("verify", store.url)[0] == 0
    assert json.loads(voco("merge", store.url, other.url, "--json")[1])["present"] == ["clip_1", "half", "new"]


def test_a_store_of_another_compressor_is_not_merged(voco: Voco, store: Store, tmp_path: Path) -> None:
    header = replace(HEADER, fingerprint="e" * 64)
    other = open_store(str(tmp_path / "second"), "a", header=header)
    add(other, "new")
    before = shutil.copytree(store.url, tmp_path / "before")
    code, _, err = voco("merge", store.url, other.url)
    assert (code, err.count("\n")) == (2, 1)
    assert "another compressor" in err
    assert ids(open_store(str(before))) == ids(store)
    half = open_store(str(tmp_path / "half"), "a", header=replace(HEADER, quantization="int8"))
    assert "quantized differently" in voco("merge", half.url, store.url)[2]
