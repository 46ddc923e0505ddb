"""Training data from files: questions and answers about images and videos, in the forms that data sets come in."""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from vococache.errors import InputError
from vococache.pipeline.training.examples import Turn
from vococache.pipeline.training.report import LeftOutRow

Kind = Literal["image", "video", "text"]
Row = dict[str, Any]

STEM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # of videos that are named by their stem
NOISE = "QA_GT_caption_based_noisy"  # ends some of Video-ChatGPT's answers, on a line of its own
MEDIA_TAG = re.compile(r"\s*<(?:image|video)>\s*")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTION_REQUESTS = (
    "What does the video show?",
    "Describe the video in one sentence.",
    "What happens in the video?",
    "Give a short caption for the video.",
)
DETAILED_REQUESTS = (
    "Describe the video in detail.",
    "What happens in the video, from its beginning to its end?",
    "Give a detailed description of the video.",
    "Tell what the video shows, with its details.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """(question, answer) turns about images, about one video (a file, a folder of frames, its frames), or none."""

    id: str
    media: tuple[Path, ...]
    kind: Kind
    turns: tuple[Turn, ...]


def read_conversations(path: Path, media_folder: Path) -> tuple[list[Conversation], list[LeftOutRow]]:
    """The rows of a data file, in order, and those that are odd; media lie under `media_folder` and may be missing.

    A JSON list, JSON lines or CSV; a row's form shows in its fields:
    - LLaVA: `{id, image | video, conversations: [{from, value}, ...]}`, without media where it is text. `image` may be
      a list of pictures, `video` a file, its stem, a folder of frames or a list of them.
    - OpenAI: `{messages: [{role, content}, ...]}`, with `image`, `images`, `video` or `videos`, or the files of the
      messages' parts.
    - VideoChat2: `{image | video, QA: [{i, q, a}, ...]}`.
    - Video-ChatGPT: `{q, a, video_id}`; the file is `video_id` with one of `STEM_SUFFIXES`, with or without `v_`.
    - ShareGPT4Video: `{video_path, captions: [{idx, content}, ...]}`; of the captions that of the whole video, whose
      `idx` is -1. The file is `video_path`, or lies beside the data under its name.
    - WebVid: `videoid, name, page_dir`; `{page_dir}/{videoid}.mp4` or `{videoid}.mp4`, and `name` is its caption.
    - `{image | video, question, answer}`.

    Of turns, those of a system, answers before the first question and a question without an answer are left out.
    Raises `InputError` for a file that cannot be read or of which every row is odd.
    """
    if not media_folder.is_dir():
        raise InputError(f"expected a folder of images and videos, found none at {media_folder}")
    conversations, odd = [], []
    for number, row in enumerate(_rows(path), 1):
        name = f"{path.name}:{number}"
        try:
            conversations.append(_conversation(row, name, media_folder))
        except InputError as error:
            odd.append(LeftOutRow(number, name, "", "odd", str(error)))
    if not conversations and odd:
        raise InputError(f"{path}: none of {len(odd)} rows can be read; row 1: {odd[0].reason}")
    if not conversations:
        raise InputError(f"{path} holds no row: expected a JSON list, JSON lines or CSV with a header")
    return conversations, odd


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a file, of whatever type they are; what the file is shows in its first character."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    first = text.lstrip()[:1]
    if first == "[":
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}") from None
    elif first == "{":
        lines = (line for line in text.split("\n") if line.strip())  # splitlines would cut at U+2028 as well
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield line
    else:
        try:
            yield from csv.DictReader(io.StringIO(text, newline=""))
        except csv.Error as error:
            raise InputError(f"{path}: neither a JSON list nor JSON lines, nor CSV: {error}") from None


def _conversation(row: Any, name: str, folder: Path) -> Conversation:
    """One row; `name` is its id where it has none of its own."""
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    for fields, read in FORMS.items():
        if all(field in row for field in fields):
            return read(row, name, folder)
    expected = "; ".join(", ".join(fields) for fields in FORMS)
    raise InputError(f"expected the fields of one of ({expected}), found {', '.join(map(str, row)):.100}")


def _llava(row: Row, name: str, folder: Path) -> Conversation:
    turns = [(_speaker(turn, "from"), _text(turn, "value")) for turn in _list(row, "conversations")]
    return _told(row, name, turns, *_media(row, folder))


def _openai(row: Row, name: str, folder: Path) -> Conversation:
    turns, found = [], []
    for message in _list(row, "messages"):
        speaker, content = _speaker(message, "role"), message.get("content")
        if isinstance(content, list):
            texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            found += [medium for part in content if (medium := _part_medium(part))]
            turns.append((speaker, "\n".join(texts)))
        else:
            turns.append((speaker, _text(message, "content")))
    if found and not any(_given(row, field) for field in ("image", "images", "video", "videos")):
        row = row | {kind: [value for own, value in found if own == kind] for kind in ("image", "video")}
    return _told(row, name, turns, *_media(row, folder))


def _part_medium(part: Any) -> tuple[Kind, str] | None:
    """The file of a message's part: `{type: image, image: FILE}`, `{type: image_url, image_url: {url: FILE}}`."""
    if not isinstance(part, dict) or part.get("type") in ("text", None):
        return None
    kind: Kind = "video" if str(part["type"]).startswith("video") else "image"
    value = part.get(str(part["type"]), part.get("path"))
    value = value.get("url") if isinstance(value, dict) else value
    if not isinstance(value, str) or value.startswith(("http:", "https:", "data:")):
        raise InputError(f"expected a file in a part of type {part['type']!r:.30}")
    return kind, value


def _videochat2(row: Row, name: str, folder: Path) -> Conversation:
    if _given(row, "start") and _given(row, "end"):
        raise InputError("expected a whole video, found a part of one (start, end): cut it into a file of its own")
    turns = []
    for entry in _list(row, "QA"):
        instruction = _text(entry, "i") if _given(entry, "i") else ""
        question = _text(entry, "q") if _given(entry, "q") else ""
        turns += [("user", f"{instruction}\n{question}".strip()), ("assistant", _text(entry, "a"))]
    return _told(row, name, turns, *_media(row, folder))


def _video_chatgpt(row: Row, name: str, folder: Path) -> Conversation:
    stem = _text(row, "video_id")
    other = stem.removeprefix("v_") if stem.startswith("v_") else f"v_{stem}"
    medium = _first([folder / f"{stem}{suffix}" for stem in (stem, other) for suffix in STEM_SUFFIXES])
    answer = _text(row, "a").removesuffix(NOISE).rstrip()
    return Conversation(name, (medium,), "video", ((_text(row, "q"), answer),))


def _sharegpt4video(row: Row, name: str, folder: Path) -> Conversation:
    captions = [_text(entry, "content") for entry in _list(row, "captions") if _text(entry, "idx") == "-1"]
    if len(captions) != 1:
        raise InputError(f"expected one caption of the whole video (idx -1), found {len(captions)}")
    path = Path(_text(row, "video_path"))
    return _captioned(path.stem, _first([folder / path, folder / path.name]), DETAILED_REQUESTS, captions[0])


def _webvid(row: Row, name: str, folder: Path) -> Conversation:
    video = _text(row, "videoid")
    medium = _first([folder / _text(row, "page_dir") / f"{video}.mp4", folder / f"{video}.mp4"])
    return _captioned(video, medium, CAPTION_REQUESTS, _text(row, "name"))


def _captioned(video: str, medium: Path, requests: tuple[str, ...], caption: str) -> Conversation:
    """One of the `requests`, the same in every run, and a video's caption."""
    request = requests[zlib.crc32(video.encode()) % len(requests)]
    return Conversation(video, (medium,), "video", ((request, caption),))


def _plain(row: Row, name: str, folder: Path) -> Conversation:
    media, kind = _media(row, folder)
    return Conversation(name, media, kind, ((_text(row, "question"), _text(row, "answer")),))


# The fields by which each form is known.
FORMS: dict[tuple[str, ...], Callable[[Row, str, Path], Conversation]] = {
    ("conversations",): _llava,
    ("messages",): _openai,
    ("QA",): _videochat2,
    ("q", "a", "video_id"): _video_chatgpt,
    ("video_path", "captions"): _sharegpt4video,
    ("videoid", "name", "page_dir"): _webvid,
    ("question", "answer"): _plain,
}


def _told(row: Row, name: str, said: list[tuple[str, str]], media: tuple[Path, ...], kind: Kind) -> Conversation:
    """Turns by (speaker, text) as pairs; those that one speaker says in a row are one."""
    spoken = [(speaker, text) for speaker, text in said if speaker != "system"]
    merged = [
        (speaker, "\n".join(text for _, text in turns)) for speaker, turns in groupby(spoken, lambda turn: turn[0])
    ]
    if merged and merged[0][0] == "assistant":
        del merged[0]
    texts = [text for _, text in merged]
    if kind != "text":  # media stand in front of the whole text, wherever a row names them
        texts = [MEDIA_TAG.sub(lambda tag: "\n" if "\n" in tag[0] else " ", text).strip() for text in texts]
    turns = tuple(zip(texts[::2], texts[1::2], strict=False))
    if not turns:
        raise InputError("expected a question and an answer behind it")
    own = row.get("id")
    return Conversation(name if own is None else str(own), media, kind, turns)


def _speaker(turn: Any, field: str) -> str:
    if not isinstance(turn, dict):
        raise InputError(f"expected turns with {field!r}, found {type(turn).__name__}")
    source = str(turn.get(field))
    if source not in SPEAKERS:
        raise InputError(f"expected a turn of one of {', '.join(SPEAKERS)}, found {source!r:.30}")
    return SPEAKERS[source]


def _media(row: Row, folder: Path) -> tuple[tuple[Path, ...], Kind]:
    """The files that a row names, relative to `folder`, and what they are."""
    named = {kind: _names(row, kind) or _names(row, f"{kind}s") for kind in ("image", "video")}
    if named["image"] and named["video"]:
        raise InputError("expected one of image and video, found both")
    if named["image"]:
        return tuple(folder / name for name in named["image"]), "image"
    if len(named["video"]) == 1:
        return (_video(folder / named["video"][0]),), "video"
    if any(name.lower().endswith(STEM_SUFFIXES) for name in named["video"]):
        raise InputError("expected one video, found several")
    return tuple(folder / name for name in named["video"]), "video" if named["video"] else "text"


def _names(row: Row, field: str) -> list[str]:
    """The file names in a field that holds one, a list of them, or nothing."""
    if not _given(row, field):
        return []
    value = row[field]
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"expected a file's name, or a list of them, in {field!r}")
    return [name.strip() for name in names]


def _video(path: Path) -> Path:
    """A video, or a folder of its frames; where the name has no suffix, with that of the file that is there."""
    if path.suffix.lower() in STEM_SUFFIXES:
        return path
    return _first([path, *(path.with_name(f"{path.name}{suffix}") for suffix in STEM_SUFFIXES)])


def _given(row: Row, field: str) -> bool:
    return row.get(field) not in (None, "", [])


def _list(row: Row, field: str) -> list[Any]:
    value = row[field]
    if not isinstance(value, list):
        raise InputError(f"expected a list in {field!r}, found {type(value).__name__}")
    return value


def _text(row: Any, field: str) -> str:
    """A field's text; a number is as good as its letters."""
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(f"expected text in {field!r}, found {type(value).__name__}")
    return value.strip()


def _first(candidates: list[Path]) -> Path:
    """The first that is there; the first of all where none is."""
    return next((path for path in candidates if path.exists()), candidates[0])
