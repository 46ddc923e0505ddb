"""What sealed documents may say: a seal proves that bytes are as written, not that their writer meant well.

Types and sizes are held against each other, so that nothing later fails, or takes memory, by a document's word alone.
"""

import math
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from vococache.errors import InputError
from vococache.storage import quantize
from vococache.storage.documents import Fields, objects_of
from vococache.storage.format import DOCUMENT, MAX_CHUNK_SEGMENTS, TRAILER, StoreHeader, generation_of

_LARGEST = 1 << 20  # of a header's counts: layers, heads, tokens, ...
_DEEPEST = 8
_DIGITS = re.compile(r"[0-9a-f]*")
_TOKEN = re.compile(r"[0-9a-f]{64}")
_MOST_FIELDS, _LONGEST_NAME, _LONGEST_TEXT = 64, 64, 1000  # of a video's metadata
_MOST_VECTOR_AXES = 4
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
    if "identity" in fields and not (type(fields["identity"]) is str and _TOKEN.fullmatch(fields["identity"])):
        return f"identity is {_short(fields['identity'])}, expected a sha256"
    if (index := fields.get("index")) is not None:
        shape = index.get("shape") if type(index) is dict and _is_shallow(index, 2) else None
        if type(shape) is not list or not 1 <= len(shape) <= _MOST_VECTOR_AXES or type(index.get("kind")) is not str:
            return f"index is {_short(index)}, expected an object of kind and shape"
        if not all(type(size) is int and 1 <= size <= _LARGEST for size in shape) or math.prod(shape) > _LARGEST:
            return f"shape of the index is {str(shape)[:80]}"
        layer = index.get("layer")
        if index["kind"] == "keys" and not (type(layer) is int and 0 <= layer < fields["layers"]):
            return f"layer of the index is {_short(layer)}, expected 0 to {fields['layers'] - 1}"
        heads = index.get("heads", [])
        if type(heads) is not list or not all(type(h) is int and 0 <= h < fields["kv_heads"] for h in heads):
            return f"heads of the index are {_short(heads)}, expected some of 0 to {fields['kv_heads'] - 1}"
    for name in ("geometry", "prompt"):
        if type(fields.get(name)) is not dict or not _is_shallow(fields[name], _DEEPEST):
            return f"{name} is {_short(fields.get(name))}, expected an object of at most {_DEEPEST} levels"
    return None


def summary_flaw(fields: Fields, header: StoreHeader, length: int) -> str | None:
    """What is wrong with the summary of a video's document of `length` bytes; None if nothing is."""
    get: Any = fields.get
    status = get("status")
    if "metadata" in fields and (flaw := metadata_flaw(fields["metadata"])) is not None:
        return flaw
    if status == "failed":
        return _wrong_type(fields, _FAILED)
    if status not in ("partial", "growing", "complete"):
        return f"status is {_short(status)}"
    if type(get("reason", "")) is not str:
        return f"reason is {_short(get('reason'))}"
    if "begun" in fields:
        begun = fields["begun"]
        if type(begun) is not dict or "generation" not in begun:
            return f"begun is {_short(begun)}"
        if (flaw := _intent_flaw(begun, header)) is not None:
            return f"of what was begun {flaw}"
    if status == "partial" and get("intent") is None:
        return None
    if (flaw := _intent_flaw(fields, header)) is not None:
        return flaw
    if status == "growing" and "generation" not in fields:
        return "generation is None"
    return _sizes_flaw(fields, header, length) if status != "partial" else None


def _intent_flaw(fields: Fields, header: StoreHeader) -> str | None:
    intent, token = fields.get("intent"), fields.get("token")
    if type(intent) is not dict or type(token) is not str:
        return f"intent is {_short(intent)}, token {_short(token)}"
    if "generation" in fields and not (_TOKEN.fullmatch(token) and fields["generation"] == generation_of(token)):
        return f"generation is {_short(fields['generation'])}, token {_short(token)}"
    if (flaw := _wrong_type(intent, _INTENT)) is not None:
        return flaw
    if not 1 <= intent["chunk_segments"] <= header.chunk_segments:
        return f"chunk_segments is {intent['chunk_segments']}, expected 1 to {header.chunk_segments}"
    return None if _is_shallow(intent["sampling"], 1) else f"sampling is {_short(intent['sampling'])}"


