"""The picture that a player would show: its shape, its orientation, its colours, its ground; and of which stream."""

import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.clips import Picture, make_clip, picture, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderName, DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import read_image


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def pictures(decoder: DecoderProcess, path: Path, name: DecoderName, fps: float = 1) -> list[Picture]:
    frames = decoder.open(str(path), FrameSampling(fps=fps), FrameGeometry(size=192), name)
    return [pixels for _, pixels in frames]


def clip_of(
    path: Path,
    frame: Picture,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    **settings: object,
) -> Path:
    """A clip of ten times the same picture; `settings` of the codec's context."""
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = pix_fmt
        for key, value in settings.items():
            setattr(stream.codec_context, key, value)
        kind = "rgba" if frame.shape[2] == 4 else "rgb24"
        for _ in range(10):
            encoded = av.VideoFrame.from_ndarray(frame, format=kind).reformat(format=pix_fmt)
            container.mux(stream.encode(encoded))
        container.mux(stream.encode(None))
    return path


ASPECTS = {"64/45": Fraction(64, 45), "8/9": Fraction(8, 9), "2": Fraction(2), "1/2": Fraction(1, 2)}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_pixels_that_are_not_square(decoder: DecoderProcess, tmp_path: Path, suffix: str, aspect: str) -> None:
    path = clip_of(tmp_path / f"clip.{suffix}", picture(7, 144, 96), sample_aspect_ratio=ASPECTS[aspect])
    shown = round(144 * max(1, ASPECTS[aspect])), round(96 / min(1, ASPECTS[aspect]))
    seen = [pictures(decoder, path, name)[0] for name in available_decoders()]
    for found in seen:
        assert read_frame_number(found, shown) == 7
        ground = np.abs(found.astype(int) - (122, 116, 104)).max(axis=2) < 40
        side = max(shown)
        assert (~ground.all(axis=1)).sum() == pytest.approx(192 * shown[1] / side, abs=2)
        assert (~ground.all(axis=0)).sum() == pytest.approx(192 * shown[0] / side, abs=2)
    assert all(np.array_equal(found, seen[0]) for found in seen)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "ts"), ("mpeg2video", "ts"), ("libx264", "flv")])
def test_pixels_that_change_their_shape(decoder: DecoderProcess, tmp_path: Path, codec: str, suffix: str) -> None:
    """As from a film in 4 : 3 to one in 16 : 9 of a broadcast, or from one recording to the next."""
    parts = []
    for place, aspect in enumerate((Fraction(16, 15), Fraction(64, 45))):
        part = tmp_path / f"{place}.{suffix}"
        clip_of(part, picture(place, 144, 96), codec=codec, rate=25, sample_aspect_ratio=aspect)
        parts.append(part.read_bytes()[13 * place if suffix == "flv" else 0 :])
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(b"".join(parts))
    for name in available_decoders():
        try:
            found = pictures(decoder, path, name, fps=25)
        except VideoError as error:
            assert "left to pyav" in str(error)  # noqa: PT017
            continue
        assert name == "pyav"
        assert len(found) == 20
        assert read_frame_number(found[2], (round(144 * 16 / 15), 96)) == 0
        assert read_frame_number(found[17], (round(144 * 64 / 45), 96)) == 1
        heights = [(np.abs(p.astype(int) - (122, 116, 104)).max(axis=2) >= 40).any(axis=1).sum() for p in found]
        assert heights[2] > heights[17] + 20


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


