"""Documents that are well sealed but wrong cost their row alone: a seal is no proof of good will."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from tests.storage.samples import HEADER, add, kv

from vococache.errors import CorruptionError
from vococache.storage import Store, maintenance, open_store
from vococache.storage.documents import GROUP, Fields, seal, unseal
from vococache.storage.format import DOCUMENT

HUGE = 10**30


def rewrite(path: Path, change: Callable[[Fields], object], head: bytes = GROUP) -> None:
    """A sealed document with other content, sealed again."""
    fields = unseal(head, path.read_bytes())
    assert fields is not None
    del fields["crc32c"]
    change(fields)
    path.write_bytes(seal(head, fields))


def put(path: str, value: Any) -> Callable[[Fields], object]:
    """Sets a field by its path; without a value, takes it away."""
    *above, last = path.split("|")

    def change(fields: Fields) -> None:
        for name in above:
            fields = fields[name]
        if value is ...:
            fields.pop(last)
        else:
            fields[last] = value

    return change


SUMMARY = [
    ("duration", "x"), ("duration", None), ("duration", -1.0), ("duration", True), ("segments", 10**12),
    ("segments", HUGE), ("segments", -1), ("segments", 0), ("segments", "7"), ("segments", 7.0),
    ("segments", 8), ("bytes", HUGE), ("bytes", "many"), ("padding_bytes", []),
    ("metadata_bytes", -5), ("status", "done"),
    ("status", ["complete"]),
    ("token", 7), ("token", ...), ("intent", None), ("intent", "x"), ("intent", ...), ("intent|source", 7),
    ("intent|source", ...), ("intent|size", "x"), ("intent|mtime_ns", {}), ("intent|content_hash", None),
    ("intent|decoder", 3), ("intent|sampling", "fps"), ("intent|sampling", {"fps": {"a": {"b": 1}}}),
    ("intent|chunk_segments", 0), ("intent|chunk_segments", HUGE), ("intent|chunk_segments", "3"), ("reason", 7),
    ("damage", "much"), ("damage", {"packets": 1}), ("damage", {"packets": 1, "seconds": "x"}),
    ("discontinuities", "2"), ("generation", "0" * 16), ("generation", "../../secret"), ("generation", 7),
    ("token", "x"), ("begun", {}), ("begun", "x"), ("begun", {"token": "0" * 64, "generation": "0" * 16, "intent": {}}),
    ("begun", {"token": "0" * 64, "generation": "/etc", "intent": {}}), ("status", "growing"),
    ("metadata", []), ("metadata", {"x": []}), ("metadata", {"": 1}), ("metadata", {"x": "y" * 1001}),
    ("metadata", {"x": HUGE}), ("metadata", {str(n): n for n in range(65)}),
    ("video", 7), ("store", None), ("store", ["x"]),
]  # fmt: skip
RECORD = [
    ("chunks", []), ("chunks|length", HUGE), ("chunks|length", "x"), ("chunks|length", 1), ("chunks|crc32c", "0"),
    ("chunks|crc32c", "0" * 80), ("chunks|crc32c", 7), ("chunks|crc32c", "zz" * 12), ("chunks", ...), ("objects", []),
    ("objects", {}), ("objects|kv/zarr.json", "x"), ("objects|kv/zarr.json", [1]),
    ("objects|timestamps/c.0.0", [HUGE, 1]),
    ("index", []), ("index|length", 1), ("index|crc32c", "0" * 80), ("objects|index/zarr.json", ...),
    ("objects|timestamps/c.0.0", [None, None]), ("objects|kv/zarr.json", [[1, 2], [3]]),
]  # fmt: skip


def check_damaged(store: Store, in_listing: bool = True) -> None:
    """The row alone is damaged: named by all that reads it; its neighbour is as ever; it can be made anew."""
    rows = {info.id: info.status for info in store.list()}
    assert rows == {"clip": "failed" if in_listing else "complete", "other": "complete"}
    for access in (store.info, store.read, store.timestamps):
        with pytest.raises(CorruptionError, match="clip"):
            access("clip")
    assert {problem.video for problem in maintenance.verify(store)} == {"clip"}
    maintenance.gc(store, older_than_s=-60, partial=True)
    np.testing.assert_array_equal(store.read("other"), kv(4))
    add(store, "clip")
    assert list(maintenance.verify(store)) == []


@pytest.fixture
def store(local_store: Store) -> Store:
    add(local_store, "clip")
    add(local_store, "other", segments=4)
    return local_store


def document(store: Store, video: str = "clip") -> Path:
    return Path(store.url, "videos", video, DOCUMENT)


@pytest.mark.parametrize(("field", "value"), SUMMARY, ids=lambda value: str(value)[:20])
def test_a_wrong_summary(store: Store, field: str, value: object) -> None:
    rewrite(document(store), put(f"summary|{field}", value))
    rows = {info.id: info.status for info in store.list()}
    if field in ("store", "video"):  # of another store or video, so not damaged but foreign
        assert rows["clip"] == "failed"
        return
    check_damaged(store)


@pytest.mark.parametrize(("field", "value"), RECORD, ids=lambda value: str(value)[:20])
def test_a_wrong_record(store: Store, field: str, value: object) -> None:
    rewrite(document(store), put(f"record|{field}", value))
    check_damaged(store, in_listing=False)


@pytest.mark.parametrize("part", ["summary", "record"])
@pytest.mark.parametrize("what", ["deep", "list", "cut", "endless", "nan"])
def test_what_is_no_such_json(store: Store, part: str, what: str) -> None:
    path = document(store)
    deep = b"[" * 100_000 + b"]" * 100_000
    texts = {"deep": deep, "list": b"[]", "cut": b"{", "endless": b"9" * 10_000, "nan": b"NaN"}
    summary, record = (texts[what], b"{}") if part == "summary" else (b'{"status":"failed"}', texts[what])
    body = b'"summary":' + summary + b',"record":' + record
    sealed = seal(GROUP, {"x": 0}).replace(b'"x": 0', b"")  # only for its form
    path.write_bytes(reseal(sealed[: len(GROUP)] + b"00000000" + b'",' + body + b"}}}"))
    check_damaged(store, in_listing=part == "summary" or not json_is_listed(store))


def json_is_listed(store: Store) -> bool:
    return {info.id: info.status for info in store.list()}["clip"] != "failed"


def reseal(data: bytes) -> bytes:
    return data[: len(GROUP)] + b"%08x" % google_crc32c.value(data) + data[len(GROUP) + 8 :]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", HUGE), ("layers", 0), ("layers", "2"), ("tokens", True), ("chunk_segments", 10**6),
        ("dtype", "object"),
    ("dtype", 7), ("geometry", []), ("prompt", ...),
        ("fingerprint", None), ("micro_batch", 0), ("objects", ...),
        ("compression", 7), ("positions", "x"), ("sampling", [1]), ("sampling", {"fps": {"x": {"y": 1}}}),
        ("objects", {"videos/zarr.json": "x"}), ("quantization", "int1"), ("quantization", []),
        ("frames_per_segment", -1), ("identity", "x"), ("index", 7), ("index", {"kind": "keys"}),
        ("index", {"kind": "keys", "layer": 0, "heads": [9], "shape": [2, 1, 4]}),
        ("index|shape", [HUGE]), ("index|shape", [1] * 5), ("index|shape", [1 << 11, 1 << 11]), ("index|layer", 2),
    ],
)  # fmt: skip
def test_a_wrong_store_is_refused_in_one_line(store: Store, field: str, value: object) -> None:
    rewrite(Path(store.url, DOCUMENT), put(field, value))
    with pytest.raises(CorruptionError) as error:
        open_store(store.url)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_deep_store_is_refused(store: Store) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    rewrite(Path(store.url, DOCUMENT), put("geometry", deep))
    with pytest.raises(CorruptionError, match="geometry is an object, expected"):
        open_store(store.url)
    text = json.dumps(HEADER.to_dict())
    Path(store.url, DOCUMENT).write_bytes(b'{"vococache":' + b"[" * 100_000 + text.encode())
    with pytest.raises(CorruptionError):
        open_store(store.url)
