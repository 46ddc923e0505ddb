"""Transport streams lose pieces anywhere: at the start, at the end, in whole pictures. What is lost is told, always."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clips import make_clip, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video import transport
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

CODECS: dict[str, dict[str, Any]] = {
    "h264": {"options": {"bf": "2"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:min-keyint=12:scenecut=0"}},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2"}, "fps": 25},
}
FRAMES = 40
PID = 256  # as FFmpeg numbers the first stream


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    folder = tmp_path_factory.mktemp("recordings")
    found = {}
    for codec, how in CODECS.items():
        data = make_clip(folder / f"{codec}.ts", frames=FRAMES, size=(192, 128), **how).read_bytes()
        found[codec] = [data[at : at + 188] for at in range(0, len(data), 188)]
    return found


def of_video(packets: list[bytes]) -> list[int]:
    return [place for place, packet in enumerate(packets) if int.from_bytes(packet[1:3], "big") & 0x1FFF == PID]


def starts(packets: list[bytes]) -> list[int]:
    """Places of those packets of the video with which a unit begins: here, a picture."""
    return [place for place in of_video(packets) if packets[place][1] & 0x40]


def flagged(packet: bytes) -> bytes:
    """As a receiver passes on what it could not correct."""
    return packet[:1] + bytes([packet[1] | 0x80]) + packet[2:]


DAMAGE: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "lost": lambda packets, at: packets[:at] + packets[at + 1 :],
    "repeated": lambda packets, at: packets[: at + 1] + packets[at:],
    "three lost": lambda packets, at: packets[:at] + packets[at + 3 :],
    "flagged": lambda packets, at: [*packets[:at], flagged(packets[at]), *packets[at + 1 :]],
    "cut off": lambda packets, at: [*packets[:at], packets[at][:100]],
    "cut before": lambda packets, at: packets[:3] + packets[at:],
}


def check(decoder: DecoderProcess, path: Path, codec: str) -> tuple[list[int], dict[str, Any]]:
    """Both decoders show right pictures at right times, or leave them out and say so; or fail with a reason."""
    fps = CODECS[codec].get("fps", 10)
    seen: tuple[list[int], dict[str, Any]] = ([], {})
    for name in available_decoders():
        try:
            frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=192), name)
            found = [(read_frame_number(pixels, (192, 128)), time) for time, pixels in frames]
        except VideoError:
            continue
        numbers = [number for number, _ in found]
        assert numbers == sorted(numbers)
        first = dict(reversed(found))
        start = numbers[0] / fps
        assert all(time == pytest.approx(number / fps - start, abs=1e-3) for number, time in first.items())
        seen = numbers, frames.findings
    return seen


def places(packets: list[bytes]) -> list[int]:
    """Those of the first three pictures and of the last two, and some others."""
    begin, every = starts(packets), of_video(packets)
    ends = [place for place in every if place < begin[3] or place >= begin[-2]]
    return sorted({*ends, *every[::7]})


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("codec", CODECS)
def test_no_loss_is_silent(
    decoder: DecoderProcess, tmp_path: Path, recordings: dict[str, list[bytes]], codec: str, kind: str
) -> None:
    packets = recordings[codec]
    path = tmp_path / "clip.ts"
    # Of a file that ends or begins between two pictures nobody knows more than what it has.
    begin = starts(packets)
    clean = {"lost": begin[-2:], "three lost": range(begin[-3], len(packets))}.get(kind, [])
    clean = begin if kind.startswith("cut") else clean
    told = 0
    for place in places(packets):
        if place in clean or (kind == "cut off" and place < 7):  # so few are none for FFmpeg
            continue
        path.write_bytes(b"".join(DAMAGE[kind](packets, place)))
        numbers, findings = check(decoder, path, codec)
        if numbers and set(numbers) != set(range(FRAMES)):
            assert findings["damage"]["packets"] >= 1, place
            told += 1
    assert told > 4


@pytest.mark.parametrize("raw", [188, 192, 204])
def test_packets_of_other_sizes(
    decoder: DecoderProcess, tmp_path: Path, recordings: dict[str, list[bytes]], raw: int
) -> None:
    """Those of a disc have a time before them (M2TS), those of a satellite a checksum behind."""
    packets = recordings["h264"]
    begin = starts(packets)
    path = tmp_path / "clip.ts"

    def write(kept: list[bytes]) -> None:
        around = (bytes(4), b"") if raw == 192 else (b"", bytes(raw - 188))
        path.write_bytes(b"".join(around[0] + packet + around[1] for packet in kept))

    write(packets)
    assert check(decoder, path, "h264") == (list(range(FRAMES)), {})
    for place in (begin[0], begin[1], begin[9], begin[9] + 1):
        write(packets[:place] + packets[place + 1 :])
        numbers, findings = check(decoder, path, "h264")
        assert numbers
        assert findings["damage"]["packets"] == 1


@pytest.mark.parametrize("raw", [188, 192])
def test_losses_are_found_where_they_are(
    tmp_path: Path, recordings: dict[str, list[bytes]], raw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By places as FFmpeg has them; whatever the length of the blocks that are read."""
    packets = recordings["mpeg2"]
    begin = starts(packets)
    path = tmp_path / "clip.ts"

    def losses(kept: list[bytes], between: bytes = b"") -> transport.Losses:
        head = bytes(raw - 188)
        whole = [head + packet for packet in kept]
        path.write_bytes(b"".join(whole[:30]) + between + b"".join(whole[30:]))
        return transport.find_losses(str(path), PID)

    units = [[at for at in of_video(packets) if begin[n] <= at < begin[n + 1]] for n in range(9)]
    unit = max(range(3, 9), key=lambda n: len(units[n]))
    for length in (1 << 16, 7, 1):
        monkeypatch.setattr(transport, "BLOCK_PACKETS", length)
        whole = losses(packets)  # a unit may fill its last packet by chance
        assert (whole.broken, whole.before_loss, whole.headless) == ([], [], False)
        garbage = losses(packets, b"\x11" * 777)  # between two packets: nothing is missing
        assert (garbage.broken, garbage.before_loss, garbage.headless) == ([], [], False)
        within, last = units[unit][1], units[unit][-1]
        assert losses(packets[:within] + packets[within + 1 :]).broken == [raw * begin[unit]]
        assert losses(packets[: within + 1] + packets[within:]).broken == [raw * begin[unit]]
        assert losses([*packets[:last], flagged(packets[last]), *packets[last + 1 :]]).broken == [raw * begin[unit]]
        without_end = losses(packets[:last] + packets[last + 1 :])
        assert raw * begin[unit] in without_end.in_doubt
        assert without_end.before_loss == [raw * begin[unit]]
        without_unit = losses(packets[: begin[unit]] + packets[begin[unit + 1] :])
        assert raw * begin[unit - 1] not in without_unit.in_doubt
        assert without_unit.before_loss == [raw * begin[unit - 1]]
        assert losses(packets[:3] + packets[begin[0] + 1 :]).headless
        cut = losses(packets[:last])
        assert raw * begin[unit] in cut.in_doubt
        assert cut.before_loss == [raw * begin[unit]]


