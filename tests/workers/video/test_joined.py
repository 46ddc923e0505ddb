"""Recordings joined or cut off in other containers than transport streams, and what has few times of its own."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clips import make_clip, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def check(
    decoder: DecoderProcess,
    path: Path,
    expected: list[int],
    fps: float,
    *,
    both: bool = True,
    size: tuple[int, int] = (192, 128),
) -> list[dict[str, Any]]:
    """`expected`: which frame is shown at each step of `fps`; what was found by each decoder."""
    seen = []
    for name in available_decoders():
        try:
            frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=192), name)
            found = [(read_frame_number(pixels, (192, 128)), time) for time, pixels in frames]
        except VideoError:
            assert name == "decord"
            assert not both
            continue
        assert [number for number, _ in found] == expected, name
        assert decoder.measure(str(path)) == pytest.approx(frames.duration)
        seen.append(frames.findings)
    return seen


def recordings(path: Path, gap: float = 0.0, **how: Any) -> tuple[bytes, bytes]:
    """Two of 20 frames, the second from number 100 on and `gap` seconds behind the first, whose clock begins at 0."""
    seconds = 20 / how["fps"]
    first = make_clip(path, frames=20, size=(192, 128), **how).read_bytes()
    start = seconds + gap if gap else 0.0
    return first, make_clip(path, frames=20, size=(192, 128), first=100, start=start, **how).read_bytes()


CODECS: dict[str, dict[str, Any]] = {
    "h264": {"options": {"bf": "0"}},
    "h264 with B-frames": {"options": {"bf": "2"}},
    "hevc": {"codec": "libx265"},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2"}},
}


@pytest.mark.parametrize("suffix", ["mpg", "vob"])
@pytest.mark.parametrize("fps", [10, 24, 30, 50])
@pytest.mark.parametrize("codec", CODECS)
def test_packets_without_times(decoder: DecoderProcess, tmp_path: Path, codec: str, fps: int, suffix: str) -> None:
    """A program stream has one time for all pictures that begin in 2 KiB."""
    if codec == "mpeg2" and fps == 10:
        pytest.skip("MPEG-2 has no such rate")
    path = make_clip(tmp_path / f"clip.{suffix}", frames=60, size=(192, 128), fps=fps, **CODECS[codec])
    assert check(decoder, path, list(range(60)), fps, both=False) == [{}]


@pytest.mark.parametrize("gap", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("codec", CODECS)
def test_the_next_recording_comes_later(decoder: DecoderProcess, tmp_path: Path, codec: str, gap: float) -> None:
    """The last picture of the first is shown when it should be, and until the second begins."""
    path = tmp_path / "clip.mpg"
    # A program stream's first packet is decoded at half a second, unless it is late; MPEG-2 counts in whole frames.
    late = {"h264": 0.5, "mpeg2": 0.56}.get(codec, 0.58)
    path.write_bytes(b"".join(recordings(path, gap + late, fps=25, **CODECS[codec])))
    expected = [*range(20), *[19] * round(25 * gap + (codec == "mpeg2")), *range(100, 120)]
    assert check(decoder, path, expected, 25, both=False) == [{}]


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_h264_in_asf(decoder: DecoderProcess, tmp_path: Path, bframes: str) -> None:
    """Its times are in the order of decoding."""
    path = make_clip(tmp_path / "clip.asf", frames=60, size=(192, 128), options={"bf": bframes})
    expected = [*range(58), 59]  # FFmpeg's writer gives the last two one time
    assert check(decoder, path, expected, 10, both=False)[-1] == {}


@pytest.mark.parametrize("turn", [1, -1])
def test_vp8_in_chained_ogg(decoder: DecoderProcess, tmp_path: Path, turn: int) -> None:
    """Each recording begins with packets that are no pictures."""
    path = tmp_path / "clip.ogv"
    first, second = recordings(path, fps=10, codec="libvpx")[::turn]
    path.write_bytes(first + second)
    expected = [*range(20), *range(100, 120)] if turn > 0 else [*range(100, 120), *range(20)]
    assert check(decoder, path, expected, 10) == [{"discontinuities": 1}] * len(available_decoders())


def test_theora_in_chained_ogg(decoder: DecoderProcess) -> None:
    """The second recording is of another size, which its first packets say."""
    for fps in (10, 5):
        expected = [*range(8), *range(100, 108)][:: 10 // fps]
        assert check(decoder, DATA / "chained_theora.ogv", expected, fps, both=False) == [{"discontinuities": 1}]


@pytest.mark.parametrize("zeros", [1, 10, 300_000, 3 << 20])
@pytest.mark.parametrize("name", ["clip.nut", "clip.ogv", "clip.ts", "clip.flv"])
def test_zeros_behind_the_end(decoder: DecoderProcess, tmp_path: Path, name: str, zeros: int) -> None:
    how = {"clip.nut": {"codec": "mpeg4"}, "clip.ogv": {"codec": "libvpx"}}.get(name, {})
    path = make_clip(tmp_path / name, frames=20, size=(192, 128), **how)
    path.write_bytes(path.read_bytes() + bytes(zeros))
    check(decoder, path, list(range(20)), 10)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_flv_that_is_cut_off(decoder: DecoderProcess, tmp_path: Path, share: float) -> None:
    """Cameras and streams are recorded in it just because it may end anywhere."""
    path = make_clip(tmp_path / "clip.flv", frames=60, size=(192, 128), options={"bf": "0"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for name in available_decoders():
        frames = decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=192), name)
        numbers = [read_frame_number(pixels, (192, 128)) for _, pixels in frames]
        assert numbers[:-1] == list(range(len(numbers) - 1))
        assert len(numbers) > 60 * share - 8
        assert frames.findings == {"damage": {"packets": 1, "seconds": 0.1}}


def moved(data: bytes, seconds: float) -> bytes:
    """Fragments whose clock is later."""
    changed, at = bytearray(data), 0
    while (at := data.find(b"tfdt", at + 1)) > 0:
        kind = ">Q" if data[at + 4] else ">I"
        now = struct.unpack_from(kind, data, at + 8)[0]
        struct.pack_into(kind, changed, at + 8, now + round(seconds * 90_000))
    return bytes(changed)


CLOCKS: dict[str, Callable[[bytes, bytes], tuple[bytes, bytes]]] = {
    "begins again": lambda first, second: (first, second),
    "back 100 s": lambda first, second: (moved(first, 100), second),
    "overlap": lambda first, second: (first, moved(second, 0.7)),
    "forward 100 s": lambda first, second: (first, moved(second, 100)),
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("bframes", ["0", "2"])
def test_fragments_joined(decoder: DecoderProcess, tmp_path: Path, bframes: str, head: bool, clock: str) -> None:
    """FFmpeg flags the first fragment behind a step back as one that is not to be shown."""
    path = tmp_path / "clip.mp4"
    first, second = CLOCKS[clock](*recordings(path, fps=10, muxing=FRAGMENTS, options={"bf": bframes}))
    path.write_bytes(first + (second if head else second[second.index(b"moof") - 4 :]))
    found = check(decoder, path, [*range(20), *range(100, 120)], 10)
    assert found == [{"discontinuities": 1}] * len(available_decoders())
