"""A reel of scenes as a file and in stores, filled by the stages themselves, without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.pipeline.stages import fill_store

from vococache.pipeline.synthetic.reel import Reel, make_reel, write_reel
from vococache.storage import Store

Fill = Callable[..., Store]


@pytest.fixture(scope="session")
def reel() -> Reel:
    """Three minutes, four needles."""
    return make_reel(3, minutes=3, needles=4)


@pytest.fixture(scope="session")
def reel_file(reel: Reel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reel(reel, tmp_path_factory.mktemp("reel") / "reel.mp4")


@pytest.fixture(scope="session")
def fill() -> Fill:
    return fill_store


@pytest.fixture(scope="session")
def reel_store(fill: Fill, reel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A local store of the reel."""
    return fill(str(tmp_path_factory.mktemp("found") / "store"), {"reel": reel_file})
