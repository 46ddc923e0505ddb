"""Synthetic data sets in the benchmarks' layouts: rows parse, ids join, every video opens; and their command."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner

from vococache.errors import InputError
from vococache.pipeline.cli.command import cli
from vococache.pipeline.cli.synthetic import LAYOUTS as OFFERED
from vococache.pipeline.synthetic import layouts
from vococache.pipeline.synthetic.layouts import activitynet_type, write_dataset
from vococache.pipeline.synthetic.questions import Question

CLIPS, ASKED = 5, 3


def write(layout: str, folder: Path, split: str = "test") -> Any:
    return json.loads(write_dataset(layout, folder, split=split, clips=CLIPS, asked=ASKED, seed=2).read_text())


def check_videos(folder: Path, names: Iterable[str]) -> None:
    """Are these the videos of a data set, each of four seconds and of the kind that its name says?"""
    named = sorted(set(names))
    assert named == sorted(path.name for path in (folder / "videos").iterdir())
    assert len(named) == CLIPS
    for name in named:
        with av.open(str(folder / "videos" / name)) as container:
            assert ("avi" if name.endswith(".avi") else "mp4") in container.format.name
            frames = sum(1 for _ in container.decode(video=0))
            assert frames / float(container.streams.video[0].average_rate or 0) == 4.0


def test_msvd(tmp_path: Path) -> None:
    rows = write("msvd-qa", tmp_path)
    assert (tmp_path / "test_qa.json").exists()
    assert all(set(row) == {"question", "answer", "video_id", "id"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == CLIPS * ASKED
    assert all(type(row[key]) is int for row in rows for key in ("video_id", "id"))
    assert all(1301 <= row["video_id"] <= 1970 for row in rows)
    check_videos(tmp_path, (f"vid{row['video_id']}.avi" for row in rows))


def test_msvd_with_youtube_names(tmp_path: Path) -> None:
    rows = write("msvd-qa-youtube", tmp_path)
    mapping = dict(line.split()[::-1] for line in (tmp_path / "youtube_mapping.txt").read_text().splitlines())
    check_videos(tmp_path, (mapping[f"vid{row['video_id']}"] + ".avi" for row in rows))
    assert any(name.startswith("-") for name in mapping.values())
    write("msvd-qa-youtube", tmp_path, "val")
    assert len((tmp_path / "youtube_mapping.txt").read_text().splitlines()) == 2 * CLIPS, "one file for all splits"


def test_msrvtt(tmp_path: Path) -> None:
    rows = write("msrvtt-qa", tmp_path, "val")
    assert all(set(row) == {"question", "answer", "video_id", "id", "category_id"} for row in rows)
    assert all(0 <= row["category_id"] < 20 for row in rows)
    check_videos(tmp_path, (f"video{row['video_id']}.mp4" for row in rows))


def test_activitynet(tmp_path: Path) -> None:
    asked = write("activitynet-qa", tmp_path)
    answers = json.loads((tmp_path / "test_a.json").read_text())
    assert all(set(row) == {"video_name", "question", "question_id"} for row in asked)
    assert all(set(row) == {"answer", "type", "question_id"} and row["type"] in range(9) for row in answers)
    keys = [row["question_id"] for row in asked]
    assert len(set(keys)) == len(keys) == CLIPS * ASKED
    assert sorted(keys) == sorted(row["question_id"] for row in answers)
    assert keys != [row["question_id"] for row in answers], "only the ids join them"
    assert any(row["video_name"].startswith("-") for row in asked)
    check_videos(tmp_path, (f"v_{row['video_name']}.mp4" for row in asked))
    # Joined, they are what another layout of the same seed asks.
    joined = {row["question_id"]: row["answer"] for row in answers}
    plain = write_dataset("jsonl", tmp_path / "plain", split="test", clips=CLIPS, asked=ASKED, seed=2)
    lines = [json.loads(line) for line in plain.read_text().splitlines()]
    assert [(row["question"], joined[row["question_id"]]) for row in asked] == [
        (line["question"], line["answer"]) for line in lines
    ]


@pytest.mark.parametrize(
    ("type_", "answer", "number"),
    [
        ("motion", "left", 0),
        ("change", "blinks", 0),
        ("relation", "above", 1),
        ("order", "blue", 2),
        ("motion", "no", 3),
        ("order", "yes", 3),
        ("color", "blue", 4),
        ("change", "blue", 4),
        ("shape", "ring", 5),
        ("position", "top", 6),
        ("times", "two", 7),
        ("activity", "one", 7),
        ("size", "small", 8),
    ],
)
def test_activitynet_types(type_: str, answer: str, number: int) -> None:
    assert activitynet_type(Question("?", answer, type_, "")) == number


def test_jsonl(tmp_path: Path) -> None:
    path = write_dataset("jsonl", tmp_path, split="compositional", clips=CLIPS, asked=ASKED, seed=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "compositional.jsonl"
    assert all(set(row) == {"video", "question", "answer", "type"} for row in rows)
    assert all((tmp_path / row["video"]).exists() for row in rows)
    check_videos(tmp_path, (Path(row["video"]).name for row in rows))


def test_a_seed_makes_the_same_data_set_and_another_seed_another(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_dataset("msvd-qa", folder, split="train", clips=2, asked=4, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 100 videos of split 'val', asked for 101"):
        write_dataset("msvd-qa", tmp_path, split="val", clips=101, asked=1, seed=0)
    with pytest.raises(InputError, match="expected one of msvd-qa"):
        write_dataset("coco", tmp_path, split="val", clips=1, asked=1, seed=0)


def test_the_command(tmp_path: Path) -> None:
    assert set(OFFERED) == set(layouts.LAYOUTS)
    arguments = ["synthetic", "msrvtt-qa", str(tmp_path), "--clips", "2", "--questions", "1", "--split", "train"]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert str(tmp_path / "train_qa.json") in result.output
    assert len(json.loads((tmp_path / "train_qa.json").read_text())) == 2
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["video0.mp4", "video1.mp4"]
