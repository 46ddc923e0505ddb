"""The report of the rows that cannot be trained on.

A row is never replaced by another: the loss is over what the data hold, and what they lack has a name.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Cause = Literal["odd", "empty", "missing", "broken", "too long", "cut"]


@dataclass(frozen=True, slots=True)
class LeftOutRow:
    """A row that is not trained on, or, where it is "cut", not to its end.

    `row`: its place among its file's; `medium`: its first file, "" where text.
    """

    row: int
    id: str
    medium: str
    cause: Cause
    reason: str

    def to_line(self) -> bytes:
        """A line of JSON, shorter than 4096 bytes: several processes may append such lines to one file."""
        short = asdict(self) | {"id": self.id[:100], "medium": self.medium[-300:], "reason": self.reason[:200]}
        return json.dumps(short, ensure_ascii=False).encode(errors="replace") + b"\n"


@dataclass(frozen=True, slots=True)
class MediaReport:
    """What was left out, by cause (odd rows by reason): how many, and the reason for each file (id, where text)."""

    counts: dict[str, int]
    names: dict[str, dict[str, str]]

    @classmethod
    def of(cls, left_out: Iterable[LeftOutRow]) -> "MediaReport":
        """Each row counts once, whichever process met it in whichever epoch."""
        rows = _once(left_out)
        names: dict[str, dict[str, str]] = {}
        for item in rows:
            names.setdefault(_heading(item), {})[item.medium or item.id] = item.reason
        return cls(dict(Counter(map(_heading, rows))), names)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {cause} ({', '.join(list(self.names[cause])[:3])}{', ...' if len(self.names[cause]) > 3 else ''})"
            for cause, count in self.counts.items()
        )


def read_report(path: Path) -> MediaReport:
    """All that was appended to a `report.jsonl`, also before a run was resumed; nothing if it is absent."""
    return MediaReport.of(_lines(path))


def record(report: Path, left_out: Iterable[LeftOutRow]) -> None:
    """Append rows to a report."""
    with report.open("ab", buffering=0) as file:  # unbuffered: each line is one write
        for item in left_out:
            file.write(item.to_line())


def settle(report: Path) -> MediaReport:
    """Keep one line of each row, where several processes and epochs wrote theirs; what they say together."""
    rows = _once(_lines(report))
    if rows:
        report.write_bytes(b"".join(item.to_line() for item in rows))
    return MediaReport.of(rows)


def _heading(item: LeftOutRow) -> str:
    return f"odd, {item.reason}" if item.cause == "odd" else item.cause


def _once(left_out: Iterable[LeftOutRow]) -> list[LeftOutRow]:
    return list({(item.cause, item.row, item.id, item.medium): item for item in left_out}.values())


def _lines(path: Path) -> list[LeftOutRow]:
    return [LeftOutRow(**json.loads(line)) for line in path.read_bytes().splitlines()] if path.exists() else []
