"""What sealed documents may say: a seal proves that bytes are as written, not that their writer meant well.

Types and sizes are held against each other, so that nothing later fails, or takes memory, by a document's word alone.
"""

import math
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from vococache.storage import quantize
from vococache.storage.documents import OBJECTS, Fields
from vococache.storage.format import DOCUMENT, MAX_CHUNK_SEGMENTS, StoreHeader

_LARGEST = 1 << 20  # of a header's counts: layers, heads, tokens, ...
_DEEPEST = 8
_DIGITS = re.compile(r"[0-9a-f]*")
_COUNTS = ("layers", "kv_heads", "tokens", "head_dim", "frames_per_segment", "chunk_segments", "micro_batch")
_TEXTS = ("fingerprint", "model", "dtype", "compute_dtype")
_INTENT = {
    "source": str,
    "content_hash": str,
    "size": int,
    "mtime_ns": int,
    "sampling": dict,
    "decoder": str,
    "chunk_segments": int,
}
_FAILED = {"reason": str, "source": str, "size": int, "mtime_ns": int}
_COMPLETE = {"segments": int, "bytes": int, "padding_bytes": int, "metadata_bytes": int}


def header_flaw(fields: Fields) -> str | None:
    """What is wrong with the fields of a store's own document; None if nothing is."""
    for name in _COUNTS:
        if type(fields.get(name)) is not int or not 1 <= fields[name] <= _LARGEST:
            return f"{name} is {_short(fields.get(name))}, expected 1 to {_LARGEST}"
    if fields["chunk_segments"] > MAX_CHUNK_SEGMENTS:
        return f"chunk_segments is {fields['chunk_segments']}, expected at most {MAX_CHUNK_SEGMENTS}"
    for name in _TEXTS:
        if type(fields.get(name)) is not str:
            return f"{name} is {_short(fields.get(name))}, expected text"
    if fields["dtype"] not in ("float16", "float32"):
        return f"dtype is {_short(fields['dtype'])}, expected float16 or float32"
    if fields.get("quantization") not in (None, *quantize.BITS):
        return f"quantization is {_short(fields['quantization'])}, expected one of {sorted(quantize.BITS)}"
    if type(fields.get("compression", "voco")) is not str:
        return f"compression is {_short(fields['compression'])}, expected text"
    if type(fields.get("positions")) not in (int, NoneType):
        return f"positions is {_short(fields['positions'])}, expected a number"
    if not isinstance(fields.get("sampling"), dict | None) or not _is_shallow(fields.get("sampling"), 1):
        return f"sampling is {_short(fields['sampling'])}, expected an object of numbers"
    for name in ("geometry", "prompt"):
        if type(fields.get(name)) is not dict or not _is_shallow(fields[name], _DEEPEST):
            return f"{name} is {_short(fields.get(name))}, expected an object of at most {_DEEPEST} levels"
    return None


def summary_flaw(fields: Fields, header: StoreHeader, length: int) -> str | None:
    """What is wrong with the summary of a video's document of `length` bytes; None if nothing is."""
    get: Any = fields.get
    status = get("status")
    if status == "failed":
        return _wrong_type(fields, _FAILED)
    if status not in ("partial", "complete"):
        return f"status is {_short(status)}"
    if type(get("reason", "")) is not str:
        return f"reason is {_short(get('reason'))}"
    intent = get("intent")
    if intent is None and status == "partial":
        return None
    if type(intent) is not dict or type(get("token")) is not str:
        return f"intent is {_short(intent)}, token {_short(get('token'))}"
    if (flaw := _wrong_type(intent, _INTENT)) is not None:
        return flaw
    if not 1 <= intent["chunk_segments"] <= header.chunk_segments:
        return f"chunk_segments is {intent['chunk_segments']}, expected 1 to {header.chunk_segments}"
    if not _is_shallow(intent["sampling"], 1):
        return f"sampling is {_short(intent['sampling'])}"
    return _sizes_flaw(fields, header, length) if status == "complete" else None


