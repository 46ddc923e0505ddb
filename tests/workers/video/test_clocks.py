"""Clocks that jump, wrap, stand still or are missing: the right frames at times that rise, by both decoders."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from tests.clips import make_clip, read_frame_number, remux

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderName, DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

H264: dict[str, Any] = {"options": {"bf": "2"}}
MPEG2: dict[str, Any] = {"codec": "mpeg2video", "options": {"bf": "2"}, "fps": 25}
DISCONTINUITY: dict[str, Any] = {"muxing": {"mpegts_flags": "initial_discontinuity"}}


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def look(decoder: DecoderProcess, path: Path, name: DecoderName, fps: float) -> tuple[list[int], list[float], Any]:
    frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=96), name)
    found = [(read_frame_number(pixels, (96, 64)), time) for time, pixels in frames]
    return [number for number, _ in found], [time for _, time in found], frames


def both(
    decoder: DecoderProcess, path: Path, expected: list[int], fps: float = 10, *, by_decord: bool = True
) -> list[Any]:
    """Each decoder gives the frames of `expected`, evenly in time, and the same when measured; decord may leave it."""
    seen = []
    for name in available_decoders():
        try:
            numbers, times, frames = look(decoder, path, name, fps)
        except VideoError:
            assert name == "decord"
            assert not by_decord
            continue
        assert numbers == expected, name
        assert times == pytest.approx([i / fps for i in range(len(expected))], abs=1e-3), name
        assert frames.duration == pytest.approx(len(expected) / fps, abs=0.01), name
        assert decoder.measure(str(path)) == pytest.approx(frames.duration)
        spread = decoder.open(str(path), FrameSampling(num_frames=len(expected)), FrameGeometry(size=96), name)
        assert [read_frame_number(pixels, (96, 64)) for _, pixels in spread] == expected, name
        seen.append(frames.findings)
    assert seen
    return seen


def joined(path: Path, first: dict[str, Any], second: dict[str, Any], how: dict[str, Any], head: int = 0) -> Path:
    """Two recordings of 20 frames, the second from number 100 on, as one file; `head`: bytes that it says once."""
    parts = []
    for place, more in enumerate((first, second)):
        part = make_clip(path.with_name(f"{place}{path.suffix}"), frames=20, **({"first": 100 * place} | how | more))
        parts.append(part.read_bytes()[head * place :])
    path.write_bytes(b"".join(parts))
    return path


def ts(first: float, second: float, how: dict[str, Any] = H264) -> Callable[[Path], Path]:
    return lambda path: joined(path, {"start": first}, {"start": second, **DISCONTINUITY}, how)


def flv(first: float, second: float) -> Callable[[Path], Path]:
    return lambda path: joined(path, {"start": first}, {"start": second}, H264, head=13)


JOINED: dict[str, Callable[[Path], Path]] = {
    "back 100 s.ts": ts(100, 0),
    "back 30 s.ts": ts(30, 0),
    "overlap.ts": ts(0, 0.75),
    "from the start again.ts": ts(0, 0),
    "forward 300 s.ts": ts(0, 300),
    "forward 11 s.ts": ts(0, 13),
    "hevc, back.ts": ts(50, 0, {"codec": "libx265"}),
    "mpeg2, back.ts": ts(50, 0, MPEG2),
    "back 100 s.flv": flv(100, 0),
    "back 2 s.flv": flv(0, 0),
    "forward 300 s.flv": flv(0, 300),
    "back.mpg": lambda path: joined(path, {"start": 100}, {}, MPEG2),
    "forward.mpg": lambda path: joined(path, {}, {"start": 100}, MPEG2),
    "back.mkv": lambda path: joined(path, {"start": 7}, {}, H264),
    "back.webm": lambda path: joined(path, {}, {}, {"codec": "libvpx-vp9"}),
}


@pytest.mark.parametrize("name", JOINED)
def test_parts_are_joined_end_to_end(decoder: DecoderProcess, tmp_path: Path, name: str) -> None:
    path = JOINED[name](tmp_path / name)
    fps = 25 if "mpeg2" in name or name.endswith("mpg") else 10
    seen = both(decoder, path, [*range(20), *range(100, 120)], fps, by_decord=not name.endswith("mpg"))
    assert all(findings == {"discontinuities": 1} for findings in seen)


def restamped(path: Path, times: Callable[[int], float]) -> Path:
    """A clip without B-frames whose container's clock says `times` (place -> seconds) whatever it is."""
    source = make_clip(path.with_name(f"source{path.suffix}"), frames=40, options={"bf": "0"})
    with av.open(str(source)) as reader, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as writer:
        stream = reader.streams.video[0]
        target = writer.add_stream_from_template(stream)
        for place, packet in enumerate(packet for packet in reader.demux(stream) if packet.size):
            packet.pts = packet.dts = round(times(place) / stream.time_base)
            packet.stream = target
            writer.mux(packet)
    return path