def test_streams_that_begin_late(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Those of which nobody knows at the start are left out; PyAV stumbles over them at the end."""
    path = tmp_path / "clip.ts"
    how: dict[str, Any] = {
        "size": (192, 128),
        "fps": 25,
        "options": {"b": "2M", "minrate": "2M", "x264-params": "nal-hrd=cbr"},
    }
    first = make_clip(path, frames=700, **how).read_bytes()  # more than is looked at before the first packet
    middle = make_clip(path, frames=20, first=1000, muxing={"mpegts_start_pid": "512"}, **how).read_bytes()
    path.write_bytes(first + middle + first)
    frames = decoder.open(str(path), FrameSampling(fps=1), FrameGeometry(size=192), "pyav")
    numbers = [read_frame_number(pixels, (192, 128)) for _, pixels in frames]
    assert numbers == list(range(0, 700, 25)) * 2
    assert frames.findings["damage"]["packets"] == frames.findings["discontinuities"] == 1


def test_a_stream_without_stuffing_is_whole(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Some encoders fill each unit up to the end of a packet: that says nothing then."""
    data = make_clip(tmp_path / "source.ts", frames=FRAMES, size=(192, 128), **CODECS["mpeg2"]).read_bytes()
    packets = [bytearray(data[at : at + 188]) for at in range(0, len(data), 188)]
    for packet in packets:
        size = packet[4]
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == PID and packet[3] & 0x20 and size and packet[5] & 0x10 == 0:
            payload = bytes(packet[5 + size :]).ljust(184, b"\0")  # zeros may follow a picture
            packet[3] &= ~0x20
            packet[4:] = payload
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(packets))
    assert check(decoder, path, "mpeg2") == (list(range(FRAMES)), {})
