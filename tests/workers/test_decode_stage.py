"""The decode stage on a real store: chunks, resuming, the second decoder, one row for a bad video."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.clips import make_clip, make_sound, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.storage import Store, StoreHeader, open_store
from vococache.workers import decode as decode_module
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import End, Row, VideoTask
from vococache.workers.video.process import DecoderProcess, Limits
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import content_hash

GEOMETRY = FrameGeometry(size=96)
REAL = Path(__file__).parents[3] / "shared" / "videos"
HEADER = StoreHeader(
    fingerprint="ab" * 32,
    model="none",
    layers=2,
    kv_heads=1,
    tokens=2,
    head_dim=4,
    frames_per_segment=2,
    dtype="float16",
    compute_dtype="float32",
    geometry=GEOMETRY.to_dict(),
    prompt={},
    chunk_segments=4,
    micro_batch=2,
)

StageMaker = Callable[..., DecodeStage]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), "a", header=HEADER)


@pytest.fixture
def make_stage(store: Store) -> Iterator[StageMaker]:
    made: list[DecodeStage] = []

    def make(fps: float = 2.0, **options: object) -> DecodeStage:
        stage = DecodeStage(
            store_url=store.url,
            sampling=FrameSampling(fps=fps),
            geometry=GEOMETRY,
            frames_per_segment=2,
            **options,  # type: ignore[arg-type]
        )
        stage.setup()
        made.append(stage)
        return stage

    yield make
    for stage in made:
        stage.close()


def run(stage: DecodeStage, path: Path | str) -> list[Row]:
    return list(stage.process(VideoTask(video="v", source=str(path))))


def numbers(row: Row) -> list[list[int]]:
    assert row.frames is not None
    return [[read_frame_number(frame, (96, 64)) for frame in segment] for segment in row.frames]


def test_short_video_is_one_chunk(tmp_path: Path, make_stage: StageMaker) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=34)  # 3.4 s at 2 fps: 7 frames, the last segment half full
    (chunk,) = run(make_stage(), path)
    assert numbers(chunk) == [[0, 5], [10, 15], [20, 25], [30, 30]]
    assert chunk.timestamps is not None
    assert chunk.timestamps.dtype == np.float64
    assert chunk.timestamps.tolist() == [[0, 0.5], [1, 1.5], [2, 2.5], [3, 3]]
    assert (chunk.attempt, chunk.index, chunk.receipt, chunk.error) == (0, 0, None, None)
    found = path.stat()
    assert chunk.end == End(
        duration=3.4,
        decoder="decord",
        chunks=1,
        source=str(path),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        content_hash=content_hash(str(path)),
    )


def test_long_video_is_spread_evenly(tmp_path: Path, make_stage: StageMaker) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=60)  # 12 frames, 6 segments, at most 4 in a chunk
    chunks = run(make_stage(), path)
    assert [numbers(chunk) for chunk in chunks] == [
        [[0, 5], [10, 15], [20, 25]],
        [[30, 35], [40, 45], [50, 55]],
    ]
    assert [chunk.index for chunk in chunks] == [0, 1]
    assert chunks[0].end is None
    assert chunks[1].end is not None
    assert chunks[1].end.chunks == 2


def test_stored_chunks_come_without_frames(tmp_path: Path, make_stage: StageMaker, store: Store) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=130)
    stage = make_stage()
    first = run(stage, path)
    assert len(first) == 4
    cache = np.zeros((len(first[1].frames), *HEADER.segment_shape), np.float16)  # type: ignore[arg-type]
    receipt = store.write_chunk("v", first[1].intent, 1, cache)
    again = run(stage, path)
    assert [chunk.frames is None for chunk in again] == [False, True, False, False]
    assert again[1].receipt == receipt
    for before, after in zip(first, again, strict=True):
        assert np.array_equal(before.timestamps, after.timestamps)  # type: ignore[arg-type]
    assert again[-1].end is not None


def test_other_sampling_discards_stored_chunks(tmp_path: Path, make_stage: StageMaker, store: Store) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    (chunk,) = run(make_stage(), path)
    cache = np.zeros((len(chunk.frames), *HEADER.segment_shape), np.float16)  # type: ignore[arg-type]
    assert store.write_chunk("v", chunk.intent, 0, cache) is not None
    (other,) = run(make_stage(fps=1), path)
    assert other.intent != chunk.intent
    assert other.receipt is None
    assert store.write_chunk("v", chunk.intent, 0, cache) is None


def test_pyav_takes_over_from_the_start_and_goes_on_first(
    tmp_path: Path, make_stage: StageMaker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """decord fails in the middle: some of its chunks are out already, and all are replaced, but never PyAV's."""
    receive, seen = DecoderProcess.receive, 0

    def failing(self: DecoderProcess, name: str) -> dict[str, object]:
        nonlocal seen
        seen += name == "decord"
        if name == "decord" and seen > 20:
            raise VideoError("made to fail")
        return receive(self, name)

    monkeypatch.setattr(DecoderProcess, "receive", failing)
    path = make_clip(tmp_path / "clip.mp4", frames=130)
    chunks = run(make_stage(), path)
    end = chunks[-1]
    stale = [chunk for chunk in chunks if chunk.attempt == 0]
    fresh = [chunk for chunk in chunks if chunk.attempt == 1]
    assert [chunk.index for chunk in stale] == [0, 1]
    assert [chunk.index for chunk in fresh] == [0, 1, 2, 3]
    assert numbers(fresh[0]) == numbers(stale[0])
    assert end.intent == fresh[0].intent != stale[0].intent
    assert end.end is not None
    assert (end.end.decoder, end.end.chunks) == ("pyav", 4)

    cache = np.zeros((len(fresh[0].frames), *HEADER.segment_shape), np.float16)  # type: ignore[arg-type]
    receipt = store.write_chunk("v", end.intent, 0, cache)
    again = run(make_stage(), path)
    assert [(chunk.attempt, chunk.index) for chunk in again] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert [chunk.receipt for chunk in again] == [receipt, None, None, None]