@pytest.mark.parametrize("start", [2**33 / 90_000 - 1.5, 2**33 / 90_000 - 0.1])
def test_a_clock_of_33_bits_begins_again(decoder: DecoderProcess, tmp_path: Path, start: float) -> None:
    path = make_clip(tmp_path / "clip.ts", frames=40, start=start, **H264)
    assert both(decoder, path, list(range(40))) == [{}] * len(available_decoders())


def test_a_clock_of_31_bits_begins_again(decoder: DecoderProcess, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.flv", frames=40, start=2**31 / 1000 - 1.5, **H264)
    assert both(decoder, path, list(range(40))) == [{}] * len(available_decoders())


def test_a_clock_that_jumps_between_keyframes_loses_no_frame(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A camera's clock is set anew in the middle of a group of pictures, which goes on."""
    for name, jump in (("forward.ts", 500.0), ("wide.ts", 40.0)):
        path = restamped(tmp_path / name, lambda place, jump=jump: place / 10 + jump * (place >= 17))  # type: ignore[misc]
        seen = both(decoder, path, list(range(40)))
        assert all(findings == {"discontinuities": 1} for findings in seen)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "flv"])
@pytest.mark.parametrize("bframes", ["0", "2"])
def test_a_still_of_minutes_stays(decoder: DecoderProcess, tmp_path: Path, suffix: str, bframes: str) -> None:
    shown = [i / 10 + 200 * (i >= 20) for i in range(40)]
    path = make_clip(tmp_path / f"clip.{suffix}", times=shown, options={"bf": bframes})
    for name in available_decoders():
        numbers, _, frames = look(decoder, path, name, 1)
        assert numbers == [0, 10, *[19] * 200, 20, 30], name
        assert frames.duration == pytest.approx(204, abs=0.05), name
        assert frames.findings == {}, name


def test_a_still_of_minutes_stays_in_fragments(decoder: DecoderProcess, tmp_path: Path) -> None:
    shown = [i / 10 + 200 * (i >= 20) for i in range(40)]
    muxing = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = make_clip(tmp_path / "clip.mp4", times=shown, muxing=muxing)
    for name in available_decoders():
        assert look(decoder, path, name, 1)[0] == [0, 10, *[19] * 200, 20, 30], name


WITH_SOUND: dict[str, Any] = {"audio": True, "muxing": {"max_interleave_delta": "0"}}
STILLS: dict[str, dict[str, Any]] = {
    "no length.webm": {"codec": "libvpx", "muxing": {"live": "1"}},  # as browsers record
    "no length.mkv": {"muxing": {"live": "1"}} | H264,
    "no length.flv": {"muxing": {"flvflags": "no_duration_filesize"}} | H264,
    "clip.ogv": {"codec": "libvpx"},
    "constant rate.ts": {"muxing": {"muxrate": "300000"}} | H264,
    "with sound.ts": WITH_SOUND | H264,
    "with sound, mpeg2.ts": WITH_SOUND | MPEG2,
}


@pytest.mark.parametrize("name", STILLS)
def test_a_still_stays_where_a_clock_runs_on(decoder: DecoderProcess, tmp_path: Path, name: str) -> None:
    shown = [i / 10 + 30 * (i >= 20) for i in range(40)]
    path = make_clip(tmp_path / name, times=shown, **STILLS[name])
    still = 20 if name.endswith("ogv") else 19  # Ogg has no times of its own for packets within a page
    for how in available_decoders():
        numbers, _, frames = look(decoder, path, how, 1)
        assert numbers == [0, 10, *[still] * 30, 20, 30], how
        assert frames.duration == pytest.approx(34, abs=0.15), how
        assert frames.findings == {}, how


