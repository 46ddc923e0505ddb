"""A catalog of an object store's videos, so that a listing fetches what changed alone. Never the truth.

Before a video's document is swapped, an empty object `changed/<id>.<digits>` says so. `seal` puts what the documents of
such videos say into a part, `catalog/<number>`, and takes away the marks that are so old that their writers must have
finished. So whoever has no mark is as the newest part that names it says; the documents of the others are read.
"""

import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from vococache.errors import CorruptionError
from vococache.storage import documents
from vococache.storage.documents import Fields
from vococache.storage.format import DOCUMENT, is_safe_key
from vococache.storage.objects import Entry, Objects

PARTS, MARKS = "catalog", "changed"
HEAD = b'{"crc32c":"'
MARK_AGE_S = 3600.0  # no swap takes so long
MOST_PARTS = 16

Rows = dict[str, tuple[Fields, int] | None]  # summary and length of each video's document; None where it has none


class Catalog(NamedTuple):
    """What the parts say, without the videos of `changed`, whose documents are to be asked."""

    rows: Rows
    changed: list[str]


def mark(objects: Objects, video: str) -> None:
    """Say that a video's document is about to be swapped."""
    if not objects.is_local:
        objects.put(f"{MARKS}/{video}.{uuid.uuid4().hex[:12]}", b"")


def read(objects: Objects, identity: str) -> Catalog | None:
    """The catalog of a store; None where there is none that is sound."""
    if objects.is_local:
        return None
    changed = _videos(objects.walk(MARKS))  # first: a mark that goes meanwhile is in a part that is read afterwards
    rows = _parts(objects, identity, _numbers(objects))
    if rows is None:
        return None
    return Catalog({video: row for video, row in rows.items() if video not in changed}, sorted(changed))


def seal(objects: Objects, identity: str, *, older_than_s: float = MARK_AGE_S) -> int:
    """Bring the catalog up to date, or make it; the number of videos that were looked at."""
    if objects.is_local:
        return 0
    limit = time.time() - older_than_s
    numbers, marks = _numbers(objects), objects.walk(MARKS)
    rows = _parts(objects, identity, numbers)
    videos = _videos(marks) if rows is not None else {*_videos(marks), *filter(is_safe_key, objects.names("videos"))}
    if not videos and rows is not None:
        return 0
    found = objects.map(lambda video: _look(objects, video), sorted(videos))
    looked: Rows = {video: row for video, row in zip(sorted(videos), found, strict=True) if not isinstance(row, str)}
    full = rows is None or len(numbers) >= MOST_PARTS
    fields = {
        "store": identity,
        "full": full,
        "rows": {**rows, **looked} if full and rows is not None else looked,
    }
    if objects.create(f"{PARTS}/{max(numbers, default=0) + 1:08}", documents.seal(HEAD, fields)):
        objects.delete(each.key for each in marks if each.modified <= limit and _videos([each]) <= looked.keys())
        if full:
            objects.delete(f"{PARTS}/{number:08}" for number in numbers)
    return len(videos)


def is_part(key: str) -> bool:
    """Does an object of a store belong to its catalog?"""
    return key.partition("/")[0] in (PARTS, MARKS)


def _look(objects: Objects, video: str) -> tuple[Fields, int] | str | None:
    """A document's summary and length, unchecked but for its seal; a text where it is damaged, and stays marked."""
    try:
        data = objects.get(f"videos/{video}/{DOCUMENT}")
    except CorruptionError as error:
        return str(error)
    if data is None:
        return None
    summary = documents.unseal_summary(data)
    return "damaged" if summary is None else (summary, len(data))


def _numbers(objects: Objects) -> list[int]:
    return sorted(int(name) for name in objects.names(PARTS) if name.isdecimal())


def _parts(objects: Objects, identity: str, numbers: list[int]) -> Rows | None:
    """What the parts say together; None where one is damaged or missing, or none is full."""
    rows: Rows | None = None
    for data in objects.map(objects.get, [f"{PARTS}/{number:08}" for number in numbers]):
        fields = documents.unseal(HEAD, data or b"")
        if fields is None or fields.get("store") != identity or type(fields.get("rows")) is not dict:
            return None
        if fields.get("full") is True:
            rows = {}
        if rows is not None:
            rows |= fields["rows"]
    return rows


def _videos(marks: Iterable[Entry]) -> set[str]:
    names = (each.key.partition("/")[2].rpartition(".")[0] for each in marks)
    return {name for name in names if is_safe_key(name)}