def _sizes_flaw(fields: Fields, header: StoreHeader, length: int) -> str | None:
    if (flaw := _wrong_type(fields, _COMPLETE)) is not None:
        return flaw
    duration: Any = fields.get("duration")
    if type(duration) not in (float, int) or not (math.isfinite(duration) and duration >= 0):
        return f"duration is {_short(duration)}, expected seconds"
    damage: Any = fields.get("damage", {"packets": 0, "seconds": 0})
    if type(damage) is not dict or not {type(damage.get(name)) for name in ("packets", "seconds")} <= {int, float}:
        return f"damage is {_short(damage)}"
    if type(fields.get("discontinuities", 0)) is not int:
        return f"discontinuities is {_short(fields['discontinuities'])}"
    segments, size = fields["segments"], fields["intent"]["chunk_segments"]
    chunks = -(-segments // size)
    if segments < 1 or 8 * chunks > length:
        return f"segments is {_short(segments)}, more than its record of {length} bytes can name, or none"
    stored = chunks * chunk_bytes(header, size) + timestamps_bytes(header, segments)
    if fields["bytes"] - fields["metadata_bytes"] != stored:
        return f"bytes is {_short(fields['bytes'])}, which {segments} segments do not make"
    return None


def record_flaw(fields: Fields, header: StoreHeader) -> str | None:
    """What is wrong with the record of a complete video whose summary is sound; None if nothing is."""
    chunks, objects = fields.get("chunks"), fields.get("objects")
    if type(chunks) is not dict or type(objects) is not dict:
        return "its record lacks chunks or objects"
    digits, size = chunks.get("crc32c"), fields["intent"]["chunk_segments"]
    if chunks.get("length") != chunk_bytes(header, size):
        return f"length of its chunks is {_short(chunks.get('length'))}, expected {chunk_bytes(header, size)}"
    count = -(-fields["segments"] // size)
    if type(digits) is not str or len(digits) != 8 * count or not _DIGITS.fullmatch(digits):
        return f"crc32c of its chunks is not {8 * count} digits"
    stamps: dict[str, Any] = {key: objects.get(key) for key in OBJECTS}
    for key, stamp in stamps.items():
        if type(stamp) is not list or [type(number) for number in stamp] != [int, int]:
            return f"stamp of {key} is {_short(stamp)}"
    if stamps["timestamps/c.0.0"][0] != timestamps_bytes(header, fields["segments"]):
        return f"length of its timestamps is {stamps['timestamps/c.0.0'][0]}"
    if sum(stamp[0] for key, stamp in stamps.items() if key.endswith(DOCUMENT)) != fields["metadata_bytes"]:
        return f"metadata_bytes is {_short(fields['metadata_bytes'])}"
    return None


def is_receipt(fields: Fields) -> bool:
    """Is this all that a receipt says?"""
    expected = {"token": str, "version": str, "index": int, "segments": int, "length": int, "crc32c": int}
    return _wrong_type(fields, expected) is None and fields["index"] >= 0


def chunk_bytes(header: StoreHeader, chunk_segments: int) -> int:
    """Bytes of a `kv` chunk object."""
    if header.quantization is None:
        return chunk_segments * header.segment_bytes
    return quantize.chunk_bytes((chunk_segments, *header.segment_shape), header.quantization)


def timestamps_bytes(header: StoreHeader, segments: int) -> int:
    """Bytes of the one chunk of `timestamps`."""
    return segments * header.frames_per_segment * 8


def _wrong_type(fields: Fields, expected: Mapping[str, type]) -> str | None:
    """The first of the `expected` fields that is of another type, and its value; None if all are of theirs."""
    found = [*map(type, map(fields.get, expected))]
    if found == [*expected.values()]:  # `list` asks twice for each of a hundred thousand videos
        return None
    wrong = next(name for name, kind in zip(expected, found, strict=True) if kind is not expected[name])
    return f"{wrong} is {_short(fields.get(wrong))}"


def _is_shallow(value: Any, levels: int) -> bool:
    """Has JSON at most so many levels of objects and lists?"""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (levels > 0 and all(_is_shallow(each, levels - 1) for each in inner))


def _short(value: Any) -> str:
    """A value in a message; whatever it is, not long."""
    if isinstance(value, str | float | bool) or value is None:
        return repr(value)[:40]
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else "a number beyond all bounds"
    return "an object" if isinstance(value, dict) else "a list"