def test_hanging_decord_costs_the_deadline_and_no_more(tmp_path: Path, make_stage: StageMaker) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    stage = make_stage(timeout_s=20)
    run(stage, path)
    assert stage._decoder.pid is not None
    os.kill(stage._decoder.pid, signal.SIGSTOP)
    stage._decoder.timeout_s = 1.5
    (chunk,) = run(stage, path)
    assert chunk.attempt == 1
    assert chunk.end is not None
    assert chunk.end.decoder == "pyav"


def test_av1_is_decoded_by_pyav(tmp_path: Path, make_stage: StageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    chunks = run(make_stage(), make_clip(tmp_path / "clip.mkv", codec="libsvtav1"))
    assert numbers(chunks[0])[0] == [0, 5]
    end = chunks[-1]
    assert end.end is not None
    assert (end.end.decoder, end.attempt) == ("pyav", 1)


def test_without_decord_pyav_decodes_alone(
    tmp_path: Path, make_stage: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module, "available_decoders", lambda: ("pyav",))
    *_, end = run(make_stage(), make_clip(tmp_path / "clip.mp4"))
    assert end.end is not None
    assert end.end.decoder == "pyav"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.mp4", b"hello\n" * 200, "not a media file, or a damaged one"),
        ("empty.mp4", b"", "an empty file"),
        ("missing.mp4", None, "no such file on node {node}: {path}"),
        (".", None, "a directory, not a file"),
    ],
)
def test_bad_file_is_one_error_row(
    tmp_path: Path, make_stage: StageMaker, store: Store, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    (row,) = run(make_stage(), path)
    assert row.error == reason.format(node=socket.gethostname(), path=path)
    assert row.end is not None
    assert row.end.source == str(path)
    if content is not None:
        assert row.end.size == len(content)
    assert store.list() == []  # nothing is written for a video that never gave a frame


def test_sound_alone(tmp_path: Path, make_stage: StageMaker) -> None:
    (row,) = run(make_stage(), make_sound(tmp_path / "sound.mp4"))
    assert row.error == "no video stream"


def test_damage_in_the_middle_fails_the_video(tmp_path: Path, make_stage: StageMaker) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=300, size=(320, 240))
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3 : len(data) * 2 // 3 + 400] = bytes(400)
    path.write_bytes(data)
    *_, last = run(make_stage(), path)
    assert last.end is not None
    assert last.end.chunks == 0
    assert last.error is not None
    assert last.error.startswith("decord: ")
    assert "; pyav: " in last.error


def test_remote_video_is_copied_and_the_copy_is_gone(
    tmp_path: Path, make_stage: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    path = make_clip(tmp_path / "clip.mp4")
    with fsspec.open("memory://videos/clip.mp4", "wb") as file:
        file.write(path.read_bytes())
    (chunk,) = run(make_stage(), "memory://videos/clip.mp4")
    assert numbers(chunk) == [[0, 5], [10, 15], [20, 25]]
    assert chunk.end is not None
    assert chunk.end.content_hash == content_hash(str(path))
    assert list(copies.iterdir()) == []
    (row,) = run(make_stage(max_copy_bytes=1000), "memory://videos/clip.mp4")
    assert row.error == "larger than the 1000 bytes that are copied at most"
    (row,) = run(make_stage(), "memory://videos/missing.mp4")
    assert row.error == f"no such object, or no access to it from node {socket.gethostname()}"


def test_limits_reach_the_child(tmp_path: Path, make_stage: StageMaker) -> None:
    (row,) = run(make_stage(limits=replace(Limits(), max_pixels=100)), make_clip(tmp_path / "clip.mp4"))
    assert row.error == "frames of 96 x 64 pixels are larger than the limit of 100 pixels"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not here")
@pytest.mark.parametrize(
    ("clip", "decoder"),
    [
        ("corrupted.mp4", None),
        ("flipping_a_pancake.mkv", "decord"),
        ("video_90.mov", "decord"),
        ("av1_video.mkv", "pyav"),
    ],
)
def test_real_clips(make_stage: StageMaker, clip: str, decoder: str | None) -> None:
    *_, last = run(make_stage(), REAL / clip)
    assert last.end is not None
    assert (last.error is None) == (decoder is not None)
    assert last.end.decoder == (decoder or "")
