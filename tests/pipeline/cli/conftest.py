"""A store that the command line is tried on, and a model that did not make it."""

from pathlib import Path

import pytest
from tests.pipeline.stages import fill_store

from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config


@pytest.fixture(scope="session")
def store(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    fill_store(str(path), {name.split(".")[0]: clips / name for name in ("plain.mp4", "offset.mkv", "text.mp4")})
    return path


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """A checkpoint that made none of these stores."""
    tokenizer = byte_tokenizer()
    other = random_model(small_config(tokenizer), seed=1)
    other.tokenizer = tokenizer
    save_pretrained(other, tmp_path / "other")
    return tmp_path / "other"
