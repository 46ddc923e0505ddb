"""A reel of scenes as a file and in stores."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.pipeline.conftest import Fill

from vococache.pipeline.cli.command import main
from vococache.pipeline.synthetic.reel import Reel, make_reel, write_reel
from vococache.storage import Store


@pytest.fixture(scope="session")
def reel() -> Reel:
    """Three minutes, four needles."""
    return make_reel(3, minutes=3, needles=4)


@pytest.fixture(scope="session")
def reel_file(reel: Reel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reel(reel, tmp_path_factory.mktemp("reel") / "reel.mp4")


@pytest.fixture(scope="session")
def reel_store(fill: Fill, reel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A local store of the reel."""
    return fill(str(tmp_path_factory.mktemp("found") / "store"), {"reel": reel_file})


@pytest.fixture
def voco(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line as a shell would: exit code, standard output and error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voco", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capfd.readouterr()

    return run
