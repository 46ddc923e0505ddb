"""Videos and store behind URLs, through a whole local ingest; the S3 server is a process of its own."""

import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from tests.cluster.conftest import FPS, Command

from vococache.storage import maintenance, open_store

pytestmark = pytest.mark.slow


def test_from_s3_to_s3(
    s3_url: str, voco: Callable[..., Command], videos: Path, videos_content: dict[str, bytes], tmp_path: Path
) -> None:
    place = f"{s3_url}/{uuid.uuid4().hex}"
    prefix = place.removeprefix("s3://caches/")
    client = boto3.client("s3")
    for path in videos.iterdir():
        client.upload_file(str(path), "caches", f"{prefix}/videos/{path.name}")
    client.put_object(Bucket="caches", Key=f"{prefix}/videos/text.mp4", Body=b"no video\n" * 99)
    copies = tmp_path / "copies"
    copies.mkdir()
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {"TMPDIR": str(copies)}
    store = f"{place}/caches"
    job = voco("ingest", f"{place}/videos/*.mp4", "--store", store, "--fps", FPS, "--json", env=env)
    code, out, err = job.finish(timeout=280)
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert set(report["done"]) == {path.stem for path in videos.iterdir()}
    assert list(report["failed"]) == ["text"]
    assert list(copies.rglob("*.mp4")) == []
    job.wait_until_gone()

    opened = open_store(store)
    assert not list(maintenance.verify(opened))
    found = {without_generation(entry.key): opened.objects.get(entry.key) for entry in opened.objects.walk("videos")}
    for key, data in videos_content.items():
        if "/c." in key:
            assert found[without_generation(key)] == data, "the bytes of a local store"
    code, out, err = voco("ask", store, "three_chunks", "What is it?", "--json", env=env).finish()
    assert code == 0
    assert json.loads(out)["answers"][0]["question"] == "What is it?"
    code, out, err = voco("ingest", f"{place}/videos/", "--store", store, "--fps", FPS, "--json", env=env).finish()
    assert len(json.loads(out)["up_to_date"]) == len(report["done"])


def without_generation(key: str) -> str:
    """A chunk's key but for what depends on where its video came from."""
    return re.sub(r"\.[0-9a-f]{16}(?=/)", "", key)


def test_a_store_in_memory_is_refused(voco: Callable[..., Command], videos: Path) -> None:
    code, out, err = voco("ingest", videos, "--store", "memory://store").finish()
    assert (code, out) == (2, "")
    assert err.startswith("voco: error: store memory://store cannot be used on node ")
    assert err.count("\n") == 1


def test_without_credentials_one_line_says_so(s3_url: str, voco: Callable[..., Command], videos: Path) -> None:
    env = {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    code, out, err = voco("ingest", videos, "--store", f"{s3_url}/none", env=env).finish()
    assert (code, out) == (2, "")
    assert err.startswith("voco: error: cannot ")
    assert err.count("\n") == 1
