"""Synthetic data sets in the file layouts of video question-answering benchmarks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_letters, digits
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.synthetic.questions import Question, questions
from vococache.pipeline.synthetic.render import write_clip
from vococache.pipeline.synthetic.scene import COLOURS, MEETINGS, Scene, split_scenes
from vococache.pipeline.synthetic.template import NUMBERS

VIDEOS = "videos"  # the folder of the video files, beside the annotations
# The numbers of the real data sets' videos by split; a split of another name counts as the last.
MSVD_NUMBERS = {"train": range(1, 1201), "val": range(1201, 1301), "test": range(1301, 1971)}
MSRVTT_NUMBERS = {"train": range(6513), "val": range(6513, 7010), "test": range(7010, 10_000)}
# ActivityNet-QA's types; yes and no, colours and numbers are told by the answer.
MOTION, SPATIAL, TEMPORAL, YES_NO, COLOUR, OBJECT, LOCATION, NUMBER, OTHER = range(9)
ACTIVITYNET_TYPES = {
    "motion": MOTION, "activity": MOTION, "change": MOTION, "interaction": MOTION, "relation": SPATIAL,
    "order": TEMPORAL, "shape": OBJECT, "position": LOCATION,
}  # fmt: skip
YOUTUBE_NAMES = ascii_letters + digits + "_-"


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a data set: its place in it, what it shows, and what is asked about it."""

    index: int
    name: str
    scene: Scene
    questions: list[Question]

    @property
    def youtube(self) -> str:
        """A name of 11 characters such as YouTube gives; at least every fourth begins with "-", as real ones may."""
        name = "".join(Random(f"{self.scene.seed} name").choices(YOUTUBE_NAMES, k=11))
        return "-" + name[1:] if self.index % 4 == 0 else name


def write_dataset(layout: str, folder: Path, *, split: str, clips: int, asked: int, seed: int) -> Path:
    """Write a split with `clips` clips and up to `asked` questions about each; returns its (first) annotation file.

    `layout`: one of `LAYOUTS`. Annotations come into `folder`, videos into its folder `videos`. The same split and
    seed make the same data set; a split whose name begins with "compositional" holds compositional scenes.
    Raises `InputError` where the layout has no numbers for so many videos.
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    (folder / VIDEOS).mkdir(parents=True, exist_ok=True)
    made = [
        Clip(index, name, scene, questions(scene, asked, Random(f"{scene.seed} questions")))
        for index, (name, scene) in enumerate(split_scenes(f"{split}-{seed}", clips).items())
    ]
    return LAYOUTS[layout](folder, split, made)


def _write_msvd(folder: Path, split: str, clips: list[Clip]) -> Path:
    """`{split}_qa.json`, videos `vid{N}.avi`."""
    return _write_numbered(folder, split, _number(split, clips, MSVD_NUMBERS), "vid{}.avi")


def _write_msvd_youtube(folder: Path, split: str, clips: list[Clip]) -> Path:
    """As MSVD-QA, with the videos under their YouTube names, which `youtube_mapping.txt` maps to `vid{N}`."""
    numbered = _number(split, clips, MSVD_NUMBERS)
    path = _write_numbered(folder, split, numbered, "vid{}.avi")
    mapping = folder / "youtube_mapping.txt"  # one for all splits
    lines = set(mapping.read_text().splitlines()) if mapping.exists() else set()
    for number, clip in numbered.items():
        name = f"{clip.youtube}_{number % 60}_{number % 60 + 4}"  # the seconds of the video that the clip was cut from
        (folder / VIDEOS / f"vid{number}.avi").replace(folder / VIDEOS / f"{name}.avi")
        lines.add(f"{name} vid{number}")
    mapping.write_text("\n".join(sorted(lines)) + "\n")
    return path


def _write_msrvtt(folder: Path, split: str, clips: list[Clip]) -> Path:
    """`{split}_qa.json` with a category of each video, videos `video{N}.mp4`."""
    return _write_numbered(folder, split, _number(split, clips, MSRVTT_NUMBERS), "video{}.mp4", categories=True)


def _write_numbered(folder: Path, split: str, clips: dict[int, Clip], file: str, *, categories: bool = False) -> Path:
    """Rows {question, answer, video_id, id} with whole-number ids; `categories`: and category_id."""
    rows: list[dict[str, Any]] = []
    for number, clip in clips.items():
        write_clip(clip.scene, folder / VIDEOS / file.format(number))
        category = {"category_id": [*MEETINGS].index(clip.scene.event)} if categories else {}
        for asked in clip.questions:
            row = {"question": asked.text, "answer": asked.answer, "video_id": number, "id": len(rows)}
            rows.append(row | category)
    return _write_json(folder / f"{split}_qa.json", rows)


def _number(split: str, clips: list[Clip], numbers: dict[str, range]) -> dict[int, Clip]:
    """The clips by the numbers of the split's videos."""
    known = numbers.get(split, numbers["test"])
    if len(clips) > len(known):
        raise InputError(f"the layout numbers at most {len(known)} videos of split {split!r}, asked for {len(clips)}")
    return dict(zip(known, clips, strict=False))


def _write_activitynet(folder: Path, split: str, clips: list[Clip]) -> Path:
    """`{split}_q.json` and `{split}_a.json`, which only `question_id` joins; videos `v_{video_name}.mp4`."""
    asked, answers = [], []
    for clip in clips:
        write_clip(clip.scene, folder / VIDEOS / f"v_{clip.youtube}.mp4")
        for number, question in enumerate(clip.questions):
            key = f"v_{clip.youtube}_{number}"
            asked.append({"video_name": clip.youtube, "question": question.text, "question_id": key})
            answers.append({"answer": question.answer, "type": activitynet_type(question), "question_id": key})
    # In another order, so that whoever joins the files by position finds out.
    Random(split).shuffle(answers)
    _write_json(folder / f"{split}_a.json", answers)
    return _write_json(folder / f"{split}_q.json", asked)


def activitynet_type(question: Question) -> int:
    """ActivityNet-QA's type, 0 to 8, of a question."""
    if question.answer in ("yes", "no"):
        return YES_NO
    kind = ACTIVITYNET_TYPES.get(question.type, OTHER)
    if kind in (SPATIAL, TEMPORAL):
        return kind
    if question.answer in COLOURS:
        return COLOUR
    return NUMBER if question.answer in NUMBERS else kind


def _write_jsonl(folder: Path, split: str, clips: list[Clip]) -> Path:
    """`{split}.jsonl` with lines {video, question, answer, type}; `video` is the path from the file's folder."""
    lines = []
    for clip in clips:
        path = write_clip(clip.scene, folder / VIDEOS / f"{clip.name}.mp4")
        for asked in clip.questions:
            row = {"video": f"{VIDEOS}/{path.name}", "question": asked.text, "answer": asked.answer, "type": asked.type}
            lines.append(json.dumps(row) + "\n")
    annotations = folder / f"{split}.jsonl"
    annotations.write_text("".join(lines))
    return annotations


def _write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path


LAYOUTS: dict[str, Callable[[Path, str, list[Clip]], Path]] = {
    "msvd-qa": _write_msvd,
    "msvd-qa-youtube": _write_msvd_youtube,
    "msrvtt-qa": _write_msrvtt,
    "activitynet-qa": _write_activitynet,
    "jsonl": _write_jsonl,
}
