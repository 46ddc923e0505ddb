"""Looking after a store: verify, remove, gc, export, merge."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError, VideoNotFoundError
from vococache.storage import catalog, claims, documents, sealing, whole
from vococache.storage.documents import Fields, stamp
from vococache.storage.format import (
    DOCUMENT,
    JsonRecord,
    generation_of,
    is_leftover,
    is_safe_key,
    is_superseded,
    placed,
)
from vococache.storage.objects import PLAIN, Entry
from vococache.storage.opening import check_same_compressor, check_vacant, open_objects, open_store, root_objects
from vococache.storage.reading import READABLE, StoreReader, difference
from vococache.storage.store import Store

GC_AGE_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem(JsonRecord):
    """Something in a store that is not as it was written. `object`: its key. `video`: None for the store's own."""

    video: str | None
    object: str
    problem: str  # what was expected, what was found

    def __str__(self) -> str:
        return f"{self.object}: {self.problem}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage(JsonRecord):
    """An object that `gc` removed, its bytes, and why."""

    object: str
    bytes: int
    reason: str


def verify(store: StoreReader, video: str | None = None) -> Iterator[Problem]:
    """Check every byte of a store, or of one video: changed, missing, truncated, swapped, unexpected objects.

    What a killed ingest leaves behind (partial videos, other generations, temporary files) is no problem; `gc` removes
    it. Raises `VideoNotFoundError` if there is no such video.
    """
    if video is not None:
        present = store.objects.walk(f"videos/{video}") if is_safe_key(video) else []
        if not present:
            store.document(video)  # raises, naming the nearest
        yield from _verify_video(store, video, present)
        return
    try:
        root_objects(store)
    except StoreError as error:
        yield Problem(video=None, object=DOCUMENT, problem=str(error))
    for name, entries in _groups(store).items():
        if name is not None and is_safe_key(name):
            yield from _verify_video(store, name, entries)
            continue
        for entry in entries:
            own = entry.key in (DOCUMENT, f"videos/{DOCUMENT}") or catalog.is_part(entry.key)
            if not (own or claims.is_claim(entry.key)) and not is_leftover(entry.key):
                yield Problem(video=None, object=entry.key, problem=unexpected(entry))


def remove(store: Store, *videos: str) -> None:
    """Remove videos. Killed at any moment, each is all there or not readable, and removing it again finishes.

    Raises `VideoNotFoundError`, before anything is removed, if there is no such video.
    """
    for video in videos:
        if not is_safe_key(video) or not store.objects.walk(f"videos/{video}"):
            store.document(video)  # raises, naming the nearest
    for video in videos:
        _remove(store, video)


def _remove(store: Store, video: str) -> None:
    if store.obstacle(video):
        store.objects.delete([f"videos/{video}"])  # a link itself, not what it leads to
        return
    store.discard(video)
    store.remove_document(video)


def gc(store: Store, *, older_than_s: float = GC_AGE_S, partial: bool = False) -> list[Garbage]:
    """Remove what killed writers left behind and report it; with `partial`, unfinished videos too.

    Leaves alone what changed within `older_than_s` seconds: a running ingest may be at it. Damaged videos are left for
    `verify` and `remove`.
    """
    removed, groups = [], _groups(store)
    for video, is_all, found in _garbage(store, groups, older_than_s, partial):
        if video is not None and is_all:
            remove(store, video)
        elif video is not None and any(item.reason == "partial video" for item in found):
            store.forget_begun(video)
        store.objects.delete(item.object for item in found)
        removed += found
    sealing.seal(store, present={name for name in groups if name is not None and is_safe_key(name)})
    return removed


def garbage(store: StoreReader, *, older_than_s: float = GC_AGE_S, partial: bool = False) -> list[Garbage]:
    """What `gc` would remove."""
    return [item for _, _, found in _garbage(store, _groups(store), older_than_s, partial) for item in found]


