"""The format: the types that a store holds, and the names of its objects (docs/format.md)."""

import hashlib
import json
import math
import re
import unicodedata
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from vococache.errors import InputError
from vococache.storage import quantize

FORMAT_VERSION = 3  # of what is written; earlier ones are read

# Bytes of one chunk object, and of the decoded frames that make one: by measurement, see docs/design/0002-store.md.
CHUNK_BYTES = 16 << 20
FRAME_BYTES = 32 << 20
MAX_CHUNK_SEGMENTS = 256

DOCUMENT = "zarr.json"
_ORDINARY = re.compile(r"(?!__)[A-Za-z0-9_-]{1,200}")
_ARRAY = re.compile(r"(kv|index|timestamps|whole)(?:\.([0-9a-f]{16}))?")
TEMPORARY = ".tmp-"
TRAILER = (
    4  # bytes at the end of a chunk object of format 3: the crc32c of the others, little endian, as Zarr's codec has it
)
INDEX_DTYPE = np.dtype("<f2")


class JsonRecord:
    """A dataclass that becomes a JSON object and back."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; names that this version does not know are left out."""
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreHeader(JsonRecord):
    """What all videos of a store share: one store belongs to one compressor.

    `kv` of a video has shape [segments, layers, 2 (key, value), kv_heads, tokens, head_dim].
    """

    fingerprint: str  # of the compressor, hex
    model: str  # name or path that it was loaded by, for messages only
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int
    frames_per_segment: int
    dtype: str  # of `kv`: "float16" or "float32"
    compute_dtype: str  # that the caches were computed in
    geometry: dict[str, Any]  # how a frame becomes the compressor's picture
    prompt: dict[str, Any]  # prompt pieces: token ids and texts
    chunk_segments: int  # longest chunk of a video, in segments
    micro_batch: int  # segments in one forward pass
    quantization: str | None = None  # of `kv` on disk: "int8", "int4", or its dtype as it is
    compression: str = "voco"  # how the tokens came about
    sampling: dict[str, Any] | None = None  # what the compressor was made for; a video's own is in its document
    positions: int | None = None  # that the model has for segments and text
    index: dict[str, Any] | None = (
        None  # what each segment's vectors are: `kind`, `layer`, `shape`; None where it has none
    )

    def __post_init__(self) -> None:
        if self.quantization not in (None, *quantize.BITS):
            raise InputError(f"quantization {self.quantization!r}: expected one of {sorted(quantize.BITS)}, or none")

    @property
    def segment_shape(self) -> tuple[int, ...]:
        """Shape of one segment's cache."""
        return (self.layers, 2, self.kv_heads, self.tokens, self.head_dim)

    @property
    def kv_dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of `kv`."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def segment_bytes(self) -> int:
        """Bytes of one segment's cache."""
        return math.prod(self.segment_shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_segment_bytes(self) -> int:
        """Bytes that one segment more takes in a chunk."""
        if self.quantization is None:
            return self.segment_bytes
        return quantize.segment_bytes(self.segment_shape, self.quantization)

    @property
    def index_shape(self) -> tuple[int, ...] | None:
        """Shape of one segment's vectors, float16; None where the store has no index."""
        return None if self.index is None else tuple(self.index["shape"])

    @property
    def index_segment_bytes(self) -> int:
        """Bytes of one segment's vectors."""
        return 0 if self.index_shape is None else math.prod(self.index_shape) * INDEX_DTYPE.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent(JsonRecord):
    """What a video's chunks are made of; written before the first of them."""

    source: str  # absolute path or URL
    content_hash: str  # sha256 of the file, hex
    size: int  # bytes of the file
    mtime_ns: int
    sampling: dict[str, Any]
    decoder: str  # "decord" or "pyav"
    chunk_segments: int  # chunk length of this video, in segments

    @property
    def token(self) -> str:
        """Hex sha256 over all of it: chunks of equal tokens have equal content."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkReceipt(JsonRecord):
    """A stored chunk: its place, its object's bytes, the crc32c of its content, and of its vectors where it has any."""

    index: int
    length: int
    crc32c: int
    vectors_crc32c: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo(JsonRecord):
    """A row of `ls`. `status`: complete, growing (read so far), failed (with its `reason`) or partial (not read)."""

    id: str
    status: str
    reason: str | None
    decoder: str | None
    segments: int
    duration: float | None  # seconds
    source: str
    bytes: int  # of all of the video's objects
    padding_bytes: int  # of these, what fills up the last chunk
    metadata_bytes: int  # of these, Zarr documents
    size: int  # bytes of the source file
    mtime_ns: int
    content_hash: str | None
    sampling: dict[str, Any] | None
    damage: dict[str, Any] | None = None  # {packets, seconds} that the source had lost; None where it lost nothing
    discontinuities: int = 0  # places where the source's clock jumped, and its parts were joined
    metadata: dict[str, Any] | None = None  # what its manifest says of it
    begun: dict[str, Any] | None = None  # the intent of what is being made in its place

    @property
    def findings(self) -> dict[str, Any]:
        """What is to be told of its source: `damage` and `discontinuities`, where there are any."""
        found = {"damage": self.damage, "discontinuities": self.discontinuities}
        return {name: value for name, value in found.items() if value}

    @property
    def payload_bytes(self) -> int:
        """Bytes of caches and timestamps."""
        return self.bytes - self.padding_bytes - self.metadata_bytes


def max_chunk_segments(segment_bytes: int, frame_bytes: int) -> int:
    """Longest chunk in segments: its object and its decoded frames (`frame_bytes` a segment) stay small."""
    fitting = min(CHUNK_BYTES // segment_bytes, FRAME_BYTES // max(1, frame_bytes))
    return max(1, min(MAX_CHUNK_SEGMENTS, fitting))


def even_chunk_segments(segments: int, max_chunk: int) -> int:
    """Chunk length that spreads `segments` evenly over as few chunks as `max_chunk` allows: 70, 64 -> 35."""
    chunks = max(1, -(-segments // max_chunk))
    return max(1, -(-segments // chunks))


def chunk_key(index: int) -> str:
    """Key of a `kv` chunk within its video's group, its generation left out."""
    return f"kv/c.{index}.0.0.0.0.0"


def index_key(index: int, header: StoreHeader) -> str:
    """Key of a chunk's vectors within its video's group."""
    return f"index/c.{index}" + ".0" * len(header.index_shape or ())


def growing_key(index: int) -> str:
    """Key of a chunk's timestamps within its video's group, while the video grows."""
    return f"timestamps/g.{index}"


def generation_of(token: str) -> str:
    """What the names of a generation's arrays end in."""
    return token[:16]


def is_superseded(key: str, generation: str | None) -> bool:
    """Is an object of a video's group of another generation than the one that is read, or of its growth?"""
    array, _, rest = key.partition("/")
    found = _ARRAY.fullmatch(array)
    return found is not None and (found[2] != generation or (found[1] == "timestamps" and rest.startswith("g.")))


def placed(generation: str | None, key: str) -> str:
    """Where an object of a generation lies: "kv/zarr.json" -> "kv.<generation>/zarr.json". None: in older formats."""
    array, _, rest = key.partition("/")
    return key if generation is None else f"{array}.{generation}/{rest}"


def is_leftover(key: str) -> bool:
    """Can a killed writer have left this object behind? (a temporary file; in older formats, a receipt)."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(TEMPORARY) or (name.startswith("receipt.") and name.endswith(".json"))


def safe_key(text: str) -> str:
    """A video id for `text`: one path component that every file system and object store takes.

    Distinct texts give distinct ids. Letters and digits of any script, space, "-", "." and "_" stay; other
    characters, and these where they would mislead (leading dot, "..", edge spaces), are percent-encoded.
    """
    key = "".join(char if _is_plain(char) and not _misleads(text, at) else _quote(char) for at, char in enumerate(text))
    if key.lower() == DOCUMENT:
        key = key.replace(".", "%2E")
    if len(key.encode()) > 200:
        key = key.encode()[:160].decode(errors="ignore") + "~" + hashlib.sha256(key.encode()).hexdigest()[:32]
    return key or "%"


def is_safe_key(key: str) -> bool:
    """Could `safe_key` have made this id?"""
    if _ORDINARY.fullmatch(key):  # `list` asks for each of a hundred thousand videos
        return True
    plain = all(_is_plain(char) or char in "%~" for char in key)
    return (
        plain
        and 0 < len(key.encode()) <= 200
        and key.lower() != DOCUMENT
        and not any(_misleads(key, at) for at in range(len(key)))
    )


def _is_plain(char: str) -> bool:
    return char in " -._" or unicodedata.category(char)[0] in "LMN"


def _misleads(text: str, at: int) -> bool:
    """A dot at an edge or after a dot, a space at an edge, two leading underscores (reserved by Zarr)."""
    char, edge = text[at], at in (0, len(text) - 1)
    return (char == "." and (edge or text[at - 1] == ".")) or (char == " " and edge) or (at == 0 and text[:2] == "__")


def _quote(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))
