"""Data sets of questions about videos: how their rows are read, how their videos are found, how answers are typed.

Layouts that are in use are told apart by what lies there (docs/evaluation.md lists them). Questions and answers in
two files are joined by their ids, never by position.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.ingest.manifest import manifest_rows
from vococache.pipeline.ingest.sources import is_video

MAPPING = "youtube_mapping.txt"  # of MSVD: lines "-4wsuPCjDBc_5_15 vid1"
# YouTube id, start, end. Some copies put "v_" before it, and a question's number behind it.
MSVD_CLIP = re.compile(r"(?:v_)?(.{11}_\d+_\d+)(?:_\d+)?")
ASKED_BY = ("what", "who", "how", "when", "where")


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a data set with its true answer. `video`: as annotations name it (`clip_of`). `type`: or ""."""

    id: str
    video: str
    question: str
    answer: str
    type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A declaration: `stems` are the names, best first, that the file of a video may have (without suffix).

    `type_of`: a question's type from its row. `clip_of`: the video that a row's name means. `groups`: types that are
    reported together as well.
    """

    name: str
    stems: Callable[[str, Mapping[str, str]], Sequence[str]]
    type_of: Callable[[dict[str, Any]], str]
    clip_of: Callable[[str], str] = str
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)


def by_question_word(row: dict[str, Any]) -> str:
    """The word that a question begins with, as papers on MSVD-QA and MSRVTT-QA report."""
    first = str(row["question"]).split(maxsplit=1)[0].casefold()
    return first if first in ASKED_BY else "other"


def msvd_clip(name: str) -> str:
    """A YouTube name without what some copies put around it."""
    clip = MSVD_CLIP.fullmatch(name)
    return clip[1] if clip else name


def msvd_stems(video: str, youtube: Mapping[str, str]) -> list[str]:
    """`vid{N}`, or the YouTube name that the mapping has for it; or the YouTube name itself, with or without "v_"."""
    if video.isdigit():
        return [f"vid{video}", *([youtube[f"vid{video}"]] if f"vid{video}" in youtube else []), video]
    return [video, f"v_{video}", *([youtube[video]] if video in youtube else [])]


def msrvtt_stems(video: str, _: Mapping[str, str]) -> list[str]:
    """`video{N}`."""
    return [f"video{video}", video] if video.isdigit() else [video]


def activitynet_stems(video: str, _: Mapping[str, str]) -> list[str]:
    """`v_{video_name}`, or without "v_"; one name begins with "v_" itself."""
    return [f"v_{video}", video]


ACTIVITYNET_TYPES = (
    "motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other",
)  # fmt: skip


def activitynet_type(row: dict[str, Any]) -> str:
    """The name of a type 0 to 8. Raises `InputError` for another."""
    kind = row.get("type")
    if not isinstance(kind, int) or not 0 <= kind < len(ACTIVITYNET_TYPES):
        raise InputError(f"question {row.get('question_id')!r} has type {kind!r}: expected 0 to 8")
    return ACTIVITYNET_TYPES[kind]


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(name="msvd-qa", stems=msvd_stems, type_of=by_question_word, clip_of=msvd_clip),
        DataSet(name="msrvtt-qa", stems=msrvtt_stems, type_of=by_question_word),
        DataSet(
            name="activitynet-qa",
            stems=activitynet_stems,
            type_of=activitynet_type,
            groups={"free": frozenset(ACTIVITYNET_TYPES[3:])},
        ),
        # Anybody's own: a JSONL of video, question, answer and, if they like, id and type.
        DataSet(
            name="jsonl",
            stems=lambda video, _: [Path(video).stem if is_video(video) else video],
            type_of=lambda row: str(row.get("type", "")),
        ),
    )
}


def read_items(data_set: DataSet, annotations: Path, split: str) -> list[Item]:
    """The questions of a split in the file's order, grouped by video in the order in which videos first appear.

    `annotations`: a file, or a folder that holds `{split}_qa.json`, `{split}_q.json` with `{split}_a.json`, or
    `{split}.jsonl`. Raises `InputError` for what cannot be read, joined or told apart.
    """
    path = _find(data_set, annotations, split)
    rows = list(_rows(path))
    if path.name.endswith("_q.json"):
        rows = _join(rows, path.with_name(path.name.removesuffix("_q.json") + "_a.json"))
    if not rows:
        raise InputError(f"annotations {path} hold no questions")
    groups: dict[str, list[Item]] = defaultdict(list)
    for number, row in enumerate(rows):
        item = _item(data_set, row, number, path)
        groups[item.video].append(item)
    items = [item for group in groups.values() for item in group]
    twice = [key for key, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise InputError(
            f"annotations {path}: question id {twice[0]!r} stands for several questions; expected each once"
        )
    return items


def _find(data_set: DataSet, annotations: Path, split: str) -> Path:
    """The file of a split's questions."""
    if annotations.is_file():
        return annotations
    suffixes = (".jsonl",) if data_set.name == "jsonl" else ("_qa.json", "_q.json")
    found = [path for suffix in suffixes if (path := annotations / f"{split}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(f"{split}{suffix}" for suffix in suffixes)
    if not annotations.exists():
        raise InputError(f"annotations {annotations} do not exist: expected a file, or a folder with {wanted}")
    what = "both" if found else "none"
    raise InputError(f"annotations folder {annotations} holds {what} of {wanted}: name the file itself")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines."""
    if path.suffix == ".jsonl":
        yield from (row for _, row in manifest_rows(str(path)))
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"annotations {path} cannot be read as JSON: {error}") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise InputError(f"annotations {path}: expected a list of objects")
    yield from data


def _join(questions: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Questions with the fields of their answers, by `question_id`; each has exactly one, or `InputError`."""
    answers: dict[Any, dict[str, Any]] = {}
    for row in _rows(path):
        key = row.get("question_id")
        if key in answers:
            raise InputError(f"answers {path}: question_id {key!r} is answered twice; expected each once")
        answers[key] = row
    missing = [row.get("question_id") for row in questions if row.get("question_id") not in answers]
    if missing:
        raise InputError(f"answers {path} lack question_id {missing[0]!r} and {len(missing) - 1} others")
    return [row | answers[row["question_id"]] for row in questions]


def _item(data_set: DataSet, row: dict[str, Any], number: int, path: Path) -> Item:
    """One row as an item."""
    video = next((row[name] for name in ("video_id", "video_name", "video") if name in row), None)
    texts = [row.get("question"), row.get("answer")]
    if not isinstance(video, str | int) or not all(isinstance(text, str | int | float) for text in texts):
        raise InputError(
            f"annotations {path}, row {number + 1}: expected question, answer and video_id, video_name or video; found"
            f" {sorted(map(str, row))}"
        )
    question, answer = map(str, texts)
    if not question.strip():
        raise InputError(f"annotations {path}, row {number + 1}: the question is empty")
    key = next((row[name] for name in ("question_id", "id") if name in row), number)
    return Item(
        str(key), data_set.clip_of(str(video)), question, answer, data_set.type_of(row | {"question": question})
    )


def locate(
    data_set: DataSet, videos: Iterable[str], known: Iterable[str], youtube: Mapping[str, str]
) -> dict[str, str]:
    """The stem among `known` of each of `videos` that has one. No two ever share one: the better match takes it.

    `youtube`: between YouTube names and `vid{N}`, both ways (`read_mapping`).
    """
    present = set(known)
    wanted = {video: list(data_set.stems(video, youtube)) for video in videos}
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for rank in range(max(map(len, wanted.values()), default=0)):
        for video, names in wanted.items():
            if video not in stems and rank < len(names) and names[rank] in present - taken:
                stems[video] = names[rank]
                taken.add(names[rank])
    return stems


def read_mapping(*folders: Path | None) -> dict[str, str]:
    """MSVD's mapping of names from the first of `folders` (or a parent) that has it, both ways; else nothing."""
    for folder in folders:
        for place in (folder, folder.parent) if folder is not None else ():
            path = place / MAPPING
            if path.is_file():
                pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
                if any(len(pair) != 2 for pair in pairs):
                    raise InputError(f"{path}: expected lines of two names, such as '-4wsuPCjDBc_5_15 vid1'")
                return dict(pairs) | {number: name for name, number in pairs}
    return {}


def video_files(folder: Path) -> dict[str, list[Path]]:
    """The video files below `folder` by stem."""
    if not folder.is_dir():
        raise InputError(f"videos folder {folder} does not exist")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if is_video(path.name) and not path.is_dir():
            found[path.stem].append(path)
    return found