def _garbage(
    store: StoreReader, groups: dict[str | None, list[Entry]], older_than_s: float, partial: bool
) -> Iterator[tuple[str | None, bool, list[Garbage]]]:
    """Each video that has garbage, or None for the store itself; is it garbage as a whole; and what of it is."""
    limit = time.time() - older_than_s
    for name, entries in groups.items():
        reasons = _garbage_of(store, name, entries, partial) if entries else {}
        if not reasons or max(entry.modified for entry in entries) > limit:
            continue
        if name is not None and store.objects.walk(f"videos/{name}") != entries:
            continue  # somebody is at it
        found = [
            Garbage(object=entry.key, bytes=entry.length, reason=reasons[entry.key])
            for entry in entries
            if entry.key in reasons
        ]
        yield name, len(found) == len(entries), found


def relocate(store: Store, old: str, new: str) -> list[str]:
    """Record that what lay at `old`, a file or all beneath a folder, lies at `new`; the ids that this concerns.

    Paths from the root on, or URLs. Nothing is read but the store's documents; unfinished videos are left as they are.
    """
    old, new = old.rstrip("/"), new.rstrip("/")
    moved = []
    for info in store.list():
        if info.status != "partial" and (info.source == old or info.source.startswith(f"{old}/")):
            store.record_source(info.id, new + info.source.removeprefix(old), info.size, info.mtime_ns)
            moved.append(info.id)
    return moved


def export(store: StoreReader, videos: Sequence[str], url: str) -> StoreReader:
    """Copy complete videos into a new store at a path or URL, checking every byte.

    The copy becomes a store with its last object, so a killed export leaves nothing that opens. Raises
    `VideoNotFoundError`, `CorruptionError`, and `StoreError` where something lies at `url` already.
    """
    target = open_objects(url)
    here, there = f"{store.url}/", f"{target.url}/"
    if here.startswith(there) or there.startswith(here):
        raise InputError(f"cannot export {store.url} to {target.url}: expected a place apart from it")
    wanted = {video: _exportable(store, video) for video in dict.fromkeys(videos)}
    check_vacant(target)
    own = root_objects(store)
    for video, (fields, document) in wanted.items():
        expected = documents.record(store.header, fields)

        def copy(key: str, video: str = video, expected: dict[str, documents.Stamp] = expected) -> None:
            data = store.objects.get(f"videos/{video}/{key}")
            found = None if data is None else stamp(data, documents.trailer_of(key))
            if data is None or found != expected[key]:
                raise CorruptionError(
                    f"cannot export video {video!r}: {key} is not what was written: {difference(expected[key], found)}"
                )
            target.put(f"videos/{video}/{key}", data)

        for _ in target.map(copy, list(expected)):
            pass
        target.put(f"videos/{video}/{DOCUMENT}", document)
    for key, data in own.items():  # the store's own document last
        target.put(key, data)
    return open_store(url)


@dataclass(kw_only=True)
class Merge:
    """Ids of the videos that were copied, of those that were there already, and of those left, with the reason."""

    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def merge(store: Store, other: StoreReader) -> Merge:
    """Copy the complete videos of `other`, a store of the same compressor, into `store`, checking every byte.

    What can be read in `store` stays; what is failed or partial there is replaced. Killed, it goes on when it is run
    again. Raises `StoreMismatchError`.
    """
    check_same_compressor(store.url, other.header, store.header)
    if store.header.quantization != other.header.quantization:
        raise StoreMismatchError(f"stores {store.url} and {other.url} are quantized differently")
    found = Merge()
    for info in other.list():
        if info.status != "complete":
            found.left[info.id] = info.reason or f"it is {info.status}"
            continue
        ours = store.find(info.id)
        if ours is not None and ours.status in READABLE:
            if (ours.content_hash, ours.sampling) == (info.content_hash, info.sampling):
                found.present.append(info.id)
            else:
                found.left[info.id] = f"{store.url} has another video of that id, from {ours.source}"
            continue
        try:
            store.copy(info.id, info.id, info.source, info.size, info.mtime_ns, info.metadata, origin=other)
        except (CorruptionError, InputError) as error:
            found.left[info.id] = str(error)
            continue
        found.copied.append(info.id)
    return found


def _groups(store: StoreReader) -> dict[str | None, list[Entry]]:
    """All objects of a store by video; under None those that belong to none."""
    groups: dict[str | None, list[Entry]] = {None: []}
    for entry in store.objects.walk(""):
        parts = entry.key.split("/")
        in_group = parts[0] == "videos" and (len(parts) > 2 or (len(parts) == 2 and entry.kind != PLAIN))
        groups.setdefault(parts[1] if in_group else None, []).append(entry)
    return groups


