"""Documents of a store: Zarr metadata that carries its own checksum, receipts, array metadata."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from vococache.storage.format import DOCUMENT, ChunkReceipt, Intent, StoreHeader, VideoInfo, chunk_key

# A sealed document begins with exactly one of these bytes, then the 8 hex digits of its crc32c.
GROUP = b'{"zarr_format":3,"node_type":"group","attributes":{"vococache":{"crc32c":"'
RECEIPT = b'{"crc32c":"'
# What a complete video has besides its document and its chunks. Never taken from a document: its writer may be hostile.
OBJECTS = (f"kv/{DOCUMENT}", f"timestamps/{DOCUMENT}", "timestamps/c.0.0")
# In a video's document this follows.
SUMMARY = b'","summary":'
PLAIN_GROUP = b'{"zarr_format":3,"node_type":"group","attributes":{}}'

Fields = dict[str, Any]
_DECODER = json.JSONDecoder()
Bytes = bytes | npt.NDArray[np.uint8]


class Stamp(NamedTuple):
    """An object's length in bytes and its crc32c."""

    length: int
    crc32c: int


def stamp(data: Bytes) -> Stamp:
    """The stamp of some bytes."""
    return Stamp(len(data), google_crc32c.value(data))


def seal(head: bytes, fields: Fields) -> bytes:
    """The document of `fields`, with the crc32c of its own bytes (taken with zeros in the place of the digits)."""
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    tail = b'",' + body[1:] + b"}" * (head.count(b"{") - 1)
    return head + b"%08x" % google_crc32c.value(head + b"00000000" + tail) + tail


def unseal(head: bytes, data: bytes) -> Fields | None:
    """The fields of a sealed document; None if one of its bytes changed, or it is not JSON of that form."""
    if not is_sealed(head, data):
        return None
    try:
        document = json.loads(data)
        fields = document["attributes"]["vococache"] if head is GROUP else document
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return fields if isinstance(fields, dict) else None


def seal_video(store: str, video: str, summary: Fields, record: Fields | None = None) -> bytes:
    """The document of a video: what `list` needs first, the record of its objects behind it."""
    return seal(GROUP, {"summary": {"store": store, "video": video, **summary}, "record": record or {}})


def with_source(data: bytes, source: str, size: int, mtime_ns: int) -> bytes:
    """A sealed document of a video, with its file elsewhere or of another time; all else as it is."""
    fields = unseal(GROUP, data)
    assert fields is not None, "the caller has checked it"
    summary = fields["summary"]
    summary.get("intent", summary).update(source=source, size=size, mtime_ns=mtime_ns)
    return seal(GROUP, {name: fields[name] for name in ("summary", "record")})


def unseal_video(data: bytes) -> Fields | None:
    """Summary and record of a video's document in one; None if one of its bytes changed."""
    fields = unseal(GROUP, data) if _is_video(data) else None
    if fields is None or not (isinstance(fields.get("summary"), dict) and isinstance(fields.get("record"), dict)):
        return None
    summary: Fields = fields["summary"] | fields["record"]
    return summary


def unseal_summary(data: bytes) -> Fields | None:
    """The summary alone, without a look at the record: `list` reads 100,000 of them."""
    if not (_is_video(data) and is_sealed(GROUP, data)):
        return None
    try:
        summary = _DECODER.raw_decode(data.decode(), len(GROUP) + 8 + len(SUMMARY))[0]
    except (ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) else None


def _is_video(data: bytes) -> bool:
    """Is a document of the kind that videos have? A store's own is another."""
    return data.startswith(SUMMARY, len(GROUP) + 8)


def is_sealed(head: bytes, data: bytes) -> bool:
    """Does a document of this kind have the crc32c that it claims?"""
    at = len(head)
    zeroed = data[:at] + b"00000000" + data[at + 8 :]
    return data.startswith(head) and data[at : at + 8] == b"%08x" % google_crc32c.value(zeroed)


