"""What the user named becomes a list of videos with ids: files, folders, globs, URLs, manifests."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.ingest.manifest import is_manifest, read_manifest
from vococache.storage import safe_key
from vococache.storage.objects import describe, redact
from vococache.workers.video.source import HTTP, SourceStat, file_system, is_url, listed_stat, without_query

# What a folder is searched for. A file that is named itself is taken whatever its suffix.
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf",
    ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg",
    ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".vro",
    ".webm", ".wmv", ".wtv", ".y4m",
))  # fmt: skip
# Folders in which systems keep what they threw away, or made smaller.
SYSTEM_FOLDERS = frozenset((
    "$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "__macosx", "lost+found", "recycler",
    "system volume information",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """One video: its id in the store, the absolute path or URL that it is read from.

    `stat`: what a listing said of it. `metadata`: what a manifest says.
    """

    video: str
    location: str
    stat: SourceStat | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


class LeftOutFiles(Counter[str]):
    """What folders and manifests hold that is no video to us: how many, by kind."""

    def describe(self) -> list[str]:
        """A line for a person, if there is anything to tell."""
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in sorted(self.items(), key=lambda item: (-item[1], item[0]))
        )
        return [f"left out: {kinds}"] if kinds else []


def find_sources(inputs: Sequence[str], left_out: LeftOutFiles | None = None) -> list[Source]:
    """The videos that `inputs` name, sorted by id, each once; `left_out` counts what was met besides.

    A video's id is its file stem; where two collide, the path relative to what they have in common. Manifests
    may name ids themselves. Raises `InputError` for an input that does not exist or holds no video.
    """
    if not inputs:
        raise InputError("no videos: expected files, folders, globs, URLs or manifests")
    left_out = LeftOutFiles() if left_out is None else left_out
    named: dict[str, str] = {}
    found: list[str] = []
    stats: dict[str, SourceStat] = {}
    about: dict[str, dict[str, Any]] = {}  # by id where a manifest gives one, else by location
    for text in inputs:
        if not is_manifest(text):
            found.extend(expand(text, left_out, stats))
            continue
        manifest = read_manifest(text)
        left_out.update(f"manifest field {name!r:.80}" for name in manifest.extra)
        for location, video, metadata in manifest.videos:
            about[location if video is None else safe_key(video)] = metadata
            if video is None:
                found.append(location)
            elif named.setdefault(safe_key(video), location) != location:
                raise InputError(f"manifest {text}: id {video!r} stands for two videos; expected distinct ids")
    given = set(named.values())
    unnamed = [location for location in dict.fromkeys(found) if location not in given]
    for video, location in give_ids(unnamed).items():
        claim(named, video, location)
    return [
        Source(video, location, stats.get(location), about.get(video) or about.get(location) or {})
        for video, location in sorted(named.items())
    ]


def expand(text: str, left_out: LeftOutFiles, stats: dict[str, SourceStat]) -> Iterator[str]:
    """The videos that one input names, as absolute paths or URLs; what a listing says of them goes into `stats`.

    Raises `InputError` when there are none.
    """
    if is_url(text):
        yield from expand_url(text, left_out, stats)
        return
    try:
        path = Path(text).expanduser()
        exists = bool(text) and os.path.lexists(path)
    except (RuntimeError, ValueError) as error:  # ~nobody, a zero byte
        raise InputError(f"{text!r}: {error}: expected a video file, a folder, a glob, a URL or a manifest") from None
    if exists and path.is_dir():
        inside = sorted(search(path, left_out))
        if not inside:
            raise InputError(f"folder {text} holds no video file ({', '.join(sorted(VIDEO_SUFFIXES))})")
        yield from inside
    elif exists:
        yield str(path.absolute())
    elif glob.has_magic(text):
        matches = sorted(match_files(path.absolute()))
        if not matches:
            raise InputError(f"glob {text} matches no file")
        yield from matches
    else:
        name = text if text and text.isprintable() else repr(text)
        raise InputError(f"{name} does not exist: expected a video file, a folder, a glob, a URL or a manifest")


def match_files(pattern: Path) -> Iterator[str]:
    """The files that an absolute glob matches; `**` does not follow links, which may lead in circles."""
    pattern = pattern / "*" if pattern.name == "**" else pattern
    try:
        for match in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))):
            if os.path.isfile(match) and not any(map(is_system, {*match.parts} - {*pattern.parts})):  # noqa: PTH113 (raises nothing)
                yield str(match)
    except ValueError as error:  # of `**`
        raise InputError(f"glob {pattern}: {error}") from None


def search(top: Path, left_out: LeftOutFiles) -> Iterator[str]:
    """The videos in a folder and in all beneath it, as absolute paths; links are followed, each folder is seen once.

    Folders that lie there themselves come before those that links lead to, so that a video keeps its own path.
    """
    seen: set[tuple[int, int]] = set()
    folders, linked = [top], list[Path]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out["folders that cannot be read"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if is_system(entry.name):
                left_out["hidden or system entries"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 (a link to itself raises nothing)
                linked.append(Path(entry.path))
            elif is_video(entry.name):
                yield str(Path(entry.path).absolute())
            else:
                left_out[kind_of(entry.name)] += 1


def expand_url(text: str, left_out: LeftOutFiles, stats: dict[str, SourceStat]) -> Iterator[str]:
    """The videos under an fsspec URL: one object, a glob, or everything below a folder."""
    try:
        filesystem, path = file_system(text)
        name = without_query(path)
        is_one = is_video(name) or (name.startswith(HTTP) and not name.endswith("/"))
        if (is_one and not glob.has_magic(name)) or filesystem.isfile(path):
            listed: dict[str, Any] = {path: {}}
        elif glob.has_magic(path) and "?" not in path:
            listed = filesystem.glob(path, detail=True)
        else:
            entries = filesystem.find(path, detail=True)
            listed = {name: entries[name] for name in _videos_below(path, entries, left_out)}
    except Exception as error:  # what fsspec's file systems raise has no common ancestor
        raise InputError(f"{redact(text)} cannot be listed: {describe(error)}") from None
    if not listed:
        raise InputError(f"{redact(text)} holds no video file")
    for name in sorted(listed):
        location = filesystem.unstrip_protocol(name)
        if (stat := listed_stat(listed[name])) is not None:
            stats[location] = stat
        yield location


def _videos_below(top: str, entries: Iterable[str], left_out: LeftOutFiles) -> Iterator[str]:
    for entry in entries:
        names = entry.removeprefix(top).strip("/").split("/")
        if any(map(is_system, names)):
            left_out["hidden or system entries"] += 1
        elif is_video(entry):
            yield entry
        else:
            left_out[kind_of(entry)] += 1


def is_system(name: str) -> bool:
    """A file or folder that is hidden (such as macOS's `._x.mp4`), or that a system keeps for itself?"""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_video(name: str) -> bool:
    """Does the name look like a video file's? Hidden ones do not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def kind_of(name: str) -> str:
    """What a file that is left out is counted as."""
    suffix = PurePosixPath(name).suffix.lower()
    return f"{suffix} files" if suffix else "files without suffix"


def give_ids(locations: Iterable[str]) -> dict[str, str]:
    """Ids of locations: the stem where it is the only one of its name, the relative path where it is not.

    Raises `InputError` where even so two have one id.
    """
    stems = {location: PurePosixPath(without_query(location)).stem for location in locations}
    count = Counter(safe_key(stem) for stem in stems.values())
    ids: dict[str, str] = {}
    clashing = {location for location, stem in stems.items() if count[safe_key(stem)] > 1}
    common = os.path.commonprefix(sorted(clashing))  # noqa: RUF071 (of URLs too; cut at a slash in the next line)
    common = common[: common.rfind("/") + 1]
    for location, stem in stems.items():
        claim(ids, safe_key(stem if location not in clashing else location.removeprefix(common)), location)
    return ids


def claim(ids: dict[str, str], video: str, location: str) -> None:
    """Enter a location under its id. Raises `InputError` where another has it."""
    if ids.setdefault(video, location) != location:
        raise InputError(f"id {video!r} stands for {ids[video]} and {location}: name one in a manifest")
