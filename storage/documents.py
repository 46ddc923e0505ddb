"""Documents of a store: Zarr metadata that carries its own checksum, a video's record, array metadata."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from vococache.storage.format import (
    DOCUMENT,
    INDEX_DTYPE,
    TRAILER,
    ChunkReceipt,
    Intent,
    StoreHeader,
    VideoInfo,
    chunk_key,
    generation_of,
    growing_key,
    index_key,
    placed,
)

# A sealed document begins with exactly these bytes, then the 8 hex digits of its crc32c.
GROUP = b'{"zarr_format":3,"node_type":"group","attributes":{"vococache":{"crc32c":"'
# What a complete video has besides its document and its chunks. Never taken from a document: its writer may be hostile.
OBJECTS = (f"kv/{DOCUMENT}", f"timestamps/{DOCUMENT}", "timestamps/c.0.0")
RECORD = ("chunks", "index", "times", "objects")
ARRAYS = ("kv", "index", "timestamps")
WHOLE = "whole"  # beside the arrays of a generation: segments that are kept whole
UNSOUND = 1 << 32  # in the place of the crc32c of an object that does not end in its own
INDEX_DOCUMENT = f"index/{DOCUMENT}"
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


def stamp(data: Bytes, trailer: int = 0) -> Stamp:
    """The stamp of an object's bytes, the last `trailer` of which may be its own crc32c."""
    end = max(0, len(data) - trailer)
    return closing(len(data), google_crc32c.value(data[:end]), bytes(data[end:]))


def closing(length: int, crc: int, end: bytes) -> Stamp:
    """The stamp of an object whose last bytes are `end`, and whose others have that crc32c.

    The end is empty, or is to say that crc itself, little endian.
    """
    return Stamp(length, crc if end in (b"", crc.to_bytes(TRAILER, "little")) else UNSOUND)


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


def changed(data: bytes, change: Callable[[Fields], object]) -> bytes:
    """A sealed document of a video whose summary went through `change`; all else as it is."""
    fields = unseal(GROUP, data)
    assert fields is not None, "the caller has checked it"
    change(fields["summary"])
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


def parts(fields: Fields) -> tuple[Fields, Fields]:
    """Summary and record of a document that `unseal_video` made one of."""
    record = {name: fields[name] for name in RECORD if name in fields}
    return {name: value for name, value in fields.items() if name not in (*RECORD, "store", "video")}, record


def begun_of(fields: Fields | None) -> tuple[str, Intent] | None:
    """Token and intent of what is being made of a video."""
    if fields is None or (fields["status"] == "partial" and "generation" not in fields):
        return None
    begun = fields if fields["status"] == "partial" else fields.get("begun")
    return None if begun is None else (begun["token"], Intent.from_dict(begun["intent"]))


def generation(fields: Fields) -> str | None:
    """What the names of a readable video's arrays end in; None in older formats."""
    return fields.get("generation")


def stamps_of(fields: Fields, array: str = "chunks") -> list[Stamp]:
    """Recorded stamps of a readable video's chunks, by index. `array`: "chunks" of `kv`, "index" or "times"."""
    length, digits = fields[array]["length"], fields[array]["crc32c"]
    return [Stamp(length, int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8)]


def record(header: StoreHeader, fields: Fields) -> dict[str, Stamp]:
    """Stamps of every other object of a readable video, by key within its group."""
    stamps = {key: Stamp(*fields["objects"][key]) for key in objects_of(fields)}
    keys: dict[str, Callable[[int], str]] = {
        "chunks": chunk_key, "index": lambda index: index_key(index, header), "times": growing_key
    }  # fmt: skip
    for array, key in keys.items():
        if array in fields:
            stamps |= {key(index): stamp for index, stamp in enumerate(stamps_of(fields, array))}
    return {placed(generation(fields), key): stamp for key, stamp in stamps.items()}


def objects_of(fields: Fields) -> tuple[str, ...]:
    """The small objects that a readable video has."""
    if fields["status"] == "growing":
        return ()
    return (*OBJECTS, INDEX_DOCUMENT) if "index" in fields else OBJECTS


def trailer_of(key: str) -> int:
    """How many bytes of the object of that key within a video's group are its own crc32c."""
    array, _, name = key.partition("/")
    return TRAILER if array.startswith(("kv.", "index.", f"{WHOLE}.")) and name.startswith("c.") else 0


