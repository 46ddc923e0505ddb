"""The index of a store: what each segment's vectors are, and a way to read those of all videos at once."""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, StoreError
from vococache.storage import catalog, documents
from vococache.storage.catalog import Vectors
from vococache.storage.documents import Fields, Stamp, stamp
from vococache.storage.format import INDEX_DTYPE, StoreHeader, VideoInfo, placed
from vococache.storage.reading import READABLE, StoreReader

T = TypeVar("T")

INDEX_LAYER = 1  # whose keys tell segments apart best, of the layers of the embedded model


class IndexSpan(NamedTuple):
    """Segments [start, stop) of a video, whose vectors are an object's from number `at` on."""

    video: str
    start: int
    stop: int
    at: int


class Indexed(NamedTuple):
    """A readable video of a store with an index: its generation, segments, and how many of them a chunk has."""

    generation: str
    segments: int
    chunk_segments: int


class _Sealed(NamedTuple):
    """An object of vectors, as the catalog tells of it, and what of it is wanted."""

    name: str
    vectors: Vectors
    spans: Sequence[IndexSpan]


class _Chunk(NamedTuple):
    """A chunk of a video's own index."""

    fields: Fields
    number: int
    expected: Stamp
    spans: Sequence[IndexSpan]


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


def scan_index(
    store: StoreReader, wanted: Callable[[VideoInfo], bool] | None = None, videos: Sequence[str] | None = None
) -> "IndexScan":
    """The index of all readable videos that are `wanted`, as it is now, in the order of their ids.

    `videos`: of these alone, in their order.
    """
    few = videos is not None and len(videos) < catalog.FEW and not store.is_local
    known = None if few else catalog.read(store.objects, store.identity)
    found = indexed_videos(store.summaries(known, videos), wanted)
    return IndexScan.of(store, found, {} if known is None else known.vectors)


def indexed_videos(
    summaries: Iterable[tuple[str, Fields, int]], wanted: Callable[[VideoInfo], bool] | None = None
) -> dict[str, Indexed]:
    """The readable videos of a generation, and `wanted`, by id. Whether they have an index, their records tell."""
    return {
        video: Indexed(generation, fields["segments"], fields["intent"]["chunk_segments"])
        for video, fields, length in summaries
        if fields["status"] in READABLE
        and (generation := documents.generation(fields)) is not None
        and (wanted is None or wanted(documents.video_info(video, fields, length)))
    }