def _verify_video(store: StoreReader, video: str, entries: Sequence[Entry]) -> Iterator[Problem]:
    place = f"videos/{video}/"
    for entry in entries:
        if entry.kind != PLAIN:
            yield Problem(video=video, object=entry.key, problem=unexpected(entry))
    present = {entry.key.removeprefix(place) for entry in entries if entry.kind == PLAIN}
    if DOCUMENT not in present:
        if not all(map(is_leftover, present)):
            yield Problem(video=video, object=place + DOCUMENT, problem="expected a document, found none")
        return
    try:
        fields, _ = store.document(video)
    except StoreError as error:
        yield Problem(video=video, object=place + DOCUMENT, problem=str(error))
        return
    if fields["status"] not in READABLE:
        return
    expected = documents.record(store.header, fields)
    found = store.objects.map(lambda key: store.stamp(video, key), list(expected))
    for (key, recorded), seen in zip(expected.items(), found, strict=True):
        if seen != recorded:
            yield Problem(video=video, object=place + key, problem=difference(recorded, seen))
    for key in sorted(present - expected.keys() - {DOCUMENT}):
        growing = fields["status"] == "growing" and _is_of(key, fields["token"])
        if is_leftover(key) or is_superseded(key, documents.generation(fields)):
            continue
        if whole.is_whole(key):
            if (flaw := whole.flaw_of(store, video, fields["token"], key)) is not None:
                yield Problem(video=video, object=place + key, problem=flaw)
        elif not growing:
            yield Problem(video=video, object=place + key, problem="expected no such object")


def unexpected(entry: Entry) -> str:
    """What is wrong with an object that does not belong to a store."""
    if entry.kind == PLAIN:
        return "expected no such object"
    return f"expected none, found a {entry.kind}, which is never followed or opened"


def _garbage_of(store: StoreReader, video: str | None, entries: Sequence[Entry], partial: bool) -> dict[str, str]:
    """Keys to remove of one group, and why."""
    keys = [entry.key for entry in entries]
    temporary = {key: "temporary file" for key in keys if "/.tmp-" in f"/{key}"}
    if video is None or not is_safe_key(video):
        return temporary
    document = f"videos/{video}/{DOCUMENT}"
    if keys == [f"videos/{video}"]:
        return {}  # no folder but a link or the like, which no job of ours leaves behind
    if document not in keys:
        return dict.fromkeys(keys, "of a video without document")
    try:
        fields: Fields = store.document(video)[0]
    except StoreError:
        return temporary
    begun = documents.begun_of(fields)
    if fields["status"] == "partial":
        if partial or "intent" not in fields:
            return dict.fromkeys(keys, "partial video" if "intent" in fields else "discarded")
        if begun is None:  # of an older format, whose software may finish it
            return temporary
    kept = {DOCUMENT}
    if fields["status"] in READABLE:
        kept |= documents.record(store.header, fields).keys()
    place = f"videos/{video}/"
    names = {key: key.removeprefix(place) for key in keys}
    garbage = {key: "what no document names" for key, name in names.items() if name not in kept}
    making = begun[0] if begun is not None else fields["token"] if fields["status"] == "growing" else None
    if making is not None:
        what = {key: "partial video" for key in garbage if _is_of(names[key], making)}
        garbage = garbage | what if partial else {key: why for key, why in garbage.items() if key not in what}
    return garbage | temporary


def _is_of(key: str, token: str) -> bool:
    """Is an object of a video's group one of the generation of `token`?"""
    return key.partition("/")[0] in {
        placed(generation_of(token), f"{array}/")[:-1] for array in (*documents.ARRAYS, documents.WHOLE)
    }


def _exportable(store: StoreReader, video: str) -> tuple[Fields, bytes]:
    """A complete video's document."""
    if store.info(video).status != "complete":
        raise VideoNotFoundError(f"video {video!r} in {store.url} is not complete: only complete videos are exported")
    data = store.objects.get(f"videos/{video}/{DOCUMENT}") or b""
    return store.parse(video, data), data
