"""A run's file: appended, synced, cut where it is torn, refused where it is another's."""

from pathlib import Path
from typing import Any

import pytest

from vococache.errors import InputError
from vococache.pipeline.evaluation.records import AnswerFile, AnswerRecord, read_answers

SETTINGS = {"model": "m", "tokens": 2}
QUESTIONS = {"a": ["a0", "a1"], "b": ["b0", "b1", "b2"], "c": ["c0"]}


def record(key: str, **changes: Any) -> AnswerRecord:
    known: dict[str, Any] = {
        "id": key, "video": key[0], "question": f"what is {key}?", "truth": "x", "type": "", "raw": "X\n ü",
        "prediction": "x", "segments": 4, "status": "answered", "error": None, "seconds": 0.5,
    }  # fmt: skip
    return AnswerRecord(**known | changes)


def write(path: Path, videos: str) -> AnswerFile:
    file = AnswerFile(path, SETTINGS, QUESTIONS)
    for video in videos:
        file.commit([record(key) for key in QUESTIONS[video]])
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "answers.jsonl"
    write(path, "abc")
    settings, records = read_answers(path)
    assert settings == SETTINGS
    assert records == [record(key) for keys in QUESTIONS.values() for key in keys]


def test_every_cut_is_resumed_from(tmp_path: Path) -> None:
    """A kill at any byte: the finished run is the undisturbed one."""
    whole = tmp_path / "whole"
    write(whole, "abc")
    data = whole.read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        file = AnswerFile(path, SETTINGS, QUESTIONS)
        assert data.startswith(path.read_bytes())
        for video, keys in QUESTIONS.items():
            if video not in file.done:
                file.commit([record(key) for key in keys])
        assert path.read_bytes() == data, length


def test_what_was_not_answered_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    file = write(path, "a")
    file.commit([record(key, status="missing", raw="", error="no file") for key in QUESTIONS["b"]])
    file.commit([record("c0")])
    assert AnswerFile(path, SETTINGS, QUESTIONS).done == {"a", "c"}
    assert [found.id for found in read_answers(path)[1]] == ["a0", "a1", "c0"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, "a")
    before = path.read_bytes()
    with pytest.raises(InputError, match="tokens was 2, now 1"):
        AnswerFile(path, SETTINGS | {"tokens": 1}, QUESTIONS)
    with pytest.raises(InputError, match="dtype was None, now 'bfloat16'"):
        AnswerFile(path, SETTINGS | {"dtype": "bfloat16"}, QUESTIONS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("videos", ["ab", "abc"])
def test_damage_before_the_end_is_refused(tmp_path: Path, videos: str) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, videos)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:-5], *lines[3:]]))
    with pytest.raises(InputError, match="line 3 is not as it was written"):
        AnswerFile(path, SETTINGS, QUESTIONS)


def test_a_half_video_before_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    file = write(path, "a")
    file.commit([record("b0")])
    file.commit([record("c0")])
    with pytest.raises(InputError, match="'b' has other questions"):
        AnswerFile(path, SETTINGS, QUESTIONS)


def test_what_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"no": "header"}\n')
    with pytest.raises(InputError, match="line 1 is not as it was written"):
        read_answers(path)
    path.write_text("")
    with pytest.raises(InputError, match="no header"):
        read_answers(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(tmp_path / "nothing")
