"""One thread for tiny models, and an S3 server: one for all tests, as s3fs keeps the address that it first found."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models gain nothing from threads, and on shared cores lose much."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the S3 server writes a line for each request."""
    return tmp_path_factory.mktemp("s3") / "log"


@pytest.fixture
def s3_requests(s3_log: Path) -> Callable[[], list[str]]:
    """The requests since the last call: method and path, in order."""
    places = [0]

    def since() -> list[str]:
        with s3_log.open() as file:
            file.seek(places[0])
            lines = re.sub(r"\x1b\[[0-9;]*m", "", file.read())
            places[0] = file.tell()
        return [f"{method} {path}" for method, path in re.findall(r'"([A-Z]+) (\S+) HTTP', lines)]

    return since


@pytest.fixture(scope="session")
def s3_url(s3_log: Path) -> Iterator[str]:
    """URL of an S3 bucket; this process and its children find the server by environment variables."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with s3_log.open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
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
