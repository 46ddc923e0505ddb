"""Odd but valid files: whichever decoder takes one gives the right frames at the right times, and one does."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition
from PIL import Image
from tests.clips import make_clip, picture, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def patched(path: Path, element: bytes, new: Callable[[bytes], bytes]) -> Path:
    """An mkv file with the first element of an id changed, its length kept."""
    data = bytearray(path.read_bytes())
    at = data.index(element) + len(element)
    size = data[at] & 0x7F
    whole = new(bytes(data[at - len(element) : at + 1 + size]))
    assert len(whole) == len(element) + 1 + size
    data[at - len(element) : at + 1 + size] = whole
    path.write_bytes(data)
    return path


def no_duration(path: Path) -> Path:
    return patched(
        make_clip(path), b"\x44\x89", lambda old: b"\xec" + bytes([0x80 | len(old) - 2]) + bytes(len(old) - 2)
    )


def declared(path: Path, nanoseconds: int) -> Path:
    """An mkv file whose header claims so many nanoseconds a frame."""

    def change(old: bytes) -> bytes:
        length = old[3] & 0x7F
        return old[:4] + nanoseconds.to_bytes(length, "big")

    return patched(make_clip(path), b"\x23\xe3\x83", change)


def remuxed(path: Path, change: Callable[[Any, Any], None], **options: Any) -> Path:
    """A clip whose packets are muxed anew; `change` is told the container and its stream before the first."""
    source = make_clip(path.with_name(f"source{path.suffix}"))
    with av.open(str(source)) as reader, av.open(str(path), "w", **options) as writer:
        stream = reader.streams.video[0]
        target = writer.add_stream_from_template(stream)
        change(writer, target)
        for packet in reader.demux(stream):
            if packet.size:
                packet.stream = target
                writer.mux(packet)
    return path


def with_cover(path: Path) -> Path:
    """Cover art is a video stream of one large picture."""
    image = io.BytesIO()
    Image.fromarray(picture(999, 640, 640)).save(image, "JPEG")

    def change(writer: Any, _: Any) -> None:
        cover = writer.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 640
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        packet = av.Packet(image.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1)
        packet.is_keyframe = True
        writer.mux(packet)

    return remuxed(path, change)


def with_chapters(path: Path) -> Path:
    chapters = [
        {"id": i, "start": i, "end": i + 1, "time_base": Fraction(1), "metadata": {"title": f"{i}"}} for i in range(3)
    ]
    return remuxed(path, lambda writer, _: writer.set_chapters(chapters))


def linked(path: Path) -> Path:
    make_clip(path.with_name("target.mp4"))
    path.symlink_to("target.mp4")
    return path


ODD: dict[str, Callable[[Path], Path]] = {
    "one frame.mp4": lambda path: make_clip(path, frames=1),
    "no declared duration.mkv": no_duration,
    "no index.ts": make_clip,
    "claims 1000 frames a second.mkv": lambda path: declared(path, 1_000_000),
    "claims no time a frame.mkv": lambda path: declared(path, 0),
    "starts before zero.mp4": lambda path: make_clip(path, start=-1.0),
    "starts before zero.mkv": lambda path: make_clip(path, start=-1.0),
    "starts late.ts": lambda path: make_clip(path, start=90_000.0),
    "odd size.webm": lambda path: make_clip(path, size=(97, 63), codec="libvpx-vp9"),
    "odd size.avi": lambda path: make_clip(path, size=(97, 63), codec="mpeg4"),
    "ten bits.mp4": lambda path: make_clip(path, pix_fmt="yuv420p10le"),
    "full range.mp4": lambda path: make_clip(path, pix_fmt="yuvj420p"),
    "interlaced.mp4": lambda path: make_clip(path, options={"x264-params": "interlaced=1"}),
    "alpha.mkv": lambda path: make_clip(path, codec="ffv1", pix_fmt="yuva420p"),
    "alpha.mov": lambda path: make_clip(path, codec="qtrle", pix_fmt="argb"),
    "several streams.mkv": lambda path: make_clip(path, more_sizes=[(48, 32), (32, 32)]),
    "cover art.mp4": with_cover,
    "chapters.mkv": with_chapters,
    "fragmented.mp4": lambda path: remuxed(
        path, lambda *_: None, options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    ),
    "still picture.mkv": lambda path: make_clip(path, codec="mjpeg", pix_fmt="yuvj420p"),
    "B-frames everywhere.mkv": lambda path: make_clip(path, options={"x264-params": "bframes=16:b-adapt=0:keyint=250"}),
    "-name with a dash.mp4": make_clip,
    "name with 'quotes\" and\nnewline.mp4": make_clip,
    "имя видео 動画 🎬.mp4": make_clip,
    "symbolic link.mp4": linked,
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file(decoder: DecoderProcess, tmp_path: Path, name: str) -> None:
    path = ODD[name](tmp_path / name)
    size = (97, 63) if name.startswith("odd") else (96, 64)
    # An mp4 file hides what lies before zero by its edit list; Matroska has nothing before zero.
    expected = {"one frame.mp4": [0], "starts before zero.mp4": [10, 20]}.get(name, [0, 10, 20])
    taken, reasons = [], {}
    for how in available_decoders():
        try:
            frames = list(decoder.open(str(path), FrameSampling(fps=1), FrameGeometry(size=96), how))
        except VideoError as error:
            reasons[how] = str(error)
            continue
        taken.append(how)
        assert [read_frame_number(pixels, size) for _, pixels in frames] == expected, how
        assert [time for time, _ in frames] == pytest.approx([float(i) for i in range(len(expected))], abs=1e-6), how
    assert taken, reasons
    assert "pyav" in taken, "PyAV takes whatever is valid"