# What a player does with what is stored, by the matrix of a track's header.
MATRICES: dict[tuple[int, int, int, int], Callable[[Picture], Picture]] = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, 3),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: p.swapaxes(0, 1)[::-1, ::-1],
}


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_all_eight_matrices(
    decoder: DecoderProcess, tmp_path: Path, suffix: str, matrix: tuple[int, int, int, int]
) -> None:
    stored = picture(11, 96, 64)
    plain = clip_of(tmp_path / f"plain.{suffix}", stored)
    (before,) = pictures(decoder, plain, "pyav")
    path = with_matrix(clip_of(tmp_path / f"clip.{suffix}", stored), *matrix)
    for name in available_decoders():
        (found,) = pictures(decoder, path, name)
        assert np.abs(found.astype(int) - MATRICES[matrix](before)).max() <= 40, name  # but for the resizing's edges
        assert np.abs(found.astype(int) - MATRICES[matrix](before)).mean() < 0.5, name


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv420p"])
@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_is_shown_as_sdr(decoder: DecoderProcess, tmp_path: Path, transfer: str, pix_fmt: str) -> None:
    """Bars of SDR, as they are graded for HDR by BT.2408: white at 203 nits. As they are they would be 30 to 50 off."""
    rng = np.random.default_rng(0)
    bars = rng.integers(16, 192, (4, 6, 3)).repeat(48, 0).repeat(48, 1)
    light = (bars / 255) ** 2.4 @ np.linalg.inv(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    ).T
    if transfer == "pq":
        power = (np.maximum(light, 0) * 203 / 10_000) ** (1305 / 8192)
        value = ((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        scene = (np.maximum(light, 0) * 203 / 1000) ** (1 / 1.2)
        logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        value = np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)
    r, g, b = np.moveaxis(value, 2, 0)
    y = 0.2627 * r + 0.678 * g + 0.0593 * b
    planes = [219 * y + 16, 224 * (b - y) / 1.8814 + 128, 224 * (r - y) / 1.4746 + 128]
    ten = pix_fmt == "yuv420p10le"
    planes = [np.round(plane * (4 if ten else 1)) for plane in planes]
    flat = np.concatenate([planes[0], *(plane[::2, ::2].reshape(-1, planes[0].shape[1]) for plane in planes[1:])])
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        number = {"pq": "smpte2084", "hlg": "arib-std-b67"}[transfer]
        params = f"log-level=none:crf=4:colorprim=bt2020:transfer={number}:colormatrix=bt2020nc:range=limited"
        stream = container.add_stream("libx265", rate=10, options={"x265-params": params})
        stream.width, stream.height, stream.pix_fmt = bars.shape[1], bars.shape[0], pix_fmt
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(flat.astype(np.uint16 if ten else np.uint8), format=pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = decoder.open(str(path), FrameSampling(), FrameGeometry(size=288), "pyav")
    found = next(iter(frames))[1][48:240]
    assert np.abs(found.astype(int) - bars).mean() < 5
    if "decord" in available_decoders():
        with pytest.raises(VideoError, match="left to pyav"):
            list(decoder.open(str(path), FrameSampling(), FrameGeometry(size=288), "decord"))


def two_streams(path: Path, *, still_first: bool, film_is_default: bool = True) -> Path:
    """A film of 96 x 64 and a still picture of 640 x 640, as a poster is muxed."""
    image = io.BytesIO()
    Image.fromarray(picture(999, 640, 640)).save(image, "JPEG")
    source = make_clip(path.with_name(f"source{path.suffix}"), frames=40)
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]

        def add_still() -> av.VideoStream:
            still = writer.add_stream("mjpeg", rate=1)
            still.width = still.height = 640
            still.pix_fmt = "yuvj420p"
            return still

        if still_first:
            still, film = add_still(), writer.add_stream_from_template(stream)
        else:
            film, still = writer.add_stream_from_template(stream), add_still()
        from av.stream import Disposition

        film.disposition = Disposition.default if film_is_default else Disposition(0)
        still.disposition = Disposition(0) if film_is_default else Disposition.default
        packet = av.Packet(image.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = still, 0, 0, Fraction(1)
        packet.is_keyframe = True
        writer.mux(packet)
        for packet in reader.demux(stream):
            if packet.size:
                packet.stream = film
                writer.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("still_first", [True, False])
@pytest.mark.parametrize("film_is_default", [True, False])
def test_a_film_comes_before_a_still_picture(
    decoder: DecoderProcess, tmp_path: Path, suffix: str, still_first: bool, film_is_default: bool
) -> None:
    path = two_streams(tmp_path / f"clip.{suffix}", still_first=still_first, film_is_default=film_is_default)
    for name in available_decoders():
        found = [read_frame_number(p, (96, 64)) for p in pictures(decoder, path, name)]
        assert found == [0, 10, 20, 30], name


def half_transparent() -> Picture:
    """Left half opaque red, right half transparent over a hidden green."""
    frame = np.zeros((64, 96, 4), np.uint8)
    frame[:, :48] = (200, 30, 30, 255)
    frame[:, 48:] = (0, 255, 0, 0)
    return frame


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mov", "qtrle", "argb"),
        ("clip.mkv", "ffv1", "yuva420p"),
        ("clip.avi", "png", "rgba"),
        ("clip.apng", "apng", "rgba"),
        ("png.mov", "png", "rgba"),
    ],
)
def test_transparency_is_laid_over_white(
    decoder: DecoderProcess, tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    path = clip_of(tmp_path / name, half_transparent(), codec=codec, pix_fmt=pix_fmt)
    found = pictures(decoder, path, "pyav")[0][32:-32]
    assert np.abs(found[16:-16, 20:76].astype(int) - (200, 30, 30)).max() <= 12
    assert np.abs(found[16:-16, 116:-20].astype(int) - 255).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_a_transparent_image_too(decoder: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    frame = Image.fromarray(half_transparent())
    frame.save(tmp_path / f"image.{suffix}", **({"lossless": True} if suffix == "webp" else {}))  # type: ignore[arg-type]
    found = read_image(tmp_path / f"image.{suffix}", FrameGeometry(size=192))[32:-32]
    assert np.abs(found[16:-16, 20:76].astype(int) - (200, 30, 30)).max() <= 12
    assert np.abs(found[16:-16, 116:-20].astype(int) - 255).max() <= 3
    if suffix == "gif":
        assert (
            np.abs(pictures(decoder, tmp_path / "image.gif", "pyav")[0][40:-40, 116:-20].astype(int) - 255).max() <= 3
        )
