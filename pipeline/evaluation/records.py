"""A run's file of answers: append-only JSON lines, one a question, below a header with the run's settings.

A video's questions are written together and synced: after a kill, a torn line or a half-written video at the end is
cut off, and the video is asked again.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vococache.errors import InputError

ANSWERED, MISSING, FAILED = "answered", "missing", "failed"
ANSWERS = "answers.jsonl"
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One question: `raw` is what the model said, `prediction` the same normalised (empty where `status` is not
    "answered": the video is "missing", or it, its ingest or its answer "failed" with `error`).
    """

    id: str
    video: str
    question: str
    truth: str
    type: str
    raw: str
    prediction: str
    segments: int
    status: str
    error: str | None
    seconds: float  # of the video's questions, together


class AnswerFile:
    """Append-only answers of a run; the header is its first line."""

    def __init__(self, path: Path, settings: Settings, questions: Mapping[str, Sequence[str]]) -> None:
        """Open `path`, or go on with what is there. `questions`: of each video, the ids of its questions in order.

        Raises `InputError` where the file belongs to a run with other settings, or holds what this run does not ask.
        """
        self.path = path
        self.done: set[str] = set()
        header = json.dumps({"settings": settings}, sort_keys=True) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.read_bytes().partition(b"\n")[1]:
            self._write(header.encode(), 0)
            return
        found, records, end = read_answers(path)
        if changed := sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key)):
            first = changed[0]
            raise InputError(
                f"run {path} was begun with other settings: {first} was {found.get(first)!r}, now"
                f" {settings.get(first)!r} ({len(changed)} differ); choose another --out"
            )
        groups = by_video(records)
        for number, (video, group) in enumerate(groups.items()):
            expected = list(questions.get(video, ()))
            ids = [record.id for record, _ in group]
            if ids == expected:
                self.done.add(video)
            elif number == len(groups) - 1 and ids == expected[: len(ids)]:
                end = group[0][1]  # half a video: asked again whole
            else:
                raise InputError(
                    f"run {path}: video {video!r} has other questions than the data set; choose another --out"
                )
        self._write(b"", end)

    def commit(self, records: Iterable[Record]) -> None:
        """Append a video's records, for good."""
        lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
        self._write(lines.encode(), self.path.stat().st_size)

    def _write(self, data: bytes, start: int) -> None:
        """`data` from byte `start` on, and nothing behind it."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


Placed = tuple[Record, int]  # a record, and the byte at which its line starts


def read_answers(path: Path) -> tuple[Settings, list[Placed], int]:
    """Settings, records with their places, and the end of the last whole line. A torn last line is left out.

    Raises `InputError` for any other line that is not as it was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"answers {path} cannot be read: {error.strerror}") from None
    lines = data.split(b"\n")
    lines.pop()  # behind the last line end: torn, or nothing
    start, settings, records = 0, None, []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            if settings is None:
                settings = fields["settings"]
            else:
                records.append((Record(**fields), start))
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and settings is not None:
                break  # written, but not whole, when the machine went down
            raise InputError(
                f"answers {path}, line {number} is not as it was written: expected one JSON object"
            ) from None
        start += len(line) + 1
    if settings is None:
        raise InputError(f"answers {path} have no header: expected a file that `voco eval` wrote")
    return settings, records, start


def by_video(records: Iterable[Placed]) -> dict[str, list[Placed]]:
    """Records by video, in order."""
    groups: dict[str, list[Placed]] = {}
    for record, place in records:
        groups.setdefault(record.video, []).append((record, place))
    return groups
