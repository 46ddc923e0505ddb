"""Both decoders on real files: which frames, at which times, with which pixels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.clips import Picture, make_clip, make_sound, overstate, read_frame_number, turn

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderName, DecoderProcess, Limits, available_decoders
from vococache.workers.video.sampling import FrameSampling

pytestmark = pytest.mark.skipif("decord" not in available_decoders(), reason="decord has no wheel here")

GEOMETRY = FrameGeometry(size=96)
WIDE = (96, 64)
BOTH: tuple[DecoderName, ...] = ("decord", "pyav")
REAL = Path(__file__).parents[4] / "shared" / "videos"

both = pytest.mark.parametrize("name", BOTH)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=20) as decoder:
        yield decoder


def numbers(
    decoder: DecoderProcess, path: Path, sampling: FrameSampling, name: DecoderName, shape: tuple[int, int] = WIDE
) -> tuple[list[int], list[float], float]:
    """Frame numbers, times, duration."""
    frames = decoder.open(str(path), sampling, GEOMETRY, name)
    found = [(read_frame_number(pixels, shape), time) for time, pixels in frames]
    assert frames.duration is not None
    return [number for number, _ in found], [time for _, time in found], frames.duration


def pixels(
    decoder: DecoderProcess, path: Path, name: DecoderName, geometry: FrameGeometry = GEOMETRY
) -> npt.NDArray[np.int16]:
    frames = decoder.open(str(path), FrameSampling(fps=10), geometry, name)
    return np.stack([picture for _, picture in frames]).astype(np.int16)


CONTAINERS = {
    "clip.mp4": {},
    "clip.mkv": {},
    "clip.mov": {},
    "clip.avi": {"codec": "mpeg4"},
    "bframes.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.avi": {"options": {"bf": "3"}},
    "clip.webm": {"codec": "libvpx-vp9"},
    "clip.ts": {},
    "sound.mp4": {"audio": True},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=4"}},
    "intra.mp4": {"gop": 1},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}},
}


@both
@pytest.mark.parametrize("clip", CONTAINERS)
def test_frames_and_times(tmp_path: Path, decoder: DecoderProcess, clip: str, name: DecoderName) -> None:
    path = make_clip(tmp_path / clip, frames=40, fps=10, **CONTAINERS[clip])  # type: ignore[arg-type]
    found, times, duration = numbers(decoder, path, FrameSampling(fps=2), name)
    assert found == list(range(0, 40, 5))
    assert times == pytest.approx([i / 2 for i in range(8)], abs=1e-9)
    assert duration == pytest.approx(4.0)
    assert numbers(decoder, path, FrameSampling(num_frames=4), name)[0] == [5, 15, 25, 35]


@both
@pytest.mark.parametrize("fps", [0.4, 1.0, 3.0, 10.0, 25.0])
def test_long_enough_for_several_pieces(tmp_path: Path, decoder: DecoderProcess, name: DecoderName, fps: float) -> None:
    """Pieces are 240 packets and more; open groups of pictures reach over their borders."""
    options = {"x264-params": "open-gop=1:keyint=50:min-keyint=50:bframes=3:scenecut=0"}
    path = make_clip(tmp_path / "clip.mp4", frames=700, fps=10, options=options)
    found, times, duration = numbers(decoder, path, FrameSampling(fps=fps), name)
    moments = [i / fps for i in range(10_000) if i / fps < 70]
    assert found == [int(moment * 10 + 1e-9) for moment in moments]
    assert times == [number / 10 for number in found]
    assert duration == 70


@both
@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_and_late_start(
    tmp_path: Path, decoder: DecoderProcess, name: DecoderName, start: float, suffix: str
) -> None:
    shown = [0.0, 0.1, 0.15, 0.9, 1.0, 2.0, 2.2]
    path = make_clip(tmp_path / f"clip.{suffix}", times=shown, start=start)
    found, times, duration = numbers(decoder, path, FrameSampling(fps=2), name)
    assert found == [0, 2, 4, 4, 5]
    assert times == pytest.approx([shown[i] for i in found], abs=1e-9)
    assert 2.2 < duration <= 2.5
    expected = [(i + 0.5) * duration / 5 for i in range(5)]
    assert numbers(decoder, path, FrameSampling(num_frames=5), name)[0] == [
        max(i for i, t in enumerate(shown) if t <= moment) for moment in expected
    ]


@both
def test_shorter_than_one_period(tmp_path: Path, decoder: DecoderProcess, name: DecoderName) -> None:
    for frames in (1, 2, 3):
        path = make_clip(tmp_path / f"{frames}.mp4", frames=frames, fps=10)
        assert numbers(decoder, path, FrameSampling(fps=1), name)[0] == [0]
        assert len(numbers(decoder, path, FrameSampling(num_frames=6), name)[0]) == 6


@both
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation(tmp_path: Path, decoder: DecoderProcess, name: DecoderName, degrees: int) -> None:
    """The stored picture is turned the other way round, so what is displayed reads upright."""

    def turned(number: int, width: int, height: int) -> Picture:
        upright = (height, width) if degrees % 180 else (width, height)
        from tests.clips import picture

        return np.ascontiguousarray(np.rot90(picture(number, *upright), degrees // 90))

    path = turn(make_clip(tmp_path / "clip.mp4", draw=turned), degrees)
    shape = (64, 96) if degrees % 180 else (96, 64)
    assert numbers(decoder, path, FrameSampling(fps=1), name, shape)[0] == [0, 10, 20]


@both
def test_the_stream_that_a_player_shows(tmp_path: Path, decoder: DecoderProcess, name: DecoderName) -> None:
    """The one that is marked as the default, whatever the size of others: in MP4 here the first."""
    path = make_clip(tmp_path / "clip.mp4", more_sizes=[(192, 128), (48, 32)])
    assert numbers(decoder, path, FrameSampling(fps=1), name)[0] == [0, 10, 20]


@both
@pytest.mark.parametrize("clip", ["clip.mkv", "clip.avi"])
def test_container_that_overstates_its_duration(
    tmp_path: Path, decoder: DecoderProcess, clip: str, name: DecoderName
) -> None:
    path = overstate(make_clip(tmp_path / clip, frames=30, **CONTAINERS[clip]))  # type: ignore[arg-type]
    claimed = decoder.probe(str(path)).duration
    assert claimed is not None
    assert claimed > 20
    found, _, duration = numbers(decoder, path, FrameSampling(fps=1), name)
    assert (found, duration) == ([0, 10, 20], 3.0)
    assert numbers(decoder, path, FrameSampling(num_frames=3), name)[0] == [5, 15, 25]


def noise(number: int, width: int, height: int) -> Picture:
    """Saturated blocks: the hardest content for chroma."""
    blocks = np.random.default_rng(number).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "gray"])
@pytest.mark.parametrize("size", [(96, 64), (98, 66), (64, 128)])
def test_both_decoders_give_the_same_pixels(
    tmp_path: Path, decoder: DecoderProcess, pix_fmt: str, size: tuple[int, int]
) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=20, size=size, pix_fmt=pix_fmt, draw=noise)
    by_decord, by_pyav = (pixels(decoder, path, name) for name in BOTH)
    assert len(by_decord) == 20
    assert np.array_equal(by_decord, by_pyav)


@pytest.mark.parametrize(
    ("clip", "options"),
    [
        ("10bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("10bit.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("odd.avi", {"codec": "mpeg4", "size": (97, 65)}),
        ("av1.mkv", {"codec": "libsvtav1"}),
    ],
)
def test_what_decord_cannot_do_alike_is_left_to_pyav(
    tmp_path: Path, decoder: DecoderProcess, clip: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    path = make_clip(tmp_path / clip, **options)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=r"left to pyav|cannot be repacked"):
        numbers(decoder, path, FrameSampling(), "decord")
    assert numbers(decoder, path, FrameSampling(), "pyav")[0] == [0, 10, 20]


@pytest.mark.parametrize("size", [56, 336])
def test_frames_arrive_in_the_models_size(tmp_path: Path, decoder: DecoderProcess, size: int) -> None:
    path = make_clip(tmp_path / "clip.mp4", size=(320, 180))
    for time, picture in decoder.open(str(path), FrameSampling(), FrameGeometry(size=size)):
        assert picture.shape == (size, size, 3)
        assert read_frame_number(picture, (320, 180)) == round(time * 10)


def test_what_is_known_before_and_after(tmp_path: Path, decoder: DecoderProcess) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=35)
    frames = decoder.open(str(path), FrameSampling(), GEOMETRY)
    assert (frames.expected_frames, frames.duration) == (4, None)
    assert len(list(frames)) == 4
    assert frames.duration == 3.5
    probe = decoder.probe(str(path))
    assert (probe.duration, probe.frames, probe.width, probe.height, probe.codec) == (3.5, 35, 96, 64, "h264")


def damaged(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    # Over packets, not only inside one: what a decoder makes of zeros there depends on the encoder.
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BROKEN = {
    "no such file": lambda folder: folder / "missing.mp4",
    "a directory": lambda folder: folder,
    "an empty file": lambda folder: written(folder / "empty.mp4", b""),
    "not a media file": lambda folder: written(folder / "text.mp4", b"hello\n" * 300),
    "no video stream": lambda folder: make_sound(folder / "sound.mp4"),
    "cut off": lambda folder: cut(make_clip(folder / "cut.mkv")),
    "cannot be decoded|decoding failed": lambda folder: damaged(
        make_clip(folder / "bad.mp4", size=(320, 240), draw=noise)
    ),
}


@both
@pytest.mark.parametrize("reason", BROKEN)
def test_reason_of_a_broken_file(tmp_path: Path, decoder: DecoderProcess, reason: str, name: DecoderName) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        list(decoder.open(str(BROKEN[reason](tmp_path)), FrameSampling(), GEOMETRY, name))
    assert "\n" not in str(caught.value)


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    with (
        DecoderProcess(limits=Limits(max_pixels=96 * 64 - 1)) as decoder,
        pytest.raises(VideoError, match="96 x 64 pixels"),
    ):
        decoder.open(str(path), FrameSampling(), GEOMETRY)


def test_playlist_reads_no_other_file(tmp_path: Path, decoder: DecoderProcess) -> None:
    make_clip(tmp_path / "clip.ts")
    path = written(tmp_path / "list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        list(decoder.open(str(path), FrameSampling(), GEOMETRY, "pyav"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not here")
class TestRealClips:
    @both
    def test_ordinary(self, decoder: DecoderProcess, name: DecoderName) -> None:
        frames = decoder.open(str(REAL / "flipping_a_pancake.mkv"), FrameSampling(), GEOMETRY, name)
        assert [time for time, _ in frames] == pytest.approx(range(11), abs=0.034)
        assert frames.duration == pytest.approx(10.333)

    @pytest.mark.parametrize("clip", ["video_0.mov", "video_90.mov"])
    def test_rotated(self, decoder: DecoderProcess, clip: str) -> None:
        """Upright in both decoders, as decord shows it on its own."""
        import decord

        alone = GEOMETRY.apply(decord.VideoReader(str(REAL / clip))[0].asnumpy()).astype(np.int16)
        by_decord, by_pyav = (pixels(decoder, REAL / clip, name)[0] for name in BOTH)
        assert np.array_equal(by_decord, by_pyav)
        assert np.abs(by_decord - alone).mean() < 1

    def test_av1(self, decoder: DecoderProcess) -> None:
        with pytest.raises(VideoError):
            pixels(decoder, REAL / "av1_video.mkv", "decord")
        assert len(pixels(decoder, REAL / "av1_video.mkv", "pyav")) == 50

    @both
    def test_corrupted(self, decoder: DecoderProcess, name: DecoderName) -> None:
        with pytest.raises(VideoError, match="decod"):
            pixels(decoder, REAL / "corrupted.mp4", name)
