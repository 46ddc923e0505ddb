"""Opening a store, and making one."""

import hashlib
import json
import os
from typing import Literal, overload

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError
from vococache.storage import checks
from vococache.storage.documents import GROUP, PLAIN_GROUP, Fields, seal, stamp, unseal
from vococache.storage.format import DOCUMENT, FORMAT_VERSION, TEMPORARY, StoreHeader
from vococache.storage.local_objects import LocalObjects
from vococache.storage.objects import Objects
from vococache.storage.reading import StoreReader
from vococache.storage.remote_objects import RemoteObjects
from vococache.storage.store import Store

VIDEOS = f"videos/{DOCUMENT}"
# Where a store has its own, older settings, these win: they change how work is cut, not what a cache means.
FREE_SETTINGS = frozenset({"model", "chunk_segments", "micro_batch", "sampling", "positions", "index"})

# Settings of which the fingerprint would tell only that something differs, and the options that ask for them.
OPTIONS = {
    "compression": "--compression",
    "tokens": "--tokens",
    "frames_per_segment": "--segment-frames",
    "compute_dtype": "--dtype",
}


@overload
def open_store(
    url: str | os.PathLike[str], mode: Literal["r"] = "r", *, header: StoreHeader | None = None
) -> StoreReader: ...


@overload
def open_store(url: str | os.PathLike[str], mode: Literal["a"], *, header: StoreHeader | None = None) -> Store: ...


def open_store(
    url: str | os.PathLike[str], mode: Literal["r", "a"] = "r", *, header: StoreHeader | None = None
) -> StoreReader:
    """Open the store at a local path or fsspec URL: "r" to read, "a" to read and write.

    With "a" and a `header`, an absent store is made. A `header` of another compressor, or of other geometry, than
    the store's is refused with `StoreMismatchError`. Raises `StoreError` where there is no store that this version
    reads, `CorruptionError` where its document changed.
    """
    if mode not in ("r", "a"):
        raise InputError(f"mode {mode!r}: expected 'r' or 'a'")
    objects = open_objects(os.fspath(url))
    data = objects.get(DOCUMENT)
    if data is None and mode == "a" and header is not None:
        _create(objects, header)
        data = objects.get(DOCUMENT)  # another may have made it at the same time, and last
    if data is None:
        raise StoreError(
            f"no store at {objects.url}: expected {DOCUMENT} there;"
            f" `voco ingest VIDEOS --store {objects.url}` makes one"
        )
    fields = root_fields(objects, data)
    found = StoreHeader.from_dict(fields)
    if header is not None:
        check_same_compressor(objects.url, header, found)
    if mode == "a" and isinstance(objects, LocalObjects) and not os.access(objects.url, os.W_OK):
        raise StoreError(f"store {objects.url} is read-only: expected a folder that this user may write")
    kind = Store if mode == "a" else StoreReader
    return kind(objects, found, identity_of(fields, data), fields["format_version"])


def identity_of(fields: Fields, data: bytes) -> str:
    """What ties a video to its store: the hex sha256 of the root document as it was made."""
    return str(fields.get("identity") or hashlib.sha256(data).hexdigest())


def open_objects(url: str) -> Objects:
    """The objects under a local path (also file://) or an fsspec URL."""
    path = url.removeprefix("file://").removeprefix("local://")
    if "://" in path:
        return RemoteObjects(url)
    return LocalObjects(path)


def is_store(url: str) -> bool:
    """Does a store's document lie at `url`?"""
    data = open_objects(url).get(DOCUMENT)
    return data is not None and data.startswith(GROUP)


def root_objects(store: StoreReader) -> dict[str, bytes]:
    """The store's own objects, checked: what a copy of it starts from."""
    data = {key: store.objects.get(key) for key in (VIDEOS, DOCUMENT)}
    root = data[DOCUMENT]
    if root is None or identity_of(root_fields(store.objects, root), root) != store.identity:
        raise CorruptionError(f"{store.url}/{DOCUMENT} changed since the store was opened")
    return {key: value for key, value in data.items() if value is not None}


def _create(objects: Objects, header: StoreHeader) -> None:
    """Make an empty store; its document last."""
    check_vacant(objects)
    settings = {name: value for name, value in header.to_dict().items() if value is not None}
    fields = {"format_version": FORMAT_VERSION, **settings, "objects": {VIDEOS: stamp(PLAIN_GROUP)}}
    objects.put(VIDEOS, PLAIN_GROUP)
    objects.put(DOCUMENT, seal(GROUP, fields))


def check_vacant(objects: Objects) -> None:
    """Refuse to make a store among other things; an interrupted creation is fine."""
    beside = {name for name in objects.names("") if not name.startswith(TEMPORARY)} - {"videos"}
    beside |= {name for name in objects.names("videos") if not name.startswith(TEMPORARY)} - {DOCUMENT}
    if beside:
        raise StoreError(
            f"{objects.url} is not a store, and not empty (it holds {min(beside)!r}):"
            f" expected a store or an empty place"
        )


def root_fields(objects: Objects, data: bytes) -> Fields:
    """The checked content of a root document, and the check of what lies beside it."""
    place = f"{objects.url}/{DOCUMENT}"
    try:
        claimed = json.loads(data)["attributes"]["vococache"]["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        if b"vococache" in data:
            raise CorruptionError(f"{place} is not what was written: its bytes changed") from None
        raise StoreError(f"{place} is of another program: expected a VoCoCache store") from None
    if isinstance(claimed, int) and claimed > FORMAT_VERSION:
        raise StoreError(
            f"store {objects.url} has format version {claimed}, this vococache reads up to {FORMAT_VERSION}: update it"
        )
    fields = unseal(GROUP, data)
    if fields is None or not isinstance(claimed, int) or claimed < 1:
        raise CorruptionError(f"{place} is not what was written: its bytes changed")
    if (flaw := checks.header_flaw(fields)) is not None:
        raise CorruptionError(f"{place} is not one that was written: {flaw}")
    beside = objects.get(VIDEOS)
    if beside is None or fields.get("objects") != {VIDEOS: list(stamp(beside))}:
        raise CorruptionError(f"{objects.url}/{VIDEOS} is not what was written: missing, or its bytes changed")
    return fields


def check_same_compressor(url: str, wanted: StoreHeader, found: StoreHeader) -> None:
    """Refuse a store whose header is `found` where one like `wanted` is needed. Raises `StoreMismatchError`."""
    ours, theirs = wanted.to_dict(), found.to_dict()
    if wanted.model == found.model:  # then the setting that was asked for says more than a fingerprint
        for name, option in OPTIONS.items():
            if ours[name] != theirs[name]:
                raise StoreMismatchError(
                    f"store {url} was made with other settings: expected {name} {ours[name]!r}, found {theirs[name]!r};"
                    f" ask for {option} {theirs[name]}, or use another store"
                )
        if wanted.prompt.get("chat_template") != found.prompt.get("chat_template"):
            raise StoreMismatchError(
                f"store {url} was made with another chat template: use that (--chat-template), or another store"
            )
    if wanted.fingerprint != found.fingerprint:
        raise StoreMismatchError(
            f"store {url} belongs to another compressor: expected {wanted.fingerprint[:12]} ({wanted.model}),"
            f" found {found.fingerprint[:12]} ({found.model}); use that model, or another store"
        )
    for name, value in ours.items():
        free = name in FREE_SETTINGS or (name == "quantization" and value is None)
        if not free and theirs[name] != value:
            raise StoreMismatchError(
                f"store {url} was made with other settings: expected {name} {value!r}, found {theirs[name]!r}"
            )
