"""Sealing: what the documents of many videos say, and their indexes, put together into a store's catalog."""

import hashlib
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError
from vococache.storage import catalog, documents
from vococache.storage.catalog import Catalog, Vectors
from vococache.storage.documents import Fields
from vococache.storage.format import DOCUMENT, is_safe_key
from vococache.storage.index import IndexScan, indexed_videos
from vococache.storage.reading import StoreReader

MARK_AGE_S = 3600.0  # no swap takes so long
MOST_PARTS = 16
VECTORS_BYTES = 16 << 20  # of an object of vectors, about: one request, and few steps from one to the next

Looked = dict[str, tuple[tuple[Fields, int] | None, str]]  # of each document that is sound: its row, its digest


def seal(
    store: StoreReader,
    *,
    older_than_s: float = MARK_AGE_S,
    least: int = 0,
    written: int = 0,
    present: Collection[str] = (),
) -> None:
    """Bring a store's catalog up to date, or make it, where that spares whoever comes next `least` objects or more.

    `written`: objects that the caller knows of, beside those that marks tell of. `present`: the videos that there are,
    where the caller has listed them: so what was removed by other means than ours is seen. Of two that seal at once one
    comes late, and what it made is taken away later: vectors that nobody names, and marks of what may yet happen, when
    they are older than `older_than_s`.
    """
    objects, limit = store.objects, time.time() - older_than_s
    marks, entries = catalog.marks(objects), objects.walk(catalog.PARTS)
    marked, numbers = catalog.videos_of(marks), catalog.numbers(entries)
    if numbers and not objects.is_local and max(len(marked), written) < least:
        return
    said = catalog.told(objects, store.identity, numbers)
    if said is None and not objects.is_local:
        marked |= {*filter(is_safe_key, objects.names("videos"))}
        if len(marked) < least:
            return
    full = said is None or len(numbers) >= MOST_PARTS
    rows, vectors = ({}, {}) if said is None else said
    if present and not objects.is_local:
        marked |= {video for video, row in rows.items() if row is not None} ^ set(present)
    looked = _look(store, marked)
    changed: catalog.Rows = {video: row for video, (row, _) in looked.items()}
    rows |= changed
    kept, new = _vectors(store, rows, vectors, full)
    if not (looked or new or (said is None and numbers)):
        return
    fields = {
        "store": store.identity,
        "full": full,
        "rows": rows if full else changed,
        "vectors": kept | new if full else new,
    }
    if objects.create(catalog.part_key(max(numbers, default=0) + 1), documents.seal(catalog.HEAD, fields)):
        objects.delete(
            mark.key
            for mark in marks
            for video in catalog.videos_of([mark]) & looked.keys()
            if mark.modified <= limit or (objects.swaps and catalog.is_spent(mark.key, looked[video][1]))
        )
        if full:
            objects.delete(map(catalog.part_key, numbers))
            named = {catalog.vectors_key(name) for name in kept | new}
            dropped = {catalog.vectors_key(name) for name in vectors}
            objects.delete(
                entry.key
                for entry in entries
                if entry.key.endswith(catalog.VECTORS)
                and entry.key not in named
                and (entry.key in dropped or entry.modified <= limit)
            )


def _look(store: StoreReader, videos: Iterable[str]) -> Looked:
    """What the documents of videos say, unchecked but for their seals; those that are damaged stay marked."""

    def look(video: str) -> bytes | CorruptionError | None:
        try:
            return store.objects.get(f"videos/{video}/{DOCUMENT}")
        except CorruptionError as error:
            return error

    names, found = sorted(videos), Looked()
    for video, data in zip(names, store.objects.map(look, names), strict=True):
        if data is None:
            found[video] = None, catalog.digest(None)
        elif isinstance(data, bytes) and (summary := documents.unseal_summary(data)) is not None:
            found[video] = (summary, len(data)), catalog.digest(data)
    return found


def _vectors(
    store: StoreReader, rows: catalog.Rows, vectors: dict[str, Vectors], full: bool
) -> tuple[dict[str, Vectors], dict[str, Vectors]]:
    """Which objects of vectors are kept, and new ones of what they do not hold, where that is in more than a `FEW`.

    A `full` part drops those that nobody needs any more, and makes larger ones of small ones.
    """
    if store.header.index is None:
        return {}, {}
    videos = indexed_videos(store.summaries(Catalog(rows, [], {})))
    scan = IndexScan.of(store, videos, vectors)
    if full:
        size = store.header.index_segment_bytes
        bytes_of = {name: size * sum(span.stop - span.start for span in spans) for name, spans in scan.sealed.items()}
        small = [name for name, count in bytes_of.items() if 2 * count < VECTORS_BYTES]
        vectors = {name: vectors[name] for name in bytes_of if len(small) < 2 or name not in small}
        scan = IndexScan.of(store, videos, vectors)
    return vectors, dict(_put(scan)) if scan.chunks >= catalog.FEW else {}


def _put(scan: IndexScan) -> Iterator[tuple[str, Vectors]]:
    """Put the vectors that no object holds into new ones. What is damaged is left: reading it tells."""
    rows: list[tuple[str, str, int, int]] = []
    held: list[npt.NDArray[Any]] = []
    damaged: set[str] = set()
    for source, found in IndexScan(scan.store, scan.videos, {}, {}, scan.open).each(np.array):
        (span,) = source.spans
        if isinstance(found, CorruptionError):
            damaged.add(span.video)
        elif span.video not in damaged:
            held.append(found[: span.stop - span.start])
            before = rows[-1] if rows else ("", "", 0, 0)
            if before[0] == span.video and before[3] == span.start:
                rows[-1] = (*before[:3], span.stop)
            else:
                rows.append((span.video, scan.videos[span.video].generation, span.start, span.stop))
        if sum(part.nbytes for part in held) >= VECTORS_BYTES:
            yield _put_one(scan.store, rows, held)
            rows, held = [], []
    if rows:
        yield _put_one(scan.store, rows, held)


def _put_one(
    store: StoreReader, rows: list[tuple[str, str, int, int]], held: list[npt.NDArray[Any]]
) -> tuple[str, Vectors]:
    """Create an object of vectors, whose name is that of what it holds. Its last axis is that of the segments."""
    whole = np.concatenate(held)
    data = np.ascontiguousarray(whole.reshape(len(whole), -1).T).reshape(-1).view(np.uint8)
    found = Vectors(zlib.crc32(data.data), rows)
    name = hashlib.sha256(repr(found).encode()).hexdigest()[:16]
    store.objects.create(catalog.vectors_key(name), data)
    return name, found
