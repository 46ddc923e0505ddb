"""Manifests: lists of videos, as tables (CSV, TSV), JSON, JSON lines, or a path in each line of a text file."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from vococache.errors import InputError
from vococache.storage.checks import metadata_flaw
from vococache.storage.objects import describe, redact
from vococache.workers.video.source import file_system, is_url, without_query

SUFFIXES = frozenset((".csv", ".tsv", ".json", ".jsonl", ".txt"))
PATHS = ("path", "video")  # fields of either name

Row = tuple[int, dict[str, Any]]  # its number, and its fields


@dataclass(slots=True)
class Manifest:
    """The videos of a manifest: (location, id or None, metadata) of each. `extra`: fields of which nothing is made."""

    videos: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)


def is_manifest(text: str) -> bool:
    """Does a path or URL name a manifest?"""
    return PurePosixPath(without_query(text)).suffix.lower() in SUFFIXES and not os.path.isdir(text)  # noqa: PTH112


def read_manifest(manifest: str) -> Manifest:
    """The videos that a manifest at a path or URL names; relative paths are relative to it.

    Tables and objects have a field `path` (or `video`) and may have an `id`; other texts and numbers that are not long
    are metadata. Raises `InputError`, which says where.
    """
    found, name = Manifest(), redact(manifest)
    for number, row in manifest_rows(manifest):
        location = next((row[key] for key in PATHS if row.get(key) not in (None, "")), None)
        if location is None:
            what = "a path in the field 'path'" if row.keys() & PATHS else "a field 'path'"
            raise InputError(f"manifest {name}, line {number}: expected {what}, found {sorted(row)}"[:500])
        if not isinstance(location, str) or "\0" in location:
            raise InputError(f"manifest {name}, line {number}: expected text in 'path', found {location!r:.80}")
        video = row.get("id")
        if not isinstance(video, str | int | None) or isinstance(video, bool):
            raise InputError(f"manifest {name}, line {number}: expected text in 'id', found {video!r:.80}")
        others = {name: value for name, value in row.items() if name not in (*PATHS, "id")}
        metadata = {
            name: value for name, value in others.items() if value != "" and metadata_flaw({name: value}) is None
        }
        if (flaw := metadata_flaw(metadata)) is not None:
            raise InputError(f"manifest {name}, line {number}: {flaw}")
        found.videos.append((_beside(manifest, location), None if video in (None, "") else str(video), metadata))
        found.extra.update(name for name in others.keys() - metadata.keys() if others[name] not in ("", None))
    if not found.videos:
        raise InputError(f"manifest {name} names no video")
    return found


def manifest_rows(manifest: str) -> Iterator[Row]:
    """Numbered rows of a manifest. Raises `InputError` where it cannot be read, or on a line that is no row."""
    name = redact(manifest)
    try:
        text = _read_text(manifest)
    except UnicodeDecodeError as error:
        raise InputError(
            f"manifest {name}: expected text in UTF-8, found a byte {error.object[error.start]:#x}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # also a zero byte, ~nobody
        raise InputError(f"manifest {name!r} cannot be read: {describe(error)}") from None
    kind = PurePosixPath(without_query(manifest)).suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table_rows(name, text, "," if kind == ".csv" else "\t")
    elif kind == ".txt":
        for number, line in enumerate(text.split("\n"), 1):  # other ends of lines are parts of names and texts
            if line.strip() and not line.startswith("#"):
                yield number, {"path": line.strip()}
    elif kind == ".json":
        rows = _json(name, text)
        if not isinstance(rows, list):
            raise InputError(f"manifest {name}: expected a list of paths or objects, found {type(rows).__name__}")
        for number, row in enumerate(rows, 1):
            yield number, _object(name, number, row)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _object(name, number, _json(f"{name}, line {number}", line))


def _table_rows(name: str, text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 1
    try:
        header = [column.strip() for column in next(filter(any, reader), [])]
        named = list(filter(None, header))  # spreadsheets add columns without a name
        if len(set(named)) < len(named):
            raise InputError(f"manifest {name}: expected a header of distinct names, found {', '.join(named)}"[:500])
        start = reader.line_num + 1
        for record in reader:
            if len(record) > len(header):
                raise InputError(
                    f"manifest {name}, line {start}: expected {len(header)} fields, found {len(record)};"
                    f" quote those that hold a {delimiter!r}"
                )
            if any(record):
                yield start, dict(zip(header, map(str.strip, record), strict=False))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"manifest {name}, line {start}: {error}") from None


def _json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"manifest {place}: nested too deep") from None
    except ValueError as error:
        raise InputError(f"manifest {place}: not JSON: {error}") from None


def _object(name: str, number: int, row: Any) -> dict[str, Any]:
    if isinstance(row, str):
        return {"path": row}
    if not isinstance(row, dict):
        raise InputError(f"manifest {name}, line {number}: expected an object or a path, found {type(row).__name__}")
    return row


def _read_text(manifest: str) -> str:
    if not is_url(manifest):
        return Path(manifest).expanduser().read_text(encoding="utf-8-sig")
    try:
        filesystem, path = file_system(manifest)
        data: bytes = filesystem.cat_file(path)
    except Exception as error:  # what fsspec's file systems raise has no common ancestor
        raise InputError(f"manifest {redact(manifest)} cannot be read: {describe(error)}") from None
    return data.decode("utf-8-sig")


def _beside(manifest: str, location: str) -> str:
    """A video's path or URL as a manifest has it, which may be relative to the manifest."""
    if is_url(location):
        return location
    try:
        path = Path(location).expanduser()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"manifest {redact(manifest)}: {location}: {error}") from None
    if is_url(manifest) and not path.is_absolute():
        return f"{without_query(manifest).rpartition('/')[0]}/{location}"
    return str((Path(manifest).expanduser().parent / path).absolute())
