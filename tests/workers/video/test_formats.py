"""Formats that hold their media themselves are read; scripts of other files are refused; what is no video is named."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image
from tests.clips import make_clip

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

GEOMETRY = FrameGeometry(size=96)
CONTAINERS = [
    ("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"),
    ("a.ts", "mpeg2video"), ("a.m2ts", "libx264"), ("a.mpg", "mpeg2video"), ("a.vob", "mpeg2video"), ("a.flv", "flv"),
    ("a.wmv", "wmv2"), ("a.asf", "msmpeg4v3"), ("a.ogv", "libtheora"), ("a.mxf", "mpeg2video"), ("a.gif", "gif"),
    ("a.3gp", "libx264"), ("a.3g2", "libx264"), ("a.ivf", "libvpx"), ("a.nut", "mpeg4"), ("a.m2v", "mpeg2video"),
    ("a.h264", "libx264"), ("a.m4v", "mpeg4"), ("a.mjpeg", "mjpeg"),
]  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess() as running:
        yield running


def reason(decoder: DecoderProcess, path: Path) -> str:
    """Why a file is refused: the same by each decoder."""
    reasons = set()
    for name in available_decoders():
        with pytest.raises(VideoError) as error:
            list(decoder.open(str(path), FrameSampling(), GEOMETRY, name))
        reasons.add(str(error.value))
    (found,) = reasons
    assert "\n" not in found
    return found


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_what_holds_its_media_is_read(tmp_path: Path, decoder: DecoderProcess, name: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV does not encode {codec}")
    pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    make_clip(tmp_path / name, codec=codec, fps=25, pix_fmt=pix_fmt)
    assert list(decoder.open(str(tmp_path / name), FrameSampling(), GEOMETRY, "pyav"))


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv", "txt", "ffconcat", "m3u8", "mpd", "sdp", "jpg"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ffconcat version 1.0\nfile clip.ts\n", "ffconcat"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n", "HLS"),
        (
            '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            '<Representation id="1" mimeType="video/mp4" bandwidth="1"><BaseURL>clip.mp4</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>",
            "DASH",
        ),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "SDP"),
    ],
)
def test_a_script_of_other_files_is_refused(
    tmp_path: Path, decoder: DecoderProcess, suffix: str, text: str, what: str
) -> None:
    for name in ("clip.ts", "clip.mp4"):
        make_clip(tmp_path / name)
    path = tmp_path / f"script.{suffix}"
    path.write_text(text)
    assert what in reason(decoder, path)


def test_a_sequence_of_pictures_is_refused(tmp_path: Path, decoder: DecoderProcess) -> None:
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"secret{number}.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "secret%d.jpg")
    assert reason(decoder, tmp_path / "secret%d.jpg") == "a picture (JPEG)"


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.mp4", b"x" * 5000)
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"))
    return data.getvalue()


def box(kind: bytes, body: bytes = b"") -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (b"/annex/objects/SHA256E-s5--00.mp4\n", "git-annex pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
        (b"<HTML><HEAD><TITLE>Sorry</TITLE>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
        (json.dumps({"error": "not found"}).encode(), "JSON text"),
        (b'\xef\xbb\xbf[{"error": 1}]', "JSON text"),
        (zipped(), "ZIP archive"),
        (tarred(), "tar archive"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip archive"),
        (b"%PDF-1.7\n%" + bytes(range(128, 255)), "PDF document"),
        (bytes(10_000), "nothing but zeros"),
        (box(b"styp", b"msdh" + bytes(8)) + box(b"moof", bytes(200)) + box(b"mdat", bytes(500)), "a fragment of MP4"),
        (box(b"ftyp", b"isom" + bytes(12)) + box(b"mdat", bytes(3000)), "index (moov) is missing"),
        (b"\x1f\x43\xb6\x75" + bytes(500), "a fragment of WebM"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_is_no_video_is_named(
    tmp_path: Path, decoder: DecoderProcess, data: bytes, what: str, suffix: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(data)
    assert what in reason(decoder, path)


def test_a_copy_that_lost_its_index_is_named(tmp_path: Path, decoder: DecoderProcess) -> None:
    """MP4 as cameras and encoders write it, the index at the end."""
    whole = make_clip(tmp_path / "whole.mp4").read_bytes()
    assert whole.rindex(b"moov") > whole.rindex(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.rindex(b"moov") - 4])
    assert "index (moov) is missing" in reason(decoder, tmp_path / "cut.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.99])
def test_a_copy_that_lost_a_part_of_its_index_is_named(
    tmp_path: Path, decoder: DecoderProcess, suffix: str, share: float
) -> None:
    whole = make_clip(tmp_path / f"whole.{suffix}").read_bytes()
    start = whole.rindex(b"moov") - 4
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: start + max(8, int(share * (len(whole) - start)))])
    assert "cut off" in reason(decoder, path)


@pytest.mark.parametrize(("muxing", "table", "place"), [({}, b"stsz", 8), ({"movflags": "frag_keyframe"}, b"trun", 4)])
def test_an_index_of_more_than_there_can_be(
    tmp_path: Path, decoder: DecoderProcess, muxing: dict[str, str], table: bytes, place: int
) -> None:
    """A file of 5 KB would take gigabytes: its samples are said to be all alike, so that each needs no entry."""
    path = make_clip(tmp_path / "clip.mp4", options={"bf": "0"}, muxing=muxing)
    data = bytearray(path.read_bytes())
    at = data.index(table) + 4
    data[at : at + place] = bytes(place - 1) + b"\1"  # no flags; of the index, a size of one byte for all
    data[at + place : at + place + 4] = (1 << 24).to_bytes(4, "big")
    path.write_bytes(data)
    assert reason(decoder, path) == f"its index is wrong: it lists {1 << 24} samples in {len(data)} bytes"
