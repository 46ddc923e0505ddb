"""A run's file of answers: append-only JSON lines, one a question, below a header with the run's settings.

A video's questions are written together and synced: after a kill, a torn line or a half-written video at the end is
dropped and asked again, as is a video that was missing or had failed.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.files import whole_file

ANSWERED, MISSING, FAILED = "answered", "missing", "failed"
ANSWERS = "answers.jsonl"
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRecord:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.read_bytes().partition(b"\n")[1]:
            self._replace(settings, [])
            return
        found, records = read_answers(path)
        if changed := sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key)):
            first = changed[0]
            raise InputError(
                f"run {path} was begun with other settings: {first} was {found.get(first)!r}, now"
                f" {settings.get(first)!r} ({len(changed)} differ); choose another --out"
            )
        groups = by_video(records)
        for number, (video, group) in enumerate(groups.items(), 1):
            expected = list(questions.get(video, ()))
            ids = [record.id for record in group]
            if ids != expected and not (number == len(groups) and ids == expected[: len(ids)]):
                raise InputError(
                    f"run {path}: video {video!r} has other questions than the data set; choose another --out"
                )
            if ids == expected and all(record.status == ANSWERED for record in group):
                self.done.add(video)
        self._replace(settings, [record for record in records if record.video in self.done])

    def commit(self, records: Iterable[AnswerRecord]) -> None:
        """Append a video's records, for good."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, settings: Settings, records: Iterable[AnswerRecord]) -> None:
        """Make the file these records, all at once."""
        with whole_file(self.path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"settings": settings}, sort_keys=True) + "\n")
            file.writelines(map(_line, records))


def _line(record: AnswerRecord) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"


def read_answers(path: Path) -> tuple[Settings, list[AnswerRecord]]:
    """Settings and records. A torn last line is left out.

    Raises `InputError` for any other line that is not as it was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"answers {path} cannot be read: {error.strerror}") from None
    lines = data.split(b"\n")
    lines.pop()  # behind the last line end: torn, or nothing
    settings, records = None, []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            if settings is None:
                settings = fields["settings"]
            else:
                records.append(AnswerRecord(**fields))
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and settings is not None:
                break  # written, but not whole, when the machine went down
            raise InputError(
                f"answers {path}, line {number} is not as it was written: expected one JSON object"
            ) from None
    if settings is None:
        raise InputError(f"answers {path} have no header: expected a file that `voco eval` wrote")
    return settings, records


def by_video(records: Iterable[AnswerRecord]) -> dict[str, list[AnswerRecord]]:
    """Records by video, in order."""
    groups: dict[str, list[AnswerRecord]] = {}
    for record in records:
        groups.setdefault(record.video, []).append(record)
    return groups
