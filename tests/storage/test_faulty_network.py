"""An object store behind a bad network: retried within bounds, right in the end, and no secret in a message."""

import os
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from tests.storage.proxy import Fault, Proxy, proxy
from tests.storage.samples import HEADER, add, kv, times

from vococache.errors import StoreError
from vococache.storage import maintenance, open_store

ODDS: dict[Fault, float] = {"delay": 0.1, "drop": 0.05, "throttle": 0.1, "truncate": 0.05}


@pytest.fixture
def behind(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The S3 server behind a proxy with `ODDS`."""
    with proxy(os.environ["AWS_ENDPOINT_URL"], dict(ODDS), seed=7) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        _forget_connections()
        yield server
    _forget_connections()


def _forget_connections() -> None:
    """s3fs keeps its connections, and with them the address that it first found."""
    from fsspec.asyn import sync
    from s3fs import S3FileSystem

    for key, filesystem in list(S3FileSystem._cache.items()):
        if filesystem.asynchronous:
            continue  # Zarr's, in a loop of its own: dropped here, nobody would close it
        if filesystem._s3 is not None:  # its own close_session waits a tenth of a second, too short on a busy machine
            sync(filesystem.loop, filesystem._s3.close)
        del S3FileSystem._cache[key]


@pytest.mark.slow  # mostly waiting
def test_a_store_is_made_read_and_looked_after(behind: Proxy, s3_url: str) -> None:
    url = f"{s3_url}/{uuid.uuid4().hex}"
    store = open_store(url, "a", header=HEADER)
    for number in range(4):
        add(store, f"clip{number}", segments=8, seed=number)
    for number in range(4):
        np.testing.assert_array_equal(store.read(f"clip{number}"), kv(8, seed=number))
        np.testing.assert_array_equal(store.timestamps(f"clip{number}"), times(8))
    assert list(maintenance.verify(open_store(url))) == []
    maintenance.remove(store, "clip0")
    assert [info.id for info in store.list()] == ["clip1", "clip2", "clip3"]
    assert all(behind.seen[fault] for fault in ODDS), behind.seen


@pytest.mark.slow  # as s3fs waits: for half a minute, then, without a word from the server, for four
def test_one_that_never_works_is_given_up(behind: Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}", "a", header=HEADER)
    add(store, "clip")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    for fault in ("throttle", "drop"):
        behind.odds = {fault: 1.0}
        with pytest.raises(StoreError, match=r"^cannot (read|write|list) s3://caches/") as caught:
            add(store, "late")
        message = str(caught.value)
        assert "\n" not in message
        assert "hunter2" not in message
        assert "testing" not in message
    behind.odds = {}
    np.testing.assert_array_equal(store.read("clip"), kv(7))
    add(store, "late")
    np.testing.assert_array_equal(store.read("late"), kv(7))
