"""Which videos of a store a command means: by id, glob, status, a file of ids, or what manifests say of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from vococache.errors import InputError

if TYPE_CHECKING:
    from vococache.storage import StoreReader

STATUSES = ("complete", "growing", "partial", "failed")
MAGIC = frozenset("*?[")  # none of them is ever in an id


def select(
    store: "StoreReader", names: Sequence[str], status: str | None = None, listed: Iterable[str] = ()
) -> list[str]:
    """Ids in order: those that `names` (ids and globs) and `listed` (ids) name, or all, if of that `status`.

    Raises `InputError` where a glob, or all of it together, means no video. An id that is not there stays: whoever uses
    it says so.
    """
    wanted = [*names, *filter(None, map(str.strip, listed))]
    ids = store.ids() if not wanted or any(MAGIC & set(name) for name in wanted) else []
    chosen: dict[str, None] = {} if wanted else dict.fromkeys(ids)
    for name in wanted:
        found = [video for video in ids if fnmatchcase(video, name)] if MAGIC & set(name) else [name]
        if not found:
            raise InputError(f"{name} matches no video of {store.url}: `voco ls {store.url}` lists them")
        chosen.update(dict.fromkeys(found))
    if status is not None:
        of_status = {info.id for info in store.list() if info.status == status}
        chosen = {video: None for video in chosen if video in of_status}
    if not chosen:
        raise InputError(f"store {store.url} holds no such video" + (f" that is {status}" if status else ""))
    return list(chosen)


def conditions(where: Sequence[str]) -> dict[str, str]:
    """Names and values of `--where`. Raises `InputError`."""
    found = {}
    for text in where:
        name, equals, found[name] = text.partition("=")
        if not (name and equals):
            raise InputError(f"--where {text!r}: expected KEY=VALUE")
    return found


def meets(metadata: Mapping[str, Any] | None, wanted: Mapping[str, str]) -> bool:
    """Does a video's metadata have these values, as texts?"""
    return all(name in (metadata or {}) and as_text((metadata or {})[name]) == value for name, value in wanted.items())


def as_text(value: Any) -> str:
    """A value of metadata as JSON has it, texts as they are."""
    return value if isinstance(value, str) else json.dumps(value)
