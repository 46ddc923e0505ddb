"""Training data from files: questions and answers about images and videos, in the forms that data sets come in."""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from vococache.errors import InputError
from vococache.pipeline.training.examples import Turn

Kind = Literal["image", "video", "text"]
Row = dict[str, Any]

STEM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # of videos that are named by their stem
NOISE = "QA_GT_caption_based_noisy"  # ends some of Video-ChatGPT's answers, on a line of its own
MEDIA_TAG = re.compile(r"^<(?:image|video)>|<(?:image|video)>$")
CAPTION_REQUESTS = (
    "What does the video show?",
    "Describe the video in one sentence.",
    "What happens in the video?",
    "Give a short caption for the video.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """(question, answer) turns about one image or video file, or about none."""

    id: str
    medium: Path | None
    kind: Kind
    turns: tuple[Turn, ...]


def read_conversations(path: Path, media_folder: Path) -> list[Conversation]:
    """The rows of a data file, in order; their media lie under `media_folder` and may be missing.

    A JSON list, JSON lines or CSV; a row's form shows in its fields:
    - LLaVA: `{id, image | video, conversations: [{from: human | gpt, value}, ...]}`, without media where it is text.
    - Video-ChatGPT: `{q, a, video_id}`; the file is `video_id` with one of `STEM_SUFFIXES`, with or without `v_`.
    - WebVid: `videoid, name, page_dir`; `{page_dir}/{videoid}.mp4` or `{videoid}.mp4`, and `name` is its caption.
    - `{image | video, question, answer}`.

    Raises `InputError` for a file that cannot be read or holds a row of another form.
    """
    if not media_folder.is_dir():
        raise InputError(f"expected a folder of images and videos, found none at {media_folder}")
    conversations = []
    for number, row in enumerate(_rows(path), 1):
        try:
            conversations.append(_conversation(row, f"{path.name}:{number}", media_folder))
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from None
    if not conversations:
        raise InputError(f"{path} holds no row: expected a JSON list, JSON lines or CSV with a header")
    return conversations


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a file, of whatever type they are; what the file is shows in its first character."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    first = text.lstrip()[:1]
    if first == "[":
        yield from _parsed(text, str(path))
    elif first == "{":
        lines = (line for line in text.split("\n") if line.strip())  # splitlines would cut at U+2028 as well
        for number, line in enumerate(lines, 1):
            yield _parsed(line, f"{path}, row {number}")
    else:
        try:
            yield from csv.DictReader(io.StringIO(text, newline=""))
        except csv.Error as error:
            raise InputError(f"{path}: neither a JSON list nor JSON lines, nor CSV: {error}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None


def _conversation(row: Any, name: str, folder: Path) -> Conversation:
    """One row; `name` is its id where it has none of its own."""
    if not isinstance(row, dict):
        raise InputError(f"expected an object, found {type(row).__name__}")
    for fields, read in FORMS.items():
        if all(field in row for field in fields):
            return read(row, name, folder)
    expected = "; ".join(", ".join(fields) for fields in FORMS)
    raise InputError(f"expected the fields of one of ({expected}), found {', '.join(map(str, row)):.200}")


def _llava(row: Row, name: str, folder: Path) -> Conversation:
    said = row["conversations"]
    if not isinstance(said, list) or not said or len(said) % 2:
        found = f"{len(said)} turns" if isinstance(said, list) else type(said).__name__
        raise InputError(f"expected pairs of question and answer in 'conversations', found {found}")
    values: list[str] = []
    for number, (turn, speaker) in enumerate(zip(said, cycle(("human", "gpt")), strict=False), 1):
        source = turn.get("from") if isinstance(turn, dict) else turn
        if source != speaker:
            raise InputError(f"turn {number}: expected one from {speaker!r}, found {source!r:.50}")
        values.append(_text(turn, "value"))
    medium, kind = _medium(row, folder)
    if kind != "text":
        values[0] = MEDIA_TAG.sub("", values[0], count=1).strip()
    own = row.get("id")
    turns = tuple(zip(values[::2], values[1::2], strict=True))
    return Conversation(name if own is None else str(own), medium, kind, turns)


def _video_chatgpt(row: Row, name: str, folder: Path) -> Conversation:
    stem = _text(row, "video_id")
    other = stem.removeprefix("v_") if stem.startswith("v_") else f"v_{stem}"
    medium = _first_file([folder / f"{stem}{suffix}" for stem in (stem, other) for suffix in STEM_SUFFIXES])
    answer = _text(row, "a").removesuffix(NOISE).rstrip()
    return Conversation(name, medium, "video", ((_text(row, "q"), answer),))


def _webvid(row: Row, name: str, folder: Path) -> Conversation:
    video = _text(row, "videoid")
    medium = _first_file([folder / _text(row, "page_dir") / f"{video}.mp4", folder / f"{video}.mp4"])
    request = CAPTION_REQUESTS[zlib.crc32(video.encode()) % len(CAPTION_REQUESTS)]
    return Conversation(video, medium, "video", ((request, _text(row, "name")),))


def _plain(row: Row, name: str, folder: Path) -> Conversation:
    medium, kind = _medium(row, folder)
    return Conversation(name, medium, kind, ((_text(row, "question"), _text(row, "answer")),))


# The fields by which each form is known.
FORMS: dict[tuple[str, ...], Callable[[Row, str, Path], Conversation]] = {
    ("conversations",): _llava,
    ("q", "a", "video_id"): _video_chatgpt,
    ("videoid", "name", "page_dir"): _webvid,
    ("question", "answer"): _plain,
}


def _medium(row: Row, folder: Path) -> tuple[Path | None, Kind]:
    """The file that a row names, relative to `folder`, and what it is."""
    image, video = (row.get(kind) is not None for kind in ("image", "video"))
    if image and video:
        raise InputError("expected one of image and video, found both")
    if image:
        return folder / _text(row, "image"), "image"
    if video:
        return folder / _text(row, "video"), "video"
    return None, "text"


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"expected text in {field!r}, found {type(value).__name__}")
    return value.strip()


def _first_file(candidates: list[Path]) -> Path:
    """The first that is there; the first of all where none is."""
    return next((path for path in candidates if path.is_file()), candidates[0])
