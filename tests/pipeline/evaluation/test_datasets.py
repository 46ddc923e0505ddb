"""Layouts of the benchmarks in use: rows, joins, types, and which file is whose."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vococache.errors import InputError
from vococache.pipeline.evaluation.datasets import (
    ACTIVITYNET_TYPES,
    DATA_SETS,
    activitynet_stems,
    by_question_word,
    locate,
    msrvtt_stems,
    read_items,
    read_mapping,
    video_files,
)

REAL = Path(__file__).parents[4] / "shared" / "activitynet_qa"
MSVD, MSRVTT, ACTIVITYNET = (DATA_SETS[name] for name in ("msvd-qa", "msrvtt-qa", "activitynet-qa"))


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_one_file_of_numbered_videos(tmp_path: Path) -> None:
    rows = [
        {"question": "what runs?", "answer": "dog", "video_id": 1301, "id": 7},
        {"question": "who sings?", "answer": "man", "video_id": 1302, "id": 8},
        {"question": "is it red?", "answer": "yes", "video_id": 1301, "id": 9},
    ]
    write(tmp_path / "test_qa.json", rows)
    items = read_items(MSVD, tmp_path, "test")
    assert [(item.id, item.video, item.type) for item in items] == [
        ("7", "1301", "what"), ("9", "1301", "other"), ("8", "1302", "who"),
    ], "grouped by video, in the file's order"  # fmt: skip
    assert read_items(MSVD, tmp_path / "test_qa.json", "any") == items


def test_questions_and_answers_are_joined_by_id(tmp_path: Path) -> None:
    """Position means nothing: several GPUs misaligned the peers' predictions and answers."""
    questions = [{"video_name": "-a", "question": f"q{i}?", "question_id": f"-a_{i}"} for i in range(20)]
    answers = [{"answer": f"answer {i}", "type": i % 9, "question_id": f"-a_{i}"} for i in reversed(range(20))]
    write(tmp_path / "val_q.json", questions)
    write(tmp_path / "val_a.json", answers)
    for item in read_items(ACTIVITYNET, tmp_path, "val"):
        number = int(item.id.rpartition("_")[2])
        assert (item.question, item.answer) == (f"q{number}?", f"answer {number}")
        assert item.type == ACTIVITYNET_TYPES[number % 9]


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([{"question_id": 1}], [], "lack question_id 1"),
        ([{"question_id": 1}], [{"question_id": 1, "answer": "a", "type": 1}] * 2, "answered twice"),
        ([{"question_id": 1}] * 2, [{"question_id": 1, "answer": "a", "type": 1}], "several questions"),
        ([{"question_id": 1}], [{"question_id": 1, "answer": "a", "type": 9}], "type 9: expected 0 to 8"),
        ([{"question_id": 1, "question": " "}], [{"question_id": 1, "answer": "a", "type": 1}], "question is empty"),
        (
            [{"question_id": 1, "video_name": None}],
            [{"question_id": 1, "answer": "a", "type": 1}],
            "video_name or video",
        ),
        ([], [], "no questions"),
        ({"question": "?"}, [], "expected a list"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, questions: Any, answers: Any, message: str) -> None:
    if isinstance(questions, list):
        questions = [{"video_name": "v", "question": "what?"} | row for row in questions]
    write(tmp_path / "test_q.json", questions)
    write(tmp_path / "test_a.json", answers)
    with pytest.raises(InputError, match=message):
        read_items(ACTIVITYNET, tmp_path, "test")


def test_a_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of test_qa\.json or test_q\.json"):
        read_items(MSRVTT, tmp_path, "test")
    write(tmp_path / "test_qa.json", [])
    write(tmp_path / "test_q.json", [])
    with pytest.raises(InputError, match="holds both"):
        read_items(MSRVTT, tmp_path, "test")
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_items(MSRVTT, tmp_path / "broken.json", "test")


