"""Stores to serve: of the embedded model, and of one whose answers take long."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.pipeline.serve.service import client, make_store, serving

from vococache.model import load_model
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.pipeline.ask import open_reader
from vococache.workers.reason import ReasonStage


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of four clips, a failed video and a hostile name; the clips lie beside it."""
    folder = tmp_path_factory.mktemp("shelf")
    make_store(folder, load_model("synthetic", device="cpu"), 4)
    return folder / "store"


@pytest.fixture(scope="session")
def service(shelf: Path) -> Iterator[str]:
    """The URL of a service over the shelf that hands out files."""
    with serving(shelf, "--sources") as (_, url):
        yield url


@pytest.fixture(scope="session")
def openai_client(service: str) -> Iterator[openai.OpenAI]:
    with client(service) as made:
        yield made


@pytest.fixture(scope="session")
def stage(shelf: Path) -> ReasonStage:
    """A reader of the same store in this process."""
    return open_reader(str(shelf), device="cpu")


@pytest.fixture(scope="session")
def slow_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose model never comes to an end: an answer of 512 tokens takes seconds."""
    folder = tmp_path_factory.mktemp("slow")
    tokenizer = byte_tokenizer()
    model = random_model(small_config(tokenizer, layers=8), seed=1)
    model.tokenizer = tokenizer
    save_pretrained(model, folder / "model")
    make_store(folder, load_model(str(folder / "model"), device="cpu"), 1)
    return folder / "store"
