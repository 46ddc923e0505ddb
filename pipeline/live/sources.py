"""What is to be watched: sources as arguments, or in a YAML file; their names, without what is secret in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from vococache.errors import InputError
from vococache.pipeline.live.clock import seconds
from vococache.storage.format import safe_key

YAML = (".yaml", ".yml")
MOST_NAME = 150  # bytes of an id, behind which the hour stands
SCHEMES = ("http", "https", "udp", "rtp", "rtsp", "rtsps", "srt")
_NAMED = re.compile(r"([\w-][\w .-]*)=(.+)", re.DOTALL)
CHANGE = "change"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A question that is asked again and again: every `every` seconds, about the `over` seconds before.

    `when`: tell only where the answer becomes this one, or "change": where it is another than before.
    """

    question: str
    every: float = 10.0
    over: float = 30.0
    when: str | None = None

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InputError("a standing question is empty: expected some text")


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchSource:
    """A live source. `fps`: None for the default; `keep`: seconds after which parts are dropped, None for never.

    `whole`: so many of its newest segments are kept whole.
    """

    id: str
    source: str = field(repr=False)  # may hold a password
    fps: float | None = None
    keep: float | None = None
    ask: tuple[Standing, ...] = ()
    whole: int = 0

    def __post_init__(self) -> None:
        scheme = urlsplit(self.source).scheme if "://" in self.source else ""
        if scheme and scheme not in SCHEMES:
            raise InputError(f"source {self.id!r} is of {scheme}://: expected a path, - or one of {', '.join(SCHEMES)}")
        if not scheme and self.source != "-" and not Path(self.source).exists():
            raise InputError(f"source {public(self.source)}: no such file or device")
        if self.id != safe_key(self.id) or len(self.id.encode()) > MOST_NAME:
            raise InputError(f"id {self.id!r}: expected letters, digits, spaces, '-', '_' or '.', at most {MOST_NAME}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"source {self.id!r}: expected fps above 0 and at most 1000, found {self.fps:g}")
        if self.whole < 0:
            raise InputError(f"source {self.id!r}: expected 0 or more segments to keep whole, found {self.whole}")

    @property
    def is_paced(self) -> bool:
        """Does it wait for us, as a file and a pipe do? Others go on."""
        return "://" not in self.source and not self.source.startswith("/dev/video")

    @property
    def name(self) -> str:
        """Where it is, without what is secret."""
        return public(self.source)


def find_sources(
    named: Sequence[str], ask: Sequence[Standing] = (), keep: float | None = None, whole: int = 0
) -> list[WatchSource]:
    """Sources as `SOURCE`, `ID=SOURCE`, or the name of a YAML file. The others are of those that say nothing of it.

    Raises `InputError`.
    """
    found: list[WatchSource] = []
    for text in named:
        if text.endswith(YAML) and "://" not in text:
            found += _read(Path(text), tuple(ask), keep, whole)
            continue
        match = _NAMED.fullmatch(text)
        name, source = (match[1], match[2]) if match and not Path(text).exists() else (_id_of(text), text)
        found.append(WatchSource(id=name, source=_place(source), keep=keep, ask=tuple(ask), whole=whole))
    ids = [source.id for source in found]
    for name in ids:
        if ids.count(name) > 1:
            raise InputError(f"two sources are called {name!r}: name them, as in door=rtsp://...")
    if sum(source.source == "-" for source in found) > 1:
        raise InputError("standard input (-) can be watched once")
    return found


def public(source: str) -> str:
    """A source without user, password and query; and a path without what looks like `name=value`."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    path = parts.path
    if "=" in path or "@" in path:
        path = re.sub(r"/[^/]*[=@].*", "/...", path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


def _place(source: str) -> str:
    return source if "://" in source or source == "-" else str(Path(source).expanduser().absolute())


def _id_of(source: str) -> str:
    """The name of a source that was given none."""
    if source == "-":
        return "stdin"
    if "://" not in source:
        return safe_key(PurePath(source).stem)
    parts = urlsplit(public(source))
    stem = PurePath(parts.path).stem if "..." not in parts.path else ""
    host = (parts.hostname or parts.scheme).replace(":", "-")
    return safe_key("-".join(filter(None, [host, str(parts.port or ""), stem])))


def _read(path: Path, ask: tuple[Standing, ...], keep: float | None, whole: int) -> list[WatchSource]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"sources {path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data) or not data:
        raise InputError(f"sources {path}: expected a list of {{id, source, fps, keep, whole, ask}}")
    return [_source(row, f"{path}: source {number}", ask, keep, whole) for number, row in enumerate(data, 1)]


def _source(row: dict[str, Any], where: str, ask: tuple[Standing, ...], keep: float | None, whole: int) -> WatchSource:
    kinds = {"id": str, "source": str, "fps": (int, float), "keep": (str, int), "whole": int, "ask": (str, list)}
    _check(row, kinds, where)
    if "source" not in row:
        raise InputError(f"{where}: expected a source")
    asked = row.get("ask", [])
    standing = tuple(
        _standing({"question": each} if isinstance(each, str) else each, f"{where}: ask")
        for each in ([asked] if isinstance(asked, str) else asked)
    )
    source = _place(row["source"])
    return WatchSource(
        id=row.get("id") or _id_of(source), source=source, fps=row.get("fps"), ask=standing or ask,
        keep=seconds(row["keep"], f"{where}: keep") if "keep" in row else keep, whole=row.get("whole", whole),
    )  # fmt: skip


def _standing(row: Any, where: str) -> Standing:
    kinds = {"question": str, "every": (str, int, float), "over": (str, int, float), "when": (str, bool)}
    _check(row, kinds, where)
    if "question" not in row:
        raise InputError(f"{where}: expected a question")
    spans = {name: seconds(row[name], f"{where}: {name}") for name in ("every", "over") if name in row}
    when = row.get("when")
    if isinstance(when, bool):  # YAML's yes
        when = "yes" if when else "no"
    return Standing(question=row["question"], when=when, **spans)


def _check(row: Any, kinds: dict[str, Any], where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected {{{', '.join(kinds)}}}, found {type(row).__name__}")
    for name, value in row.items():
        if name not in kinds:
            raise InputError(f"{where}: {name!r} is not known: expected {', '.join(kinds)}")
        if not isinstance(value, kinds[name]):
            raise InputError(f"{where}: {name} is {str(value)[:80]!r}, of another kind than expected")
