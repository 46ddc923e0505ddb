"""A model and a store that it fills, without Ray."""

from pathlib import Path

import pytest

from vococache.model.voco import VoCoModel
from vococache.storage import Store, open_store
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor


@pytest.fixture(scope="session")
def model() -> VoCoModel:
    return Compressor(model="synthetic").load("cpu")


@pytest.fixture
def store(tmp_path: Path, model: VoCoModel) -> Store:
    return open_store(str(tmp_path / "store"), "a", header=store_header(model))
