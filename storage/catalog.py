"""A catalog: what a listing or a search would else have to open video by video, put together. Never the truth.

Parts, `catalog/<number>`, hold rows, what the documents of an object store's videos say, and tell of objects of
vectors, `catalog/<name>.index`, the indexes of many videos one behind the other. `vococache.storage.sealing` makes
them.

Before a video's document is swapped on an object store, an empty object `changed/<id>.<digits>` says so. Whoever has
no mark is as the newest part that names it says; the documents of the others are read. Vectors need no marks: they are
those of a generation, whose chunks never change.
"""

import hashlib
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from vococache.errors import CorruptionError
from vococache.storage import documents
from vococache.storage.documents import Fields
from vococache.storage.format import is_safe_key
from vococache.storage.objects import Entry, Objects

PARTS, MARKS = "catalog", "changed"
VECTORS = ".index"
HEAD = b'{"crc32c":"'
FEW = 64  # objects that may as well be opened one by one
DIGITS = 12  # of a mark: so many that are its own, and so many of the document that is to be replaced

Rows = dict[str, tuple[Fields, int] | None]  # summary and length of each video's document; None where it has none


class Vectors(NamedTuple):
    """An object of vectors: its bytes' crc32, and whose they are: video, generation, segments [start, stop).

    Not crc32c: what computes that here keeps all other threads of a search waiting.
    """

    crc32: int
    rows: list[tuple[str, str, int, int]]


class Catalog(NamedTuple):
    """What the parts say: rows, without those of the `changed` videos, whose documents are to be asked; vectors."""

    rows: Rows
    changed: list[str]
    vectors: dict[str, Vectors]


def mark(objects: Objects, video: str, *before: bytes | None) -> None:
    """Say that a video's document is about to be changed. `before`: what it is, where it is swapped, not deleted."""
    if not objects.is_local:
        digits = "".join((uuid.uuid4().hex[:DIGITS], *map(digest, before)))
        objects.put(f"{MARKS}/{video}.{digits}", b"")


def digest(document: bytes | None) -> str:
    """Digits of a document, by which a mark knows it."""
    return "0" * DIGITS if document is None else hashlib.sha256(document).hexdigest()[:DIGITS]


def read(objects: Objects, identity: str, most_bytes: int | None = None) -> Catalog | None:
    """The catalog of a store; None where there is none that is sound, or its parts have more than so many bytes."""
    changed = videos_of(marks(objects))  # first: a mark that goes meanwhile is in a part that is read afterwards
    entries = objects.walk(PARTS)
    length = sum(entry.length for entry in entries if not entry.key.endswith(VECTORS))
    if most_bytes is not None and length > most_bytes:
        return None
    said = told(objects, identity, numbers(entries))
    if said is None:
        return None
    rows, vectors = said
    return Catalog({video: row for video, row in rows.items() if video not in changed}, sorted(changed), vectors)


def is_part(key: str) -> bool:
    """Does an object of a store belong to its catalog?"""
    return key.partition("/")[0] in (PARTS, MARKS)


def marks(objects: Objects) -> list[Entry]:
    """All marks; on a local disk there are none."""
    return [] if objects.is_local else objects.walk(MARKS)


def videos_of(found: Iterable[Entry]) -> set[str]:
    """The videos that marks name."""
    names = (each.key.partition("/")[2].rpartition(".")[0] for each in found)
    return {name for name in names if is_safe_key(name)}


def is_spent(key: str, document: str) -> bool:
    """Can the swap that a mark announces not happen any more, as the document is another by now, of that digest?"""
    digits = key.rpartition(".")[2]
    return len(digits) == 2 * DIGITS and digits[DIGITS:] != document


def numbers(entries: Iterable[Entry]) -> list[int]:
    """The numbers of parts among a catalog's objects."""
    names = (entry.key.partition("/")[2] for entry in entries)
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii())


def part_key(number: int) -> str:
    """The key of a part."""
    return f"{PARTS}/{number:08}"


def vectors_key(name: str) -> str:
    """The key of an object of vectors."""
    return f"{PARTS}/{name}{VECTORS}"


def told(objects: Objects, identity: str, parts: list[int]) -> tuple[Rows, dict[str, Vectors]] | None:
    """What the parts say together; None where one is damaged or missing, or none is full."""
    found: tuple[Rows, dict[str, Vectors]] | None = None
    try:
        read = list(objects.map(objects.get, [part_key(number) for number in parts]))
    except CorruptionError:  # what is no plain file
        return None
    for data in read:
        fields = documents.unseal(HEAD, data or b"")
        if fields is None or fields.get("store") != identity or type(fields.get("rows")) is not dict:
            return None
        try:
            vectors = {name: _vectors(each) for name, each in fields.get("vectors", {}).items() if is_safe_key(name)}
        except (ValueError, TypeError, AttributeError):
            return None
        if fields.get("full") is True:
            found = {}, {}
        if found is not None:
            rows, known = found
            found = rows | fields["rows"], known | vectors
    return found


def _vectors(said: Any) -> Vectors:
    """What a part says of an object of vectors. Raises `ValueError` or `TypeError` where it says something else."""
    crc32, rows = said
    found = [(str(video), str(generation), int(start), int(stop)) for video, generation, start, stop in rows]
    if not all(0 <= start < stop for _, _, start, stop in found):
        raise ValueError("segments")
    return Vectors(int(crc32), found)
