"""Damage that costs a moment: broken packets of what is made for broadcast are left out, counted and told."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clips import make_clip, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, Limits, available_decoders
from vococache.workers.video.sampling import FrameSampling

PACKET = 188  # bytes of a transport stream's
CODECS: dict[str, dict[str, Any]] = {
    "h264": {"options": {"bf": "2"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:min-keyint=12:scenecut=0"}},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2"}, "fps": 25},
}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def look(decoder: DecoderProcess, path: Path, fps: float = 10) -> tuple[list[int], list[float], dict[str, Any]]:
    """As an ingest would: decord, and PyAV where it leaves a file alone. Numbers, times, what was found."""
    for name in available_decoders():
        try:
            frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=192), name)
            found = [(read_frame_number(pixels, (192, 128)), time) for time, pixels in frames]
        except VideoError:
            if name == available_decoders()[-1]:
                raise
            continue
        return [number for number, _ in found], [time for _, time in found], frames.findings
    raise AssertionError


def recorded(path: Path, **how: Any) -> list[bytes]:
    """The transport stream's packets of 60 frames."""
    data = make_clip(path, frames=60, size=(192, 128), **how).read_bytes()
    return [data[at : at + PACKET] for at in range(0, len(data), PACKET)]


def of_video(packets: list[bytes]) -> list[int]:
    """Places of packets of the video, which FFmpeg gives the number 256."""
    return [place for place, packet in enumerate(packets) if int.from_bytes(packet[1:3], "big") & 0x1FFF == 256]


DAMAGE: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "lost": lambda packets, at: packets[:at] + packets[at + 1 :],
    "repeated": lambda packets, at: packets[: at + 1] + packets[at:],
    "three lost": lambda packets, at: packets[:at] + packets[at + 3 :],
    "overwritten": lambda packets, at: [*packets[:at], packets[at][:4] + bytes(184), *packets[at + 1 :]],
    "garbage": lambda packets, at: [*packets[:at], b"\x11" * 500, *packets[at + 1 :]],
}


