"""The index of a store: what each segment's vectors are, and a way to read those of all videos at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, StoreError
from vococache.storage import documents
from vococache.storage.documents import Fields, Stamp
from vococache.storage.format import DOCUMENT, INDEX_DTYPE, StoreHeader, VideoInfo, is_safe_key, placed
from vococache.storage.reading import READABLE, StoreReader

INDEX_LAYER = 1  # whose keys tell segments apart best, of the layers of the embedded model


class IndexPart(NamedTuple):
    """Vectors [segments, *header.index_shape], float16, of a video's segments from number `start` on."""

    video: VideoInfo
    start: int
    vectors: npt.NDArray[Any]


class _Chunk(NamedTuple):
    video: VideoInfo
    fields: Fields
    number: int
    expected: Stamp


def keys_index(
    layers: int,
    kv_heads: int,
    tokens: int,
    head_dim: int,
    layer: int = INDEX_LAYER,
    heads: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A header's `index` that holds the keys of one layer: [tokens, kv_heads, head_dim] of each segment.

    `heads`: of these key-value heads alone, in this order.
    """
    some = {} if heads is None else {"heads": list(heads)}
    shape = [tokens, kv_heads if heads is None else len(heads), head_dim]
    return {"kind": "keys", "layer": min(layer, layers - 1), **some, "shape": shape}


def index_vectors(header: StoreHeader, kv: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """What a store keeps of caches [segments, layers, 2, kv_heads, tokens, head_dim] as vectors; None if nothing.

    Where the header's index is not of the kind "keys", nobody but its writer can tell: raises `StoreError`.
    """
    if header.index is None:
        return None
    if header.index["kind"] != "keys":
        raise StoreError(
            f"the store's index holds {header.index['kind']!r}: expected keys, which caches hold themselves"
        )
    keys = kv[:, header.index["layer"], 0]
    if (heads := header.index.get("heads")) is not None:
        keys = keys[:, heads]
    keys = keys.swapaxes(1, 2)  # -> [segments, tokens, kv_heads, head_dim]
    return keys.astype(np.float16).reshape(len(kv), *header.index["shape"])


def each_index(
    store: StoreReader, wanted: Callable[[VideoInfo], bool] = lambda _: True, videos: Sequence[str] | None = None
) -> Iterator[IndexPart]:
    """The index of all readable videos that are `wanted`, chunk by chunk, checked, in the order of their ids and times.

    `videos`: of these alone, in their order; the others' documents are not looked at.
    Memory stays flat: a local store's parts are maps of its files, a remote one's are fetched a few ahead. What has no
    index is left out, and so is the rest of a video that is replaced or removed meanwhile. Raises `CorruptionError`.
    """
    replaced = None

    def vectors(chunk: _Chunk) -> npt.NDArray[Any] | CorruptionError:
        key = placed(documents.generation(chunk.fields), store.chunk_key("index", chunk.number))
        place, trailer = f"videos/{chunk.video.id}/{key}", documents.trailer_of(key)
        try:
            data = store.objects.mapped(place)
            store.compare(chunk.video.id, key, chunk.expected, None if data is None else documents.stamp(data, trailer))
        except CorruptionError as error:
            return error
        content = np.frombuffer(
            b"" if data is None else data, INDEX_DTYPE, (chunk.expected.length - trailer) // INDEX_DTYPE.itemsize
        )
        return content.reshape(-1, *(store.header.index_shape or ()))

    def both(chunk: _Chunk) -> tuple[_Chunk, npt.NDArray[Any] | CorruptionError]:
        return chunk, vectors(chunk)

    for chunk, found in store.objects.ahead(both, _chunks(store, wanted, videos)):
        if chunk.video.id == replaced:
            continue
        if isinstance(found, CorruptionError):
            if _is_as_it_was(store, chunk):
                raise found
            replaced = chunk.video.id
            continue
        start = chunk.number * chunk.fields["intent"]["chunk_segments"]
        yield IndexPart(chunk.video, start, found[: chunk.video.segments - start])


def _chunks(store: StoreReader, wanted: Callable[[VideoInfo], bool], videos: Sequence[str] | None) -> Iterator[_Chunk]:
    documents_of: Iterable[tuple[str, bytes | CorruptionError | None]]
    if videos is None:
        documents_of = store.objects.get_each("videos", DOCUMENT, is_safe_key)
    else:
        keys = [f"videos/{video}/{DOCUMENT}" for video in videos if is_safe_key(video)]
        documents_of = zip(filter(is_safe_key, videos), store.objects.map(store.objects.get, keys), strict=True)
    for video, data in documents_of:
        try:
            fields = store.parse(video, data) if isinstance(data, bytes) else None
        except StoreError:
            fields = None  # `list` tells
        if fields is None or not isinstance(data, bytes):
            continue
        info = documents.video_info(video, fields, len(data))
        if fields["status"] in READABLE and "index" in fields and wanted(info):
            for index, stamp in enumerate(documents.stamps_of(fields, "index")):
                yield _Chunk(info, fields, index, stamp)


def _is_as_it_was(store: StoreReader, chunk: _Chunk) -> bool:
    """Does the video's document still name the chunk?"""
    try:
        return bool(store.readable(chunk.video.id)["token"] == chunk.fields["token"])
    except StoreError:
        return False
