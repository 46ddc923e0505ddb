"""Ingest through a real Ray: real files, real decoders, a real store."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clips import make_clip

import vococache
from vococache.errors import InputError, StoreMismatchError
from vococache.model.cache import VoCoCache
from vococache.pipeline.ingest import plan
from vococache.storage import Intent, maintenance, open_store
from vococache.workers.cluster import runtime
from vococache.workers.compress import frame_geometry, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.video.process import DecoderProcess
from vococache.workers.video.sampling import FrameSampling

pytestmark = pytest.mark.usefixtures("local_ray")

GOOD, BAD = {"plain", "short", "offset"}, {"text", "zero", "cut", "sound"}
FILES = ("plain.mp4", "short.mkv", "offset.mkv")  # the good ones


@pytest.fixture(scope="module")
def ingested(clips: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    """A store of all clips, two frames a second."""
    store = str(tmp_path_factory.mktemp("ingested") / "store")
    seen: list[int] = []
    report = vococache.ingest(str(clips), store, fps=2, on_progress=lambda progress: seen.append(progress.videos))
    assert set(report.done) == GOOD
    assert set(report.failed) == BAD
    assert not report.ok
    assert seen == sorted(seen)
    assert seen[-1] == len(GOOD | BAD)
    return store


@pytest.fixture
def copied(ingested: str, tmp_path: Path) -> str:
    """A store of one's own to change."""
    return str(shutil.copytree(ingested, tmp_path / "copied"))


def test_bad_videos_are_recorded_with_their_reasons(ingested: str) -> None:
    infos = {info.id: info for info in open_store(ingested).list()}
    assert {video for video, info in infos.items() if info.status == "complete"} == GOOD
    reasons = {video: infos[video].reason or "" for video in BAD}
    assert "no video stream" in reasons["sound"]
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert not list(maintenance.verify(open_store(ingested)))


def test_the_store_holds_what_the_model_makes_of_the_frames(ingested: str, clips: Path) -> None:
    """The central test, through Ray and back: logits from the store equal those of computing in place."""
    model = Compressor(model="synthetic").load("cpu")
    store = open_store(ingested)
    with DecoderProcess() as decoder:
        frames = list(decoder.open(str(clips / "plain.mp4"), FrameSampling(fps=2), frame_geometry(store.header)))
    assert store.timestamps("plain")[:, 0].tolist() == [time for time, _ in frames]
    in_place = model.compress(model.pixel_values(np.stack([pixels for _, pixels in frames])[:, None]))
    stored = VoCoCache(torch.from_numpy(store.read("plain")))
    text = torch.tensor([model.encode_text("\nWhat is it? Answer:")])
    torch.testing.assert_close(model.read(stored, text), model.read(in_place, text), atol=1e-5, rtol=0)


def test_a_second_run_does_nothing_and_says_so(copied: str, clips: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(copied).rglob("*")}
    report = vococache.ingest(str(clips), copied, fps=2)
    assert set(report.up_to_date) == GOOD
    assert set(report.failed) == BAD
    assert all("failed before" in reason for reason in report.failed.values())
    assert (report.done, report.run_seconds) == ([], 0.0)
    assert {path: path.stat().st_mtime_ns for path in Path(copied).rglob("*")} == before


@pytest.mark.slow
def test_an_edited_file_is_done_anew_and_another_sampling_only_when_asked(copied: str, tmp_path: Path) -> None:
    file = make_clip(tmp_path / "new.mp4", frames=20, fps=10)
    assert vococache.ingest(file, copied, fps=1).done == ["new"]
    store = open_store(copied)
    assert store.info("new").segments == 2

    refused = vococache.ingest(file, copied, fps=5).refused
    assert "--overwrite" in refused["new"]
    assert vococache.ingest(file, copied, fps=5, overwrite=True).done == ["new"]
    assert store.info("new").segments == 10

    before = kv_objects(copied)
    os.utime(file, (1, 1))  # only touched: its time differs from the record, its content does not
    report = vococache.ingest(file, copied, fps=5)
    assert (report.up_to_date, report.run_seconds) == (["new"], 0.0)
    assert store.info("new").mtime_ns == 10**9
    os.utime(file, ns=(10**9, 10**9))
    assert kv_objects(copied) == before
    make_clip(file, frames=30, fps=10)
    assert vococache.ingest(file, copied, fps=5).done == ["new"]
    assert store.info("new").segments == 15

    edited = bytearray(file.read_bytes())
    edited[-1] ^= 1  # another content in as many bytes: its time alone tells
    file.write_bytes(edited)
    os.utime(file, (2, 2))
    assert vococache.ingest(file, copied, fps=5).done == ["new"]