@pytest.mark.parametrize("kind", ["lost", "repeated", "three lost", "garbage"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_packet_costs_a_moment(decoder: DecoderProcess, tmp_path: Path, codec: str, kind: str) -> None:
    fps = CODECS[codec].get("fps", 10)
    path = tmp_path / "clip.ts"
    packets = recorded(path, **CODECS[codec])
    places = of_video(packets)
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(b"".join(DAMAGE[kind](packets, places[int(share * len(places))])))
        numbers, times, findings = look(decoder, path, fps)
        assert len(numbers) == 60
        assert numbers == sorted(numbers)  # what is lost is a picture that stays, never a shift
        assert all(number <= place for place, number in enumerate(numbers))
        assert all(abs(time - number / fps) < 1e-3 for number, time in zip(numbers, times, strict=True))
        assert findings["damage"]["packets"] >= 1
        wrong = sum(number != place for place, number in enumerate(numbers))
        assert wrong <= 16  # a group of pictures, and those shown before the next keyframe that need it
        assert findings["damage"]["seconds"] <= 16 / fps
        assert wrong / fps <= findings["damage"]["seconds"] + 2.5 / fps


@pytest.mark.parametrize("kind", ["lost", "three lost"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_packet_at_the_start(decoder: DecoderProcess, tmp_path: Path, codec: str, kind: str) -> None:
    """Of the very first picture FFmpeg may flag nothing: the video starts with the next that is whole."""
    fps = CODECS[codec].get("fps", 10)
    path = tmp_path / "clip.ts"
    packets = recorded(path, **CODECS[codec])
    places = of_video(packets)
    starts = [n for n, place in enumerate(places) if packets[place][1] & 0x40]
    told = 0
    for nth in range(1, starts[1]):
        path.write_bytes(b"".join(DAMAGE[kind](packets, places[nth])))
        numbers, _, findings = look(decoder, path, fps)
        assert numbers == list(range(numbers[0], 60))
        assert "damage" not in findings or 0 < findings["damage"]["seconds"] <= 16 / fps
        told += numbers[0] > 0 and "damage" in findings
    assert told  # but for what looks like a recording that starts between two keyframes


@pytest.mark.parametrize("kind", ["overwritten", "lost"])
def test_a_hole_in_a_program_stream(decoder: DecoderProcess, tmp_path: Path, kind: str) -> None:
    """It counts nothing: its damage is what cannot be decoded."""
    path = make_clip(tmp_path / "clip.mpg", frames=100, size=(192, 128), **CODECS["mpeg2"])
    data = path.read_bytes()
    for share in (0.3, 0.5, 0.75):
        at = int(len(data) * share) // 2048 * 2048  # of a pack
        middle = data[at : at + 600] + bytes(64) + data[at + 664 : at + 2048] if kind == "overwritten" else b""
        path.write_bytes(data[:at] + middle + data[at + 2048 :])
        numbers, times, findings = look(decoder, path, 25)
        assert numbers == sorted(numbers)
        assert sum(number not in (place, place - 1) for place, number in enumerate(numbers)) <= 24
        assert all(number <= place + 1 for place, number in enumerate(numbers))
        assert all(abs(time - number / 25) < 0.13 for number, time in zip(numbers, times, strict=True))
        assert findings["damage"]["packets"] >= 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_a_hole_in_a_fragment(decoder: DecoderProcess, tmp_path: Path, share: float) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=60, size=(192, 128), muxing=FRAGMENTS)
    data = path.read_bytes()
    at = data.index(b"mdat", int(len(data) * share)) + 600
    path.write_bytes(data[:at] + bytes(300) + data[at + 300 :])
    numbers, times, findings = look(decoder, path)
    assert all(number == round(10 * time) for number, time in zip(numbers, times, strict=True))
    assert sum(number != place for place, number in enumerate(numbers)) <= 14
    assert findings["damage"]["packets"] >= 1


def test_recordings_joined_lose_nothing(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Two whole streams, one behind the other: FFmpeg misses the pieces between them, but no picture."""
    parts = [
        make_clip(tmp_path / f"{n}.ts", frames=20, size=(192, 128), first=100 * n, options={"bf": "2"}) for n in (0, 1)
    ]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    numbers, _, findings = look(decoder, path)
    assert numbers == [*range(20), *range(100, 120)]
    assert findings == {"damage": {"packets": 1, "seconds": 0.0}, "discontinuities": 1}


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_that_is_cut_off(decoder: DecoderProcess, tmp_path: Path, codec: str) -> None:
    fps = CODECS[codec].get("fps", 10)
    whole = b"".join(recorded(tmp_path / "clip.ts", **CODECS[codec]))
    path = tmp_path / "clip.ts"
    for share in (0.3, 0.55, 0.81):
        path.write_bytes(whole[: int(len(whole) * share)])
        numbers, _, _ = look(decoder, path, fps)
        assert numbers == sorted(numbers)
        assert all(place - 5 <= number <= place for place, number in enumerate(numbers))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_fragments_that_are_cut_off(decoder: DecoderProcess, tmp_path: Path, share: float) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=60, size=(192, 128), muxing=FRAGMENTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    numbers, _, findings = look(decoder, path)
    assert all(place - 3 <= number <= place for place, number in enumerate(numbers))
    assert len(numbers) > 60 * (share - 0.25)
    assert findings.get("damage", {"packets": 1})["packets"] == 1


def test_a_tail_of_zeros(decoder: DecoderProcess, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.ts", frames=40, size=(192, 128))
    path.write_bytes(path.read_bytes() + bytes(300_000))
    assert look(decoder, path)[0] == list(range(40))


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv"])
def test_nothing_but_a_head(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    """In words, whatever there is; never by a number alone."""
    path = make_clip(tmp_path / f"clip.{suffix}", frames=20)
    head = path.read_bytes()[:400]
    for tail in (b"", bytes(100_000)):
        path.write_bytes(head + tail)
        for name in available_decoders():
            with pytest.raises(VideoError) as caught:
                list(decoder.open(str(path), FrameSampling(), FrameGeometry(size=96), name))
            assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("where", ["in the middle", "at the start"])
def test_too_much_damage_fails_the_video(tmp_path: Path, where: str) -> None:
    """A share of all that was recorded: also of what lies before the first picture shown."""
    path = tmp_path / "clip.ts"
    packets = recorded(path, **CODECS["h264"])
    places = of_video(packets)
    begins = [n for n, place in enumerate(places) if packets[place][1] & 0x40]
    lost = {places[len(places) // 3]} if where == "in the middle" else {places[n + 1] for n in begins[:40]}
    path.write_bytes(b"".join(packet for place, packet in enumerate(packets) if place not in lost))
    with DecoderProcess(limits=Limits(max_damage=1)) as lenient:
        numbers, _, findings = look(lenient, path)
    assert len(numbers) == 60 - numbers[0]
    assert (numbers[0] == 0) == (where == "in the middle")
    share = findings["damage"]["seconds"] / 6
    assert where == "in the middle" or share == pytest.approx(numbers[0] / 60)
    with DecoderProcess(limits=Limits(max_damage=share - 0.01)) as strict, pytest.raises(VideoError) as caught:
        look(strict, path)
    assert f"of 6.0 s are lost, expected a share of at most {share - 0.01:g} (--max-damage)" in str(caught.value)
    with DecoderProcess(limits=Limits(max_damage=share + 0.01)) as tolerant:
        assert look(tolerant, path)[0] == numbers


def test_a_file_with_an_index_is_whole_or_broken(decoder: DecoderProcess, tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = make_clip(tmp_path / f"clip.{suffix}", frames=60, size=(192, 128))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 7 // 10])
        with pytest.raises(VideoError):
            look(decoder, path)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "flv"])
def test_a_title_that_is_no_utf8(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    how: dict[str, Any] = {"codec": "mpeg4"} if suffix == "avi" else {}
    path = make_clip(tmp_path / f"clip.{suffix}", frames=40, size=(192, 128), title="a title", **how)
    data = path.read_bytes()
    assert b"a title" in data
    path.write_bytes(data.replace(b"a title", b"\xe9 t\xeftle"))
    assert look(decoder, path)[0] == list(range(40))


@pytest.mark.parametrize("size", [(6000, 2), (2, 6000)])
@pytest.mark.parametrize("pad", [True, False])
def test_a_picture_of_one_long_side_takes_little(tmp_path: Path, size: tuple[int, int], pad: bool) -> None:
    path = make_clip(tmp_path / "clip.mkv", frames=3, size=size, codec="ffv1", pix_fmt="bgr0")
    with DecoderProcess(limits=Limits(memory=1 << 30)) as decoder:
        assert len(list(decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=96, pad=pad), "pyav"))) == 3
