"""A store that the command line is tried on, and a model that did not make it."""

from pathlib import Path

import pytest

import vococache
from vococache.model.checkpoints import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config


@pytest.fixture(scope="session")
def store(clips: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    vococache.ingest([str(clips / "plain.mp4"), str(clips / "offset.mkv"), str(clips / "text.mp4")], str(path), fps=1)
    return path


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """A checkpoint that made none of these stores."""
    tokenizer = byte_tokenizer()
    other = random_model(small_config(tokenizer), seed=1)
    other.tokenizer = tokenizer
    save_pretrained(other, tmp_path / "other")
    return tmp_path / "other"