def test_a_still_in_a_program_stream_with_sound(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Its packs say how time passes; of pictures that begin in one of them the first alone has a time."""
    shown = [i / 25 + 30 * (i >= 25) for i in range(50)]
    path = make_clip(tmp_path / "clip.mpg", times=shown, **WITH_SOUND | MPEG2)
    numbers, _, frames = look(decoder, path, "pyav", 1)
    assert numbers[0] == 0
    assert numbers[2:-2] == [numbers[2]] * 28
    assert frames.duration == pytest.approx(32, abs=0.1)
    assert frames.findings == {}


@pytest.mark.parametrize(("suffix", "hours"), [("mp4", 2), ("mkv", 2), ("flv", 26), ("mkv", 50 * 24)])
def test_no_picture_is_shown_for_hours(decoder: DecoderProcess, tmp_path: Path, suffix: str, hours: int) -> None:
    path = make_clip(tmp_path / f"clip.{suffix}", times=[i / 10 + 3600 * hours * (i >= 5) for i in range(10)])
    for name in available_decoders():
        with pytest.raises(VideoError, match=r"^its clock is wrong: a picture is shown for \d+ s"):
            look(decoder, path, name, 1)
    with pytest.raises(VideoError, match="its clock is wrong"):
        list(decoder.open(str(path), FrameSampling(num_frames=2), FrameGeometry(size=96)))


def test_pictures_do_not_last_for_ever_on_average(decoder: DecoderProcess, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", times=[1800.0 * i for i in range(8)])
    for name in available_decoders():
        with pytest.raises(VideoError, match=r"its clock is wrong: \d pictures last \d+ s, expected at most"):
            look(decoder, path, name, 0.01)


def without_first_times(path: Path, count: int) -> Path:
    """A Matroska file whose first blocks lie before zero, where it has no time: as stream copies begin."""
    source = make_clip(path.with_name("source.mkv"), frames=40, **H264)
    with av.open(str(source)) as reader, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as writer:
        stream = reader.streams.video[0]
        target = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.size:
                packet.pts -= round(count / 10 / stream.time_base)
                packet.dts = packet.dts if packet.dts is None else packet.dts - round(count / 10 / stream.time_base)
                packet.stream = target
                writer.mux(packet)
    return path


@pytest.mark.parametrize("count", [1, 4, 9, 15])
def test_the_first_frames_have_no_time(decoder: DecoderProcess, tmp_path: Path, count: int) -> None:
    both(decoder, without_first_times(tmp_path / "clip.mkv", count), list(range(40)))


@pytest.mark.parametrize(
    "how", [H264, {"options": {"bf": "0"}}, {"codec": "libx265"}, MPEG2, {"codec": "mpeg4"}], ids=str
)
def test_no_clock_at_all(decoder: DecoderProcess, tmp_path: Path, how: dict[str, Any]) -> None:
    """A raw stream: its packets follow each other, 25 a second where the codec does not say."""
    suffix = {"libx265": "hevc", "mpeg2video": "m2v", "mpeg4": "m4v"}.get(how.get("codec", ""), "h264")
    path = make_clip(tmp_path / f"clip.{suffix}", frames=40, **how)
    both(decoder, path, list(range(40)), 10 if suffix in ("hevc", "m4v") else 25)


def test_times_in_the_order_of_decoding(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Muxed from a raw stream by who took one order for the other: FFmpeg shows all but those before the start."""

    def spoil(path: Path) -> Path:
        source = make_clip(path.with_name("source.mp4"), frames=40, **H264)
        with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
            stream = reader.streams.video[0]
            target = writer.add_stream_from_template(stream)
            for packet in reader.demux(stream):
                if packet.size:
                    packet.pts, packet.stream = packet.dts, target
                    writer.mux(packet)
        return path

    for suffix in ("mkv", "flv"):
        path = spoil(tmp_path / f"clip.{suffix}")
        numbers, times, _ = look(decoder, path, "pyav", 10)
        assert numbers == sorted(numbers)
        assert len(set(numbers)) >= 37
        assert times == sorted(times)


def test_remux_keeps_what_it_does_not_change(decoder: DecoderProcess, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4")
    assert look(decoder, remux(source, tmp_path / "clip.mp4", lambda *_: None), "pyav", 1)[0] == [0, 10, 20]
