"""Packets that yield no picture: a lost one is never a shift. decord gives the right frames, or leaves them to PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from tests.clips import Picture, make_clip, picture, read_frame_number, remux

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderName, DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

VOP = b"\x00\x00\x01\xb6"


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def look(decoder: DecoderProcess, path: Path, name: DecoderName, fps: float = 10) -> tuple[list[int], list[float]]:
    """Frame numbers, and the times of these frames."""
    frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=192), name)
    found = [(read_frame_number(pixels, (192, 128)), round(time, 2)) for time, pixels in frames]
    return [number for number, _ in found], [time for _, time in found]


def check(
    decoder: DecoderProcess, path: Path, numbers: list[int], times: list[float], *, by_decord: bool = False
) -> None:
    for name in available_decoders():
        try:
            found = look(decoder, path, name)
        except VideoError:
            assert name == "decord"
            assert not by_decord
            continue
        assert found == (numbers, times), name


def held(lost: set[int], count: int = 40) -> list[int]:
    """Which place is shown at each, where those of `lost` give no picture."""
    shown: list[int] = []
    for place in range(count):
        shown.append(shown[-1] if place in lost else place)
    return shown


def not_coded(data: bytes) -> bytes:
    """A VOP of MPEG-4 with ten frames a second, as a P-VOP with its `vop_coded` set to 0."""
    at = data.index(VOP) + 4
    bits = "".join(f"{byte:08b}" for byte in data[at : at + 4])
    clock = bits[2 : 2 + bits[2:].index("0") + 1 + 1 + 4 + 1]  # seconds, marker, four bits of increment, marker
    head = "01" + clock + "0"
    head += ("0" + "1" * 7)[: -len(head) % 8 or 8]
    return data[:at] + int(head, 2).to_bytes(len(head) // 8, "big")


def without_vops(folder: Path, suffix: str, lost: set[int], still: range, **how: Any) -> Path:
    """A clip whose pictures stand still in `still`, and whose packets of places `lost` say so and no more."""

    def draw(number: int, width: int, height: int) -> Picture:
        return picture(still.start if number in still else number, width, height)

    source = make_clip(folder / "source.avi", frames=40, size=(192, 128), codec="mpeg4", draw=draw, **how)
    return remux(
        source,
        folder / f"clip.{suffix}",
        lambda place, packet: not_coded(bytes(packet)) if place in lost else None,
    )


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
@pytest.mark.parametrize("gop", [1, 100])
def test_vops_that_are_not_coded(decoder: DecoderProcess, tmp_path: Path, suffix: str, gop: int) -> None:
    """Xvid writes them where nothing moves: the picture before stays, and each later one is at its own time."""
    lost = {5, 6, 7}
    still = range(4, 8)
    path = without_vops(tmp_path, suffix, lost, still, gop=gop, options={"sc_threshold": "1000000000"})
    check(decoder, path, held(lost), [place / 10 for place in held(lost)])


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
def test_packed_pictures(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    """DivX put a B-VOP into the packet of the P-VOP that it needs, and one that is not coded into its own."""
    options = {"bf": "1", "b_strategy": "0", "sc_threshold": "1000000000"}
    source = make_clip(tmp_path / "source.avi", frames=40, size=(192, 128), codec="mpeg4", options=options)
    with av.open(str(source)) as reader:
        stream = reader.streams.video[0]
        packets = [bytes(packet) for packet in reader.demux(stream) if packet.size]
        at = packets[0].index(b"Lavc")  # by what the encoder calls itself decoders know
        packets = [packet.replace(packets[0][at : at + 13], b"DivX503b1393p") for packet in packets]
        kinds = [packet[packet.index(VOP) + 4] >> 6 for packet in packets]
        for place, kind in enumerate(kinds):
            if kind == 2:
                empty = not_coded(packets[place - 1])
                packets[place - 1 : place + 1] = packets[place - 1] + packets[place], empty[empty.index(VOP) :]
        path = tmp_path / f"clip.{suffix}"
        with av.open(str(path), "w") as writer:
            target = writer.add_stream_from_template(stream)
            for place, data in enumerate(packets):
                packet = av.Packet(data)
                packet.pts = packet.dts = place
                packet.duration, packet.time_base = 1, Fraction(1, 10)
                packet.is_keyframe, packet.stream = kinds[place] == 0, target
                writer.mux(packet)
    assert 2 in kinds
    check(decoder, path, list(range(40)), [place / 10 for place in range(40)])


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_invisible_frames(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    """VP8's alternate references are packets of their own, to which muxers give times."""
    source = make_clip(tmp_path / "source.webm", frames=40, size=(192, 128), codec="libvpx", gop=100)
    lost = {8, 9, 25}

    def change(place: int, packet: av.Packet) -> bytes | None:
        data = bytes(packet)
        return bytes([data[0] & ~0x10]) + data[1:] if place in lost else None  # show_frame

    path = remux(source, tmp_path / f"clip.{suffix}", change)
    check(decoder, path, held(lost), [place / 10 for place in held(lost)])


def cut(path: Path, share: float) -> Path:
    """A recording that was begun in the middle: of a transport stream whole packets of 188 bytes."""
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])
    return path


OPEN: dict[str, dict[str, Any]] = {
    "hevc.ts": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"},
    },
    "h264.ts": {"options": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}},
    "mpeg2.ts": {
        "codec": "mpeg2video",
        "options": {"bf": "2", "sc_threshold": "1000000000", "b_strategy": "0"},
        "fps": 25,
    },
}


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("share", [0.13, 0.4, 0.62])
def test_a_recording_cut_at_an_open_group_of_pictures(
    decoder: DecoderProcess, tmp_path: Path, name: str, share: float
) -> None:
    how = OPEN[name]
    fps = how.get("fps", 10)
    path = cut(make_clip(tmp_path / name, frames=120, size=(192, 128), **how), share)
    seen = look(decoder, path, "pyav", fps)
    assert seen[0] == list(range(seen[0][0], 120))
    assert seen[1] == pytest.approx([i / fps for i in range(len(seen[0]))])
    for decoder_name in available_decoders():
        try:
            assert look(decoder, path, decoder_name, fps) == seen
        except VideoError:
            assert decoder_name == "decord"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pictures_that_do_not_change_are_no_lost_ones(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    """decord repeats its last picture for lost ones; a scene that stands still repeats it too, and stays decord's."""

    def still(number: int, width: int, height: int) -> Picture:
        return picture(min(number, 20), width, height)

    path = make_clip(tmp_path / f"clip.{suffix}", frames=40, size=(192, 128), draw=still)
    check(decoder, path, [min(i, 20) for i in range(40)], [i / 10 for i in range(40)], by_decord=True)


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_size_changes(decoder: DecoderProcess, tmp_path: Path, codec: str) -> None:
    how: dict[str, Any] = {"codec": codec, "fps": 25} if codec == "mpeg2video" else {"fps": 25}
    one = make_clip(tmp_path / "one.ts", frames=50, size=(192, 128), **how)
    two = make_clip(tmp_path / "two.ts", frames=50, size=(288, 192), start=2.04, first=100, **how)
    path = tmp_path / "clip.ts"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    for name in available_decoders():
        try:
            found = look(decoder, path, name, 25)
        except VideoError:
            assert name == "decord"
            continue
        assert found[0] == [*range(50), *range(100, 150)], name
