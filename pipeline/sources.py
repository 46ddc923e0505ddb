"""What the user named becomes a list of videos with ids: files, folders, globs, URLs, manifests."""

import csv
import glob
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath

from vococache.errors import InputError
from vococache.storage import safe_key
from vococache.storage.objects import describe, redact
from vococache.workers.source import file_system, is_url

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
MANIFEST_SUFFIXES = frozenset((".csv", ".jsonl"))


@dataclass(frozen=True, slots=True)
class Source:
    """One video: its id in the store, and the absolute path or URL that it is read from."""

    video: str
    location: str


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The videos that `inputs` name, sorted by id, each once.

    A video's id is its file stem; where two collide, the path relative to what they have in common. Manifests
    may name ids themselves. Raises `InputError` for an input that does not exist or holds no video.
    """
    if not inputs:
        raise InputError("no videos: expected files, folders, globs, URLs or manifests")
    named: dict[str, str] = {}
    found: list[str] = []
    for text in inputs:
        if is_manifest(text):
            for location, video in read_manifest(text):
                if video is None:
                    found.append(location)
                elif named.setdefault(safe_key(video), location) != location:
                    raise InputError(f"manifest {text}: id {video!r} stands for two videos; expected distinct ids")
        else:
            found.extend(expand(text))
    given = set(named.values())
    unnamed = [location for location in dict.fromkeys(found) if location not in given]
    for video, location in give_ids(unnamed).items():
        claim(named, video, location)
    return [Source(video, location) for video, location in sorted(named.items())]


def expand(text: str) -> Iterator[str]:
    """The videos that one input names, as absolute paths or URLs. Raises `InputError` when there are none."""
    if is_url(text):
        yield from expand_url(text)
        return
    path = Path(text).expanduser()
    if path.is_dir():
        inside = sorted(entry for entry in path.rglob("*") if is_video(entry.name) and not entry.is_dir())
        if not inside:
            raise InputError(f"folder {text} holds no video file ({', '.join(sorted(VIDEO_SUFFIXES))})")
        yield from (str(entry.absolute()) for entry in inside)
    elif path.exists() or path.is_symlink():
        yield str(path.absolute())
    elif glob.has_magic(text):
        matches = sorted(match for match in glob.glob(text, recursive=True) if Path(match).is_file())  # noqa: PTH207 (absolute too)
        if not matches:
            raise InputError(f"glob {text} matches no file")
        yield from (str(Path(match).absolute()) for match in matches)
    else:
        raise InputError(f"{text} does not exist: expected a video file, a folder, a glob, a URL or a manifest")


def expand_url(text: str) -> Iterator[str]:
    """The videos under an fsspec URL: one object, a glob, or everything below a folder."""
    try:
        filesystem, path = file_system(text)
        if (is_video(path) and not glob.has_magic(path)) or filesystem.isfile(path):
            paths = [path]
        elif glob.has_magic(path) and "?" not in path:
            paths = filesystem.glob(path)
        else:
            paths = [entry for entry in filesystem.find(path) if is_video(entry)]
    except Exception as error:  # what fsspec's file systems raise has no common ancestor
        raise InputError(f"{redact(text)} cannot be listed: {describe(error)}") from None
    if not paths:
        raise InputError(f"{redact(text)} holds no video file")
    yield from (filesystem.unstrip_protocol(entry) for entry in sorted(paths))


def is_manifest(text: str) -> bool:
    """Does a path or URL name a manifest?"""
    return suffix(text) in MANIFEST_SUFFIXES


def suffix(text: str) -> str:
    """The suffix of a path, or of a URL without its query, in lower case."""
    return PurePosixPath(text.partition("?")[0] if is_url(text) else text).suffix.lower()


def is_video(name: str) -> bool:
    """Does the name look like a video file's? Hidden files (such as macOS's `._x.mp4`) do not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def give_ids(locations: Iterable[str]) -> dict[str, str]:
    """Ids of locations: the stem where it is the only one of its name, the relative path where it is not.

    Raises `InputError` where even so two have one id.
    """
    stems = {location: PurePosixPath(location).stem for location in locations}
    count = Counter(safe_key(stem) for stem in stems.values())
    ids: dict[str, str] = {}
    clashing = {location for location, stem in stems.items() if count[safe_key(stem)] > 1}
    common = common_folder(clashing)
    for location, stem in stems.items():
        claim(ids, safe_key(stem if location not in clashing else location.removeprefix(common)), location)
    return ids


def claim(ids: dict[str, str], video: str, location: str) -> None:
    """Enter a location under its id. Raises `InputError` where another has it."""
    if ids.setdefault(video, location) != location:
        raise InputError(f"id {video!r} stands for {ids[video]} and {location}: name one in a manifest")


def common_folder(locations: Collection[str]) -> str:
    """The longest prefix of all `locations` that ends with a slash."""
    if not locations:
        return ""
    shortest, longest = min(locations), max(locations)
    same = next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return shortest[: shortest.rfind("/", 0, same) + 1]


def read_manifest(manifest: str) -> Iterator[tuple[str, str | None]]:
    """(location, id or None) of each row of a CSV (header `path` or `video`, `id`) or JSONL manifest, a path or URL.

    Relative paths are relative to the manifest.
    """
    name = redact(manifest)
    try:
        rows = list(manifest_rows(manifest))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {name} cannot be read: {describe(error)}") from None
    if not rows:
        raise InputError(f"manifest {name} names no video")
    for number, row in rows:
        location = row.get("path") or row.get("video")
        if not isinstance(location, str) or not location:
            raise InputError(f"manifest {name}, line {number}: expected a field 'path', found {sorted(map(str, row))}")
        video = row.get("id")
        yield beside(manifest, location), None if video is None or video == "" else str(video)


def read_text(manifest: str) -> str:
    """The text of a manifest. Raises `InputError` where a URL cannot be read, `OSError` where a path cannot."""
    if not is_url(manifest):
        return Path(manifest).expanduser().read_text(encoding="utf-8-sig")
    try:
        filesystem, path = file_system(manifest)
        return str(filesystem.cat_file(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except Exception as error:  # what fsspec's file systems raise has no common ancestor
        raise InputError(f"manifest {redact(manifest)} cannot be read: {describe(error)}") from None


def beside(manifest: str, location: str) -> str:
    """A video's path or URL as a manifest has it, which may be relative to the manifest."""
    if is_url(location):
        return location
    if is_url(manifest) and not location.startswith(("/", "~")):
        return f"{manifest.partition('?')[0].rpartition('/')[0]}/{location}"
    return str((Path(manifest).expanduser().parent / Path(location).expanduser()).absolute())


def manifest_rows(manifest: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbered rows of a manifest as dictionaries. Raises `InputError` on a line that is none; as `read_text`."""
    name, text = redact(manifest), read_text(manifest)
    if suffix(manifest) == ".csv":
        for number, record in enumerate(csv.DictReader(StringIO(text, newline="")), 2):
            yield number, dict(record)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"manifest {name}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"manifest {name}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row