def kv_objects(store: str) -> dict[Path, tuple[int, int]]:
    """All that a store has but its videos' documents: inode and time of each."""
    found = {
        path: path.stat() for path in Path(store).rglob("*") if path.is_file() and path.parent.parent.name != "videos"
    }
    return {path: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}


def test_a_moved_corpus_is_recorded_and_read_once(
    copied: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved").mkdir()
    moved = [str(shutil.copyfile(clips / name, tmp_path / "moved" / name)) for name in FILES]  # of new times too
    before = kv_objects(copied)
    report = vococache.ingest(moved, copied, fps=2)
    assert (set(report.up_to_date), report.run_seconds) == (GOOD, 0.0)
    assert {info.source for info in open_store(copied).list() if info.id in GOOD} == set(moved)
    assert kv_objects(copied) == before
    assert not list(maintenance.verify(open_store(copied)))
    monkeypatch.setattr(plan, "content_hash", None)  # whoever reads a file again fails
    assert set(vococache.ingest(moved, copied, fps=2).up_to_date) == GOOD


def test_relocate_and_reuse(copied: str, clips: Path, tmp_path: Path) -> None:
    store = open_store(copied, "a")
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    assert set(maintenance.relocate(store, str(clips), str(moved))) == GOOD | BAD
    assert maintenance.relocate(store, str(clips), str(moved)) == []
    assert maintenance.relocate(store, str(moved)[:-1], "/x") == [], "whole names alone"
    report = vococache.ingest(str(moved), copied, fps=2)
    assert (set(report.up_to_date), report.run_seconds) == (GOOD, 0.0)
    assert set(report.failed) == BAD

    renamed = Path(shutil.copyfile(clips / "plain.mp4", tmp_path / "renamed.mp4"))
    assert vococache.ingest(str(renamed), copied, fps=2, reuse=True).reused == ["renamed"]
    np.testing.assert_array_equal(store.read("renamed"), store.read("plain"))
    np.testing.assert_array_equal(store.timestamps("renamed"), store.timestamps("plain"))
    assert store.info("renamed").source == str(renamed)
    assert not list(maintenance.verify(store))
    assert vococache.ingest(str(renamed), copied, fps=2).up_to_date == ["renamed"]

    maintenance.remove(store, "renamed")
    next(Path(copied).glob("videos/plain/kv.*/c.*")).write_bytes(b"damaged")
    report = vococache.ingest(str(renamed), copied, fps=2, reuse=True)
    assert (report.done, report.reused) == (["renamed"], [])


def test_a_cache_outlives_its_video(copied: str, tmp_path: Path) -> None:
    file = Path(make_clip(tmp_path / "new.mp4", frames=20, fps=10))
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path\n{file}\n")
    assert vococache.ingest(str(manifest), copied, fps=2).done == ["new"]
    file.unlink()
    assert vococache.ingest(str(manifest), copied, fps=2).up_to_date == ["new"]
    assert "is kept" in vococache.ingest(str(manifest), copied, fps=5, overwrite=True).refused["new"]
    assert len(open_store(copied).read("new")) == 4


def test_another_video_of_the_same_name_is_refused_and_a_moved_one_is_known(
    copied: str, tmp_path: Path, clips: Path
) -> None:
    other = make_clip(tmp_path / "plain.mp4", frames=7, fps=10)
    assert "give ids in a manifest" in vococache.ingest(str(other), copied, fps=2).refused["plain"]
    shutil.copy(clips / "plain.mp4", other)
    assert vococache.ingest(str(other), copied, fps=2).up_to_date == ["plain"], "the same content, moved"


def test_what_is_missing_starts_no_ray(copied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "start_ray", None)  # whoever starts it fails
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for _ in range(2):
        report = vococache.ingest(str(tmp_path / "dangling.mp4"), copied, fps=2)
        assert report.failed["dangling"].startswith(f"a link to {tmp_path / 'nowhere.mp4'}, where nothing is, on node")
        info = open_store(copied).info("dangling")
        assert (info.status, info.source) == ("failed", str(tmp_path / "dangling.mp4"))
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(f'{{"path": "{tmp_path}/gone.mp4"}}')
    assert vococache.ingest(str(manifest), copied, fps=2).failed["gone"].startswith("no such file on node")


def test_what_a_manifest_says_is_kept_and_mended(copied: str, tmp_path: Path) -> None:
    shutil.copy(make_clip(tmp_path / "new.mp4", frames=20, fps=10), tmp_path / "same.mp4")
    manifest = tmp_path / "list.csv"
    for title in ("a tlak", "a talk"):
        manifest.write_text(f"path,title,year\nnew.mp4,{title},2024\n")
        report = vococache.ingest(str(manifest), copied, fps=2)
        assert (report.done, report.up_to_date) == ((["new"], []) if title == "a tlak" else ([], ["new"]))
        assert open_store(copied).info("new").metadata == {"title": title, "year": "2024"}
    assert vococache.ingest(str(tmp_path / "new.mp4"), copied, fps=2).up_to_date == ["new"]
    assert open_store(copied).info("new").metadata == {"title": "a talk", "year": "2024"}
    manifest.write_text("path,title\nsame.mp4,another\n")
    assert vococache.ingest(str(manifest), copied, fps=2, reuse=True).reused == ["same"]
    assert open_store(copied).info("same").metadata == {"title": "another"}


@pytest.mark.slow
def test_a_redo_that_was_interrupted_is_finished_and_until_then_the_old_is_read(copied: str, clips: Path) -> None:
    store = open_store(copied, "a")
    before = store.read("plain")
    info = store.info("plain")
    intent = Intent(
        source=info.source, content_hash=str(info.content_hash), size=info.size, mtime_ns=info.mtime_ns,
        sampling={"fps": 1.0}, decoder=str(info.decoder), chunk_segments=5,
    )  # fmt: skip
    store.begin("plain", intent)
    np.testing.assert_array_equal(store.read("plain"), before)
    assert vococache.ingest(str(clips / "plain.mp4"), copied, fps=2).up_to_date == ["plain"]
    assert vococache.ingest(str(clips / "plain.mp4"), copied, fps=1).done == ["plain"]
    assert store.info("plain").sampling == {"fps": 1.0}
    assert store.info("plain").begun is None
    assert len(store.read("plain")) == 5


def test_a_growing_video_is_left_to_its_source(copied: str, tmp_path: Path) -> None:
    file = make_clip(tmp_path / "live.mp4", frames=20, fps=10)
    store = open_store(copied, "a")
    intent = Intent(
        source="rtsp://camera", content_hash="", size=0, mtime_ns=1, sampling={"fps": 2.0}, decoder="pyav",
        chunk_segments=2,
    )  # fmt: skip
    store.begin("live", intent)
    receipt = store.write_chunk("live", intent.token, 0, store.read("plain", 0, 2))
    assert receipt is not None
    store.append("live", intent.token, receipt, np.array([[0.0], [0.5]]), 1.0)
    assert "it grows, from rtsp://camera" in vococache.ingest(file, copied, fps=2, overwrite=True).refused["live"]
    assert store.info("live").status == "growing"


def test_an_unfinished_video_outlives_a_missing_file(copied: str, tmp_path: Path) -> None:
    store = open_store(copied, "a")
    intent = Intent(
        source=str(tmp_path / "away.mp4"), content_hash="a" * 64, size=9, mtime_ns=1, sampling={"fps": 2.0},
        decoder="pyav", chunk_segments=2,
    )  # fmt: skip
    store.begin("away", intent)
    receipt = store.write_chunk("away", intent.token, 0, store.read("plain", 0, 2))
    manifest = tmp_path / "list.txt"
    manifest.write_text("away.mp4")
    assert "no such file" in vococache.ingest(str(manifest), copied, fps=2).failed["away"]
    assert store.begin("away", intent) == {0: receipt}


@pytest.mark.slow
def test_a_link_in_the_store_costs_its_video_alone(copied: str, tmp_path: Path) -> None:
    linked, other = (make_clip(tmp_path / name, frames=20, fps=10) for name in ("linked.mp4", "other.mp4"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/zarr.json").write_text("mine")
    Path(copied, "videos/linked").symlink_to(tmp_path / "mine")
    report = vococache.ingest([str(linked), str(other)], copied, fps=2)
    assert report.done == ["other"]
    assert "symbolic link" in report.refused["linked"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["zarr.json"]


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_interrupted_work_resumes_at_its_chunks(tmp_path: Path, moved: bool) -> None:
    file = make_clip(tmp_path / "long.mp4", frames=600, fps=10)
    whole = str(tmp_path / "whole")
    assert vococache.ingest(str(file), whole, fps=5).segments == 300
    complete = open_store(whole)
    assert complete.info("long").segments == 300

    # A run that was killed behind its first chunk: the intent and that chunk are there, the rest is not.
    resumed = str(tmp_path / "resumed")
    half = open_store(resumed, "a", header=complete.header)
    info = complete.info("long")
    intent = Intent(
        source=str(file), content_hash=str(info.content_hash), size=info.size, mtime_ns=info.mtime_ns,
        sampling={"fps": 5.0}, decoder=str(info.decoder), chunk_segments=150,
    )  # fmt: skip
    half.begin("long", intent)
    assert half.write_chunk("long", intent.token, 0, complete.read("long", 0, 150))
    (chunk,) = Path(resumed).rglob("kv.*/c.0*")
    written = chunk.stat().st_mtime_ns
    if moved:
        (tmp_path / "elsewhere").mkdir()
        file = file.rename(tmp_path / "elsewhere/long.mp4")
        os.utime(file, (1, 1))
    assert vococache.ingest(str(file), resumed, fps=5).done == ["long"]
    assert chunk.stat().st_mtime_ns == written, "the stored chunk is not written again"
    assert contents(resumed) == contents(whole)


def contents(store: str) -> dict[str, bytes]:
    """All chunk bytes of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in Path(store).rglob("*/c.*")}


def test_a_job_that_cannot_run_is_refused_before_any_work(copied: str, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"tokens|compressor"):
        vococache.ingest(str(clips), copied, fps=2, tokens=1)
    with pytest.raises(InputError, match="1 to 4 tokens"):
        vococache.ingest(str(clips), str(tmp_path / "none"), tokens=9)
    with pytest.raises(InputError, match="one of fps and num_frames"):
        vococache.ingest(str(clips), str(tmp_path / "none"), fps=1, num_frames=4)
    assert not (tmp_path / "none").exists()


def test_num_frames_and_a_manifest(clips: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"id,path\na name/with: odd chars,{clips / 'plain.mp4'}\n")
    store = str(tmp_path / "store")
    (video,) = vococache.ingest(str(manifest), store, num_frames=4).done
    times = open_store(store).timestamps(video)[:, 0]
    assert len(times) == 4
    assert np.all(np.diff(times) > 0)


REAL = Path(__file__).parents[4] / "shared" / "videos"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not part of the repository")
@pytest.mark.slow
def test_real_clips(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    report = vococache.ingest(str(REAL), store)
    assert set(report.failed) == {"corrupted"}
    decoders = {info.id: info.decoder for info in open_store(store).list() if info.status == "complete"}
    assert decoders == {
        "av1_video": "pyav", "flipping_a_pancake": "decord", "video_0": "decord", "video_90": "decord",
    }  # fmt: skip
    assert store_header(Compressor(model="synthetic").load("cpu")) == open_store(store).header


@pytest.mark.parametrize(("kind", "ratio"), [("int8", 0.6), ("int4", 0.36)])
@pytest.mark.slow
def test_caches_in_fewer_bits(clips: Path, tmp_path: Path, kind: str, ratio: float) -> None:
    plain, small = str(tmp_path / "plain"), str(tmp_path / "small")
    vococache.ingest(str(clips / "plain.mp4"), plain, fps=4, dtype="bfloat16")
    vococache.ingest(str(clips / "plain.mp4"), small, fps=4, dtype="bfloat16", quantize=kind)
    assert vococache.ingest(str(clips / "plain.mp4"), small, fps=4, dtype="bfloat16").up_to_date == ["plain"]
    stores = [open_store(url) for url in (plain, small)]
    exact, found = (store.read("plain").astype(np.float32) for store in stores)
    sizes = [store.info("plain").payload_bytes for store in stores]
    assert sizes[1] < ratio * sizes[0]
    assert 0 < np.abs(found - exact).mean() < {"int8": 0.01, "int4": 0.15}[kind] * np.abs(exact).mean()
    (answer,) = vococache.ask(small, "plain", "How many objects are there?")
    assert answer.videos == ["plain"]