def chunk_stamps(fields: Fields) -> list[Stamp]:
    """Stamps of a complete video's `kv` chunks, by index."""
    length, digits = fields["chunks"]["length"], fields["chunks"]["crc32c"]
    return [Stamp(length, int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8)]


def record(fields: Fields) -> dict[str, Stamp]:
    """Stamps of every other object of a complete video's group, by key."""
    stamps = {key: Stamp(*fields["objects"][key]) for key in OBJECTS}
    return stamps | {chunk_key(index): stamp for index, stamp in enumerate(chunk_stamps(fields))}


def complete_fields(
    segment_bytes: int,
    intent: Intent,
    duration: float,
    receipts: Sequence[ChunkReceipt],
    objects: dict[str, Stamp],
    findings: Fields,
) -> tuple[Fields, Fields]:
    """Summary and record of a complete video; `receipts` in order of their index, `objects` without the chunks."""
    segments = sum(receipt.segments for receipt in receipts)
    stored = sum(receipt.length for receipt in receipts)
    summary = {
        "status": "complete",
        "token": intent.token,
        "segments": segments,
        "duration": duration,
        "bytes": stored + sum(stamp.length for stamp in objects.values()),
        "padding_bytes": (len(receipts) * intent.chunk_segments - segments) * segment_bytes,
        "metadata_bytes": sum(stamp.length for key, stamp in objects.items() if key.endswith(DOCUMENT)),
        "intent": intent.to_dict(),
        **findings,
    }
    record = {
        "chunks": {"length": receipts[0].length, "crc32c": "".join(f"{receipt.crc32c:08x}" for receipt in receipts)},
        "objects": dict(sorted(objects.items())),
    }
    return summary, record


def video_info(video: str, fields: Fields, length: int) -> VideoInfo:
    """The row of `ls` that a video's document of `length` bytes says."""
    get = fields.get
    origin = get("intent") or fields
    return VideoInfo(
        id=video,
        status=fields["status"],
        reason=get("reason"),
        decoder=origin.get("decoder"),
        segments=get("segments", 0),
        duration=get("duration"),
        source=origin.get("source", ""),
        bytes=get("bytes", 0) + length,
        padding_bytes=get("padding_bytes", 0),
        metadata_bytes=get("metadata_bytes", 0) + length,
        size=origin.get("size", 0),
        mtime_ns=origin.get("mtime_ns", 0),
        content_hash=origin.get("content_hash"),
        sampling=origin.get("sampling"),
        damage=get("damage"),
        discontinuities=get("discontinuities", 0),
    )


def kv_document(header: StoreHeader, segments: int, intent: Intent) -> bytes:
    """Zarr metadata of `kv`."""
    shape = header.segment_shape
    names = ("segment", "layer", "key_value", "kv_head", "token", "head_dim")
    return _array_document(
        (segments, *shape), (intent.chunk_segments, *shape), header.dtype, names, header.quantization
    )


def timestamps_document(segments: int, frames: int) -> bytes:
    """Zarr metadata of `timestamps`: one chunk."""
    return _array_document((segments, frames), (segments, frames), "float64", ("segment", "frame"))


@lru_cache(maxsize=64)
def _array_document(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, names: tuple[str, ...], kind: str | None = None
) -> bytes:
    """Zarr's own metadata of an array of plain little-endian bytes, or quantized ones, with flat chunk keys."""
    import zarr  # half a second: writers alone need it
    from zarr.storage import MemoryStore

    from vococache.storage.codec import Quantized

    objects: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(objects),
        shape=shape,
        chunks=chunks,
        dtype=np.dtype(dtype).newbyteorder("<"),
        compressors=None,
        filters=None,
        serializer="auto" if kind is None else Quantized(kind),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=names,
        zarr_format=3,
    )
    return bytes(objects[DOCUMENT].to_bytes())