@dataclass(frozen=True, slots=True)
class IndexScan:
    """The index of `videos`.

    `sealed`: what of it the catalog's objects of `vectors` hold, by their names. `open`: the videos that they do not
    hold, or not to the end, and their first segment that is missing.
    """

    store: StoreReader
    videos: Mapping[str, Indexed]
    vectors: Mapping[str, Vectors]
    sealed: Mapping[str, Sequence[IndexSpan]]
    open: Mapping[str, int]

    @classmethod
    def of(cls, store: StoreReader, videos: Mapping[str, Indexed], vectors: Mapping[str, Vectors]) -> "IndexScan":
        """The index of `videos`, of which objects of the catalog hold `vectors`."""
        rows: dict[str, list[tuple[int, int, str, int]]] = defaultdict(list)
        for name, held in vectors.items():
            at = 0
            for video, generation, start, stop in held.rows:
                indexed = videos.get(video)
                if indexed is not None and indexed.generation == generation and stop <= indexed.segments:
                    rows[video].append((start, stop, name, at))
                at += stop - start
        sealed: dict[str, list[IndexSpan]] = defaultdict(list)
        missing = {}
        for video, indexed in videos.items():
            reached = 0
            for start, stop, name, at in sorted(rows.get(video, ())):
                if start == reached:
                    sealed[name].append(IndexSpan(video, start, stop, at))
                    reached = stop
            if reached < indexed.segments:
                missing[video] = reached
        return cls(store, videos, vectors, sealed, missing)

    @property
    def chunks(self) -> int:
        """Chunks of what is `open`."""
        found = ((self.videos[video], reached) for video, reached in self.open.items())
        return sum(-(-(each.segments - reached) // each.chunk_segments) for each, reached in found)

    def map(self, function: Callable[[npt.NDArray[Any]], T]) -> Iterator[tuple[Sequence[IndexSpan], T]]:
        """`function` of each object's vectors [n, *header.index_shape], float16, checked, and whose they are.

        It is called by several threads. Objects come in the order of their first videos. Memory stays flat: of a local
        store vectors are maps of its files, of a remote one they are fetched a few ahead. What an object of the catalog
        does not hold as it should is read from the videos' own. Segments of a video that is replaced or removed
        meanwhile do not come, nor those of one that has no index. Raises `CorruptionError` where an index changed.
        """
        for source, found in self.each(function):
            if not isinstance(found, CorruptionError):
                yield source.spans, found
            elif isinstance(source, _Sealed):
                own = dict.fromkeys((span.video for span in source.spans), 0)
                yield from IndexScan(self.store, self.videos, {}, {}, own).map(function)
            elif self._is_as_it_was(source):
                raise found

    def each(self, function: Callable[[npt.NDArray[Any]], T]) -> Iterator[tuple[_Sealed | _Chunk, T | CorruptionError]]:
        """Each object, and `function` of its vectors, or why they cannot be had."""

        def look(source: _Sealed | _Chunk) -> tuple[_Sealed | _Chunk, T | CorruptionError]:
            try:
                return source, function(self._vectors(source))
            except CorruptionError as error:
                return source, error

        order = {video: place for place, video in enumerate(self.videos)}
        work: list[tuple[int, _Sealed | str]] = [(order[video], video) for video in self.open]
        for name, spans in self.sealed.items():
            work.append((min(order[span.video] for span in spans), _Sealed(name, self.vectors[name], spans)))
        work.sort(key=lambda item: item[0])
        ahead = self.store.objects.ahead
        objects = (each for found in ahead(self._objects, (item for _, item in work)) for each in found)
        yield from ahead(look, objects)

    def _objects(self, item: _Sealed | str) -> Sequence[_Sealed | _Chunk]:
        """An object of the catalog itself; of a video its chunks, as its document has them now."""
        if not isinstance(item, str):
            return [item]
        try:
            fields = self.store.readable(item)
        except StoreError:  # it is gone, or `list` tells
            return []
        indexed, length = self.videos[item], fields["intent"]["chunk_segments"]
        if "index" not in fields or documents.generation(fields) != indexed.generation:
            return []
        stamps, first = documents.stamps_of(fields, "index"), self.open[item] // length
        return [
            _Chunk(fields, number, stamps[number], [IndexSpan(item, start, min(start + length, indexed.segments), 0)])
            for number, start in enumerate(range(0, indexed.segments, length))
            if number >= first
        ]

    def _vectors(self, source: _Sealed | _Chunk) -> npt.NDArray[Any]:
        """Vectors [n, *header.index_shape] of an object, checked. Raises `CorruptionError`."""
        store, size = self.store, self.store.header.index_segment_bytes
        if isinstance(source, _Sealed):
            key, trailer = catalog.vectors_key(source.name), 0
            length = sum(stop - start for _, _, start, stop in source.vectors.rows) * size
            expected = Stamp(length, source.vectors.crc32)
        else:
            name = placed(documents.generation(source.fields), store.chunk_key("index", source.number))
            key, trailer = f"videos/{source.spans[0].video}/{name}", documents.trailer_of(name)
            length, expected = source.expected.length - trailer, source.expected
        data = store.objects.mapped(key)
        held = np.frombuffer(b"" if data is None else data, np.uint8)
        found = Stamp(len(held), zlib.crc32(held.data)) if isinstance(source, _Sealed) else stamp(held, trailer)
        store.compare(key, expected, None if data is None else found)
        content, shape = held[:length].view(INDEX_DTYPE), store.header.index_shape or ()
        if isinstance(source, _Sealed):
            return content.reshape(math.prod(shape), -1).T.reshape(-1, *shape)  # no copy
        return content.reshape(-1, *shape)

    def _is_as_it_was(self, chunk: _Chunk) -> bool:
        """Does the video's document still name the chunk?"""
        try:
            return bool(self.store.readable(chunk.spans[0].video)["token"] == chunk.fields["token"])
        except StoreError:
            return False
