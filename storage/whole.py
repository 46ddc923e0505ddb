"""Segments that are kept whole: all entries of their frames, beside the tokens that stand for them in the caches.

`videos/<id>/whole.<generation>/c.<number>` is one segment. No document names these objects: what is there counts, and
may be deleted at any time. Each begins with the sha256 of what it is, and ends in the crc32c of all before.

Letters of shapes: Y layers, G key-value heads, T tokens of all frames of a segment, D head dimension.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError
from vococache.storage import documents, quantize
from vococache.storage.documents import Stamp, stamp
from vococache.storage.format import TRAILER, generation_of, placed
from vococache.storage.reading import StoreReader
from vococache.storage.store import Store

METADATA = "whole"  # of a video of which segments are kept whole: how many, of its newest
HEAD_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(rf"{documents.WHOLE}\.[0-9a-f]{{16}}/c\.(0|[1-9][0-9]{{0,8}})")


class WholeSegment(NamedTuple):
    """A segment by its video, the token of that video's intent, and its number."""

    video: str
    token: str
    number: int


def put(store: Store, video: str, token: str, number: int, entries: npt.NDArray[Any]) -> None:
    """Keep a segment of a video of that intent whole: entries [Y, 2, G, T, D] of the store's dtype.

    Where it is kept already, nothing happens.
    """
    whole = np.ascontiguousarray(entries[None], store.header.kv_dtype)
    kind = store.header.quantization
    encoded = whole.reshape(-1).view(np.uint8) if kind is None else quantize.encode(whole, kind)
    data = np.concatenate((np.frombuffer(_head(store, video, token, number), np.uint8), encoded))
    store.create_chunk(video, token, _key(number), data, lambda: stamp(data))


def remove(store: Store, kept: Iterable[WholeSegment]) -> None:
    """Keep segments whole no longer."""
    store.objects.delete(_place(*each) for each in kept)


def kept(store: StoreReader, video: str) -> list[WholeSegment]:
    """Which segments of a readable video are kept whole, in order.

    Of a video whose metadata do not say that any are, nothing but its document is read.
    """
    fields = store.readable(video)
    generation = documents.generation(fields)
    if METADATA not in fields.get("metadata", {}) or generation is None:
        return []
    folder = f"{documents.WHOLE}.{generation}"
    found = (_number(f"{folder}/{name}") for name in store.objects.names(f"videos/{video}/{folder}"))
    numbers = sorted(number for number in found if number is not None and number < fields["segments"])
    return [WholeSegment(video, fields["token"], number) for number in numbers]


def read(store: StoreReader, video: str, chosen: Sequence[int], tokens: int) -> list[npt.NDArray[Any] | None]:
    """Segments of a readable video, checked: [Y, 2, G, T = `tokens`, D] each; None of one that is whole no longer.

    Raises `CorruptionError`.
    """
    token = store.made_of(video)
    layers, two, heads, _, width = store.header.segment_shape
    shape = (1, layers, two, heads, tokens, width)
    kind, dtype = store.header.quantization, store.header.kv_dtype
    length = math.prod(shape) * dtype.itemsize if kind is None else quantize.chunk_bytes(shape, kind)

    def one(number: int) -> npt.NDArray[Any] | None:
        data, place = np.empty(HEAD_BYTES + length, np.uint8), _place(video, token, number)
        found = store.objects.read_into(place, data, TRAILER)
        if found is None:
            return None
        if found.length != len(data) + TRAILER:
            flaw: str | None = f"expected {len(data) + TRAILER} bytes, found {found.length}"
        else:
            flaw = _flaw(found, data[:HEAD_BYTES].tobytes(), _head(store, video, token, number))
        if flaw is not None:
            raise CorruptionError(
                f"{store.url}/{place} is not what was written: {flaw}; delete it: its segment is in the caches too"
            )
        if kind is None:
            return data[HEAD_BYTES:].view(dtype).reshape(shape[1:])
        out: npt.NDArray[Any] = np.empty(shape[1:], dtype)
        quantize.decode(data[HEAD_BYTES:], out[None], kind)
        return out

    return [*store.objects.map(one, list(chosen))]


def flaw_of(store: StoreReader, video: str, token: str, key: str) -> str | None:
    """What is wrong with an object `key` of the group of a video of that intent, where such segments lie; None if
    nothing is, as far as can be told without the model."""
    number = _number(key)
    if number is None or key != placed(generation_of(token), _key(number)):
        return "expected no such object"
    data = store.objects.get(f"videos/{video}/{key}")
    return None if data is None else _flaw(stamp(data, TRAILER), data[:HEAD_BYTES], _head(store, video, token, number))


def is_whole(key: str) -> bool:
    """Does an object of a video's group lie where segments are kept whole?"""
    return key.startswith(f"{documents.WHOLE}.")


def _head(store: StoreReader, video: str, token: str, number: int) -> bytes:
    """What no other object begins with: one in another's place is noticed."""
    return hashlib.sha256(f"{store.identity} {video} {token} {number}".encode()).digest()


def _flaw(found: Stamp, head: bytes, expected: bytes) -> str | None:
    if found.crc32c == documents.UNSOUND:
        return "found bytes that do not end in their own crc32c"
    return None if head == expected else "it is another segment"


def _number(key: str) -> int | None:
    found = _NAME.fullmatch(key)
    return None if found is None else int(found[1])


def _key(number: int) -> str:
    return f"{documents.WHOLE}/c.{number}"


def _place(video: str, token: str, number: int) -> str:
    return f"videos/{video}/{placed(generation_of(token), _key(number))}"