def metadata_flaw(metadata: Any) -> str | None:
    """What is wrong with a video's metadata; None if nothing is."""
    if type(metadata) is not dict or len(metadata) > _MOST_FIELDS:
        return f"metadata is {_short(metadata)}, expected an object of at most {_MOST_FIELDS} fields"
    for name, value in metadata.items():
        if type(name) is not str or not 0 < len(name) <= _LONGEST_NAME:
            return f"metadata has a field {_short(name)}, expected a name of 1 to {_LONGEST_NAME} characters"
        if not is_kept(value):
            return (
                f"metadata {name!r} is {_short(value)}, expected a number or a text of at most {_LONGEST_TEXT} letters"
            )
    return None


def is_kept(value: Any) -> bool:
    """Can a field of a video's metadata have this value? Texts that are not long, numbers, true and false."""
    if type(value) is str:
        return len(value) <= _LONGEST_TEXT
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is bool or (type(value) is int and abs(value) < 1 << 63)


def check_metadata(metadata: Fields) -> None:
    """Raises `InputError` for what cannot be a video's metadata."""
    if (flaw := metadata_flaw(metadata)) is not None:
        raise InputError(flaw)


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
    growing = fields["status"] == "growing"
    if growing and segments % size and fields.get("ended") is not True:
        return f"segments is {segments}, expected whole chunks of {size} while it grows"
    stored = chunks * chunk_bytes(header, size) + timestamps_bytes(header, chunks * size if growing else segments)
    vectors = chunks * size * header.index_segment_bytes if "generation" in fields else 0
    if fields["bytes"] - fields["metadata_bytes"] not in (stored, stored + vectors):
        return f"bytes is {_short(fields['bytes'])}, which {segments} segments do not make"
    return None


def record_flaw(fields: Fields, header: StoreHeader) -> str | None:
    """What is wrong with the record of a readable video whose summary is sound; None if nothing is."""
    size, segments, trailer = fields["intent"]["chunk_segments"], fields["segments"], 0
    expected = {"chunks": chunk_bytes(header, size)}
    if "generation" in fields:
        trailer = TRAILER
        if "index" in fields:
            expected["index"] = size * header.index_segment_bytes
    count = -(-segments // size)
    growing = fields["status"] == "growing"
    if growing:
        expected["times"] = timestamps_bytes(header, size)
    for name, length in expected.items():
        wanted = length if name == "times" else length + trailer
        if (flaw := _digits_flaw(name, fields.get(name), wanted, count)) is not None:
            return flaw
    if "index" in fields and ("index" not in expected or not header.index_segment_bytes):
        return "it has an index, and its store has none"
    if growing:
        return None
    objects = fields.get("objects")
    if type(objects) is not dict:
        return "its record lacks objects"
    stamps: dict[str, Any] = {key: objects.get(key) for key in objects_of(fields)}
    for key, stamp in stamps.items():
        if type(stamp) is not list or [type(number) for number in stamp] != [int, int]:
            return f"stamp of {key} is {_short(stamp)}"
    if stamps["timestamps/c.0.0"][0] != timestamps_bytes(header, segments):
        return f"length of its timestamps is {stamps['timestamps/c.0.0'][0]}"
    documents = sum(stamp[0] for key, stamp in stamps.items() if key.endswith(DOCUMENT))
    if documents + trailer * count * len(expected) != fields["metadata_bytes"]:
        return f"metadata_bytes is {_short(fields['metadata_bytes'])}"
    return None


def _digits_flaw(name: str, array: Any, length: int, count: int) -> str | None:
    """What is wrong with the record of an array's `count` chunks, each of so many bytes."""
    if type(array) is not dict:
        return f"its record lacks {name}"
    if array.get("length") != length:
        return f"length of its {name} is {_short(array.get('length'))}, expected {length}"
    digits = array.get("crc32c")
    if type(digits) is not str or len(digits) != 8 * count or not _DIGITS.fullmatch(digits):
        return f"crc32c of its {name} is not {8 * count} digits"
    return None


def chunk_bytes(header: StoreHeader, chunk_segments: int) -> int:
    """Bytes of a `kv` chunk, without what its object ends in."""
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