def test_anybodys_own_questions(tmp_path: Path) -> None:
    lines = [
        {"video": "clips/a.mp4", "question": "what?", "answer": "x", "type": "easy"},
        {"video": "b", "question": "how many?", "answer": 2},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = DATA_SETS["jsonl"]
    items = read_items(own, tmp_path, "test")
    assert [(item.id, item.answer, item.type) for item in items] == [("0", "x", "easy"), ("1", "2", "")]
    assert locate(own, [item.video for item in items], ["a", "b"], {}) == {"clips/a.mp4": "a", "b": "b"}


def test_question_words() -> None:
    asked = {
        "What is it?": "what",
        "how many?": "how",
        "is it red?": "other",
        "WHERE?": "other",
        "where is it": "where",
    }
    assert {text: by_question_word({"question": text}) for text in asked} == asked


def test_msvd_names(tmp_path: Path) -> None:
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\nabcdefghijk_0_9 vid2\n")
    youtube = read_mapping(None, tmp_path / "annotations", tmp_path)
    for layout in ({"vid1"}, {"-4wsuPCjDBc_5_15"}, {"1"}):
        assert locate(MSVD, ["1"], layout, youtube) == {"1": next(iter(layout))}
    assert locate(MSVD, ["-4wsuPCjDBc_5_15"], {"vid1"}, youtube) == {"-4wsuPCjDBc_5_15": "vid1"}
    # Some copies name a clip with "v_" before it and each question's number behind it.
    write(tmp_path / "test_qa.json", [
        {"video_name": f"v_-4wsuPCjDBc_5_15_{number}", "question": "who?", "answer": "man"} for number in range(3)
    ])  # fmt: skip
    assert [item.video for item in read_items(MSVD, tmp_path, "test")] == 3 * ["-4wsuPCjDBc_5_15"]
    for layout in ({"vid1"}, {"-4wsuPCjDBc_5_15"}, {"v_-4wsuPCjDBc_5_15"}):
        assert locate(MSVD, ["-4wsuPCjDBc_5_15"], layout, youtube)
    (tmp_path / "youtube_mapping.txt").write_text("one two three\n")
    with pytest.raises(InputError, match="lines of two names"):
        read_mapping(tmp_path)


def test_numbers_are_no_prefixes() -> None:
    assert locate(MSRVTT, ["701", "7010"], {"video7010"}, {}) == {"7010": "video7010"}
    assert msrvtt_stems("video3", {}) == ["video3"]


def test_activitynet_names() -> None:
    assert activitynet_stems("-abc", {}) == ["v_-abc", "-abc"]
    both = locate(ACTIVITYNET, ["abc", "v_abc"], {"v_abc", "v_v_abc"}, {})
    assert both == {"abc": "v_abc", "v_abc": "v_v_abc"}


def test_no_video_is_answered_from_anothers_file() -> None:
    """Where one of two like-named videos is missing, the other's file is not taken for it."""
    assert locate(ACTIVITYNET, ["v_abc", "abc"], {"v_abc"}, {}) == {"abc": "v_abc"}
    assert locate(ACTIVITYNET, ["v_abc"], {"v_abc"}, {}) == {"v_abc": "v_abc"}


def test_video_files(tmp_path: Path) -> None:
    for name in ("a/v_x.mkv", "b/v_x.webm", "b/-y.mp4", "b/notes.txt", "b/._-y.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert {stem: len(paths) for stem, paths in video_files(tmp_path).items()} == {"v_x": 2, "-y": 1}
    with pytest.raises(InputError, match="does not exist"):
        video_files(tmp_path / "nowhere")


@pytest.mark.skipif(not REAL.exists(), reason="the real annotations are not here")
def test_the_real_annotations() -> None:
    items = read_items(ACTIVITYNET, REAL, "val")
    assert len(items) == len(json.loads((REAL / "val_q.json").read_text())) == 18_000
    assert len({item.video for item in items}) == 1800
    answers = {row["question_id"]: row for row in json.loads((REAL / "val_a.json").read_text())}
    assert all(item.answer == str(answers[item.id]["answer"]) for item in items)
    by_number = Counter(row["type"] for row in answers.values())
    assert Counter(item.type for item in items) == {ACTIVITYNET_TYPES[kind]: n for kind, n in by_number.items()}
    stems = {f"v_{item.video}" for item in items}
    videos = {item.video for item in items}
    assert locate(ACTIVITYNET, videos, stems, {}).keys() == videos