def begun_fields(intent: Intent, token: str | None = None) -> Fields:
    """How a document says that a video is being made of `intent`. `token`: of it as it was begun, if it moved since."""
    token = token or intent.token
    return {"token": token, "generation": generation_of(token), "intent": intent.to_dict()}


def digits(crcs: Sequence[int]) -> str:
    """crc32c of chunks as a record has them."""
    return "".join(f"{crc:08x}" for crc in crcs)


def readable_fields(
    header: StoreHeader,
    status: str,
    intent: Intent,
    segments: int,
    duration: float,
    receipts: Sequence[ChunkReceipt],
    others: dict[str, Stamp],
    about: Fields,
    token: str | None = None,
) -> tuple[Fields, Fields]:
    """Summary and record of a complete or growing video of `receipts` in order of their index.

    `others`: its other objects, by key. `about`: findings and metadata, where there are any.
    """
    arrays = {"chunks": (receipts[0].length, [receipt.crc32c for receipt in receipts])}
    padding = len(receipts) * intent.chunk_segments - segments
    if header.index is not None:
        length = intent.chunk_segments * header.index_segment_bytes + TRAILER
        arrays["index"] = length, [receipt.vectors_crc32c or 0 for receipt in receipts]
    lengths = [length * len(crcs) for length, crcs in arrays.values()] + [stamp.length for stamp in others.values()]
    documents = sum(stamp.length for key, stamp in others.items() if key.endswith(DOCUMENT))
    moments = 8 * header.frames_per_segment if status == "growing" else 0  # the last of them is as long as the others
    summary = {
        "status": status,
        "segments": segments,
        "duration": duration,
        "bytes": sum(lengths),
        "padding_bytes": padding * (header.stored_segment_bytes + header.index_segment_bytes + moments),
        "metadata_bytes": documents + TRAILER * len(arrays) * len(receipts),
        **begun_fields(intent, token),
        **about,
    }
    record: Fields = {name: {"length": length, "crc32c": digits(crcs)} for name, (length, crcs) in arrays.items()}
    if status == "growing":
        times = list(others.values())
        record["times"] = {"length": times[0].length, "crc32c": digits([stamp.crc32c for stamp in times])}
    else:
        record["objects"] = dict(sorted(others.items()))
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
        metadata=get("metadata"),
        begun=(get("begun") or {}).get("intent"),
    )


def array_documents(header: StoreHeader, segments: int, chunk_segments: int) -> dict[str, bytes]:
    """Zarr metadata of a video's arrays, by key."""
    shape, frames = header.segment_shape, header.frames_per_segment
    names: tuple[str, ...] = ("segment", "layer", "key_value", "kv_head", "token", "head_dim")
    found = {
        f"kv/{DOCUMENT}": _array_document(
            (segments, *shape), (chunk_segments, *shape), header.dtype, names, header.quantization
        ),
        f"timestamps/{DOCUMENT}": _array_document(
            (segments, frames), (segments, frames), "float64", ("segment", "frame"), trailer=False
        ),
    }
    if (vectors := header.index_shape) is not None:
        names = ("segment", *(f"vector_{axis}" for axis in range(len(vectors))))
        found[INDEX_DOCUMENT] = _array_document(
            (segments, *vectors), (chunk_segments, *vectors), INDEX_DTYPE.name, names
        )
    return found


@lru_cache(maxsize=64)
def _array_document(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    names: tuple[str, ...],
    kind: str | None = None,
    trailer: bool = True,
) -> bytes:
    """Zarr's own metadata of an array of plain little-endian bytes, or quantized ones, with flat chunk keys.

    `trailer`: each chunk ends in its crc32c.
    """
    import zarr  # half a second: writers alone need it
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    from vococache.storage.codec import Quantized

    objects: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(objects),
        shape=shape,
        chunks=chunks,
        dtype=np.dtype(dtype).newbyteorder("<"),
        compressors=Crc32cCodec() if trailer else None,
        filters=None,
        serializer="auto" if kind is None else Quantized(kind),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=names,
        zarr_format=3,
    )
    return bytes(objects[DOCUMENT].to_bytes())
