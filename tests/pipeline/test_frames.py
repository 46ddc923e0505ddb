"""What an ingest would see: the frames, and a sheet of them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.clips import make_clip, read_frame_number

import vococache
from vococache.errors import InputError, VideoError
from vococache.pipeline.cli.command import cli


def test_frames_are_those_of_an_ingest(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=40)
    found = list(vococache.frames(path, fps=2, size=96))
    assert [seconds for seconds, _ in found] == [i / 2 for i in range(8)]
    assert [read_frame_number(picture, (96, 64)) for _, picture in found] == list(range(0, 40, 5))
    assert all(picture.shape == (96, 96, 3) and picture.dtype == np.uint8 for _, picture in found)
    assert len(list(vococache.frames(str(path)))) == 4
    assert [round(seconds, 1) for seconds, _ in vococache.frames(path, num_frames=3)] == [0.6, 2.0, 3.3]


def test_either_decoder_or_what_an_ingest_would_take(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "odd.avi", codec="mpeg4", size=(97, 65))  # decord leaves it to PyAV
    with pytest.raises(VideoError, match="left to pyav"):
        vococache.frames(path, decoder="decord")
    by_pyav, by_default = (list(vococache.frames(path, decoder=name, size=64)) for name in ("pyav", None))  # type: ignore[arg-type]
    assert len(by_pyav) == 3
    for (one, left), (two, right) in zip(by_pyav, by_default, strict=True):
        assert one == two
        assert np.array_equal(left, right)


def test_what_is_no_video_raises_as_an_ingest_would_fail(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"hello\n" * 200)
    with pytest.raises(VideoError, match="not a media file, or a damaged one"):
        vococache.frames(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match="no such file"):
        vococache.frames(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="both"):
        vococache.frames(tmp_path / "none.mp4", fps=1, num_frames=2)
    with pytest.raises(InputError, match="expected the decoder decord or pyav"):
        vococache.frames(tmp_path / "none.mp4", decoder="ffmpeg")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_sheet_shows_all_of_them(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=40)
    out = tmp_path / f"sheet.{suffix}"
    result = CliRunner().invoke(cli, ["frames", str(path), "--out", str(out), "--fps", "2", "--size", "96"])
    assert result.exit_code == 0, result.output
    assert result.output == f"{out}: 8 frames from 0.00 to 3.50 s\n"
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape == (2 * 118, 6 * 104, 3)  # eight frames in rows of six, a line for the time under each
    shown = [pixels[y + 4 : y + 100, x + 4 : x + 100] for y in (0, 118) for x in range(0, 624, 104)]
    assert [read_frame_number(picture, (96, 64)) for picture in shown[:8]] == list(range(0, 40, 5))


def test_a_sheet_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=10)
    result = CliRunner().invoke(cli, ["frames", str(path), "--out", str(tmp_path / "sheet.xyz")])
    assert isinstance(result.exception, InputError)
    assert "cannot be written" in str(result.exception)
