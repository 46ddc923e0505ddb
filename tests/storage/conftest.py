"""Three kinds of place for a store: local disk, fsspec's memory, an S3 server."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.storage.samples import HEADER

from vococache.storage import Store, open_store


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    base = "memory:/" if request.param == "memory" else request.getfixturevalue("s3_url")
    return f"{base}/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    """An empty store of each kind."""
    return open_store(url, "a", header=HEADER)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), "a", header=HEADER)


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[[Store], dict[str, bytes]]:
    """All bytes of a local store, by key."""

    def take(store: Store) -> dict[str, bytes]:
        root = Path(store.url)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return take
