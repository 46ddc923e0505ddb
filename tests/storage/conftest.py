"""Three kinds of place for a store: local disk, fsspec's memory, an S3 server in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.storage.samples import HEADER

from vococache.storage import Store, open_store


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """URL of an S3 bucket; this process and its children find the server by environment variables."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server died"
                assert time.monotonic() < deadline, "the S3 server did not come up"
                time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket="caches")
        yield "s3://caches"
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
