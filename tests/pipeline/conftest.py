"""Clips on disk, and one local Ray for all tests that ingest."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clips import make_clip, make_sound
from tests.pipeline.command import Result, Voco

from vococache.pipeline.cli import main
from vococache.workers.cluster import runtime


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray that ingest finds running, and so does not start and stop for each test."""
    runtime.start_ray(None)
    yield
    runtime.stop_ray()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three good videos and of everything that a folder of videos may hold besides."""
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "plain.mp4", frames=50, fps=10)
    make_clip(folder / "short.mkv", frames=3, fps=10)
    make_clip(folder / "offset.mkv", frames=30, fps=10, start=5.0, size=(64, 96))
    (folder / "text.mp4").write_text("this is no video\n" * 40)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:-4000])
    make_sound(folder / "sound.mp4")
    return folder


@pytest.fixture
def voco(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Voco:
    """Run the command line as a shell would."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["voco", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Result(int(caught.value.code or 0), *capfd.readouterr())

    return run
