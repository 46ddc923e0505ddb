"""Training data from files: every form of rows that is read, and odd ones."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vococache.errors import InputError
from vococache.pipeline.training.conversations import (
    CAPTION_REQUESTS,
    DETAILED_REQUESTS,
    Conversation,
    read_conversations,
)
from vococache.pipeline.training.report import MediaReport

SHAPE = (96, 64)  # of the clips, in pixels


def write_json(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows))
    return path


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


LLAVA = [
    {"id": "a", "image": "sub/a.jpg", "conversations": said("<image>\nWhat?", "A ball.", "Where?", "Left.")},
    {"id": 7, "video": "b.mp4", "conversations": said("Why?\n<video>", " Because. ")},
    {"conversations": said("<image> is an HTML tag?", "No.")},
    {"id": "d", "image": None, "video": "d.mp4", "conversations": said("Who?", "Nobody\u2028at all.")},
]


def read(path: Path, folder: Path) -> list[Conversation]:
    """Of a file without odd rows."""
    found, odd = read_conversations(path, folder)
    assert not odd
    return found


@pytest.mark.parametrize(("name", "write"), [("llava.json", write_json), ("llava.jsonl", write_lines)])
def test_llava(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    assert read(write(tmp_path / name, LLAVA), tmp_path) == [
        Conversation("a", (tmp_path / "sub/a.jpg",), "image", (("What?", "A ball."), ("Where?", "Left."))),
        Conversation("7", (tmp_path / "b.mp4",), "video", (("Why?", "Because."),)),
        Conversation(f"{name}:3", (), "text", (("<image> is an HTML tag?", "No."),)),
        Conversation("d", (tmp_path / "d.mp4",), "video", (("Who?", "Nobody\u2028at all."),)),
    ]


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("<image>\nWhat?", "What?"),
        ("<image> What?", "What?"),
        ("What?\n<image>", "What?"),
        ("<video>\nWhat?", "What?"),
        ("What?<video>\n", "What?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("Here:\n<image>\nWhat? <video>", "Here:\nWhat?"),
        ("Is <image> like <image>?", "Is like ?"),
        ("What?", "What?"),
    ],
)
def test_no_media_tag_is_text(tmp_path: Path, value: str, question: str) -> None:
    row = {"video": "a.mp4", "conversations": said(value, "A.", "And <image>", "B.")}
    (conversation,) = read(write_json(tmp_path / "llava.json", [row]), tmp_path)
    assert conversation.turns == ((question, "A."), ("And", "B."))


def by(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (by(("human", "Q"), ("gpt", "A"), ("human", "R")), (("Q", "A"),)),
        (by(("gpt", "Hello!"), ("human", "Q"), ("gpt", "A")), (("Q", "A"),)),
        (by(("system", "Be brief."), ("user", "Q"), ("assistant", "A")), (("Q", "A"),)),
        (by(("human", "Q"), ("human", "R"), ("gpt", "A"), ("gpt", "B")), (("Q\nR", "A\nB"),)),
        (by(("human", "How many?"), ("gpt", 7), ("human", 1.5), ("gpt", True)), (("How many?", "7"), ("1.5", "True"))),
    ],
    ids=["odd number", "answer first", "system", "twice", "numbers"],
)
def test_what_can_be_taken_of_a_conversation_is(tmp_path: Path, turns: Any, expected: Any) -> None:
    (row,) = read(write_json(tmp_path / "a.json", [{"conversations": turns}]), tmp_path)
    assert row.turns == expected


def test_openai_messages(tmp_path: Path) -> None:
    asked = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    film = [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "Why?"}]
    answer = {"role": "assistant", "content": "A."}
    rows = [
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": asked}, answer]},
        {"messages": [{"role": "user", "content": film}, answer]},
        {"messages": [{"role": "user", "content": "<image>Who?"}, answer], "images": ["c.png", "d.png"], "id": 3},
        {"messages": [{"role": "user", "content": "Who?"}, answer]},
    ]
    assert read(write_lines(tmp_path / "m.jsonl", rows), tmp_path) == [
        Conversation("m.jsonl:1", (tmp_path / "a.png",), "image", (("What?", "A."),)),
        Conversation("m.jsonl:2", (tmp_path / "b.mp4",), "video", (("Why?", "A."),)),
        Conversation("3", (tmp_path / "c.png", tmp_path / "d.png"), "image", (("Who?", "A."),)),
        Conversation("m.jsonl:4", (), "text", (("Who?", "A."),)),
    ]


def test_videochat2(tmp_path: Path) -> None:
    asked = [{"i": "Look.", "q": "What?", "a": "A."}, {"i": "", "q": "Why?", "a": "B."}]
    rows = [{"video": "a.mp4", "QA": asked}, {"image": "b.png", "QA": [{"i": "Describe it.", "a": "C."}]}]
    assert read(write_json(tmp_path / "v.json", rows), tmp_path) == [
        Conversation("v.json:1", (tmp_path / "a.mp4",), "video", (("Look.\nWhat?", "A."), ("Why?", "B."))),
        Conversation("v.json:2", (tmp_path / "b.png",), "image", (("Describe it.", "C."),)),
    ]


def test_sharegpt4video(tmp_path: Path) -> None:
    """As its file of 40,000 lines: captions of the keyframes, and last that of the whole video."""
    (tmp_path / "two.mp4").touch()  # of an archive unpacked beside the file
    captions = [
        {"idx": "1", "content": "A dog."},
        {"idx": "2", "content": "It runs."},
        {"idx": "-1", "content": "All."},
    ]
    rows = [
        {"video_id": video, "video_path": f"panda/{video}.mp4", "timestamp": [0.0, 2.0], "keyframe": [0, 48],
         "captions": captions, "zip_folder": "panda/panda_videos_1.zip"}
        for video in ("one", "two", "three")
    ]  # fmt: skip
    rows[2] = rows[2] | {"captions": captions[:2]}
    found, odd = read_conversations(write_lines(tmp_path / "s.jsonl", rows), tmp_path)
    assert [(row.id, row.media, row.kind) for row in found] == [
        ("one", (tmp_path / "panda/one.mp4",), "video"), ("two", (tmp_path / "two.mp4",), "video")
    ]  # fmt: skip
    assert all(question in DETAILED_REQUESTS and answer == "All." for ((question, answer),) in (r.turns for r in found))
    assert [item.reason for item in odd] == ["expected one caption of the whole video (idx -1), found 0"]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "v_1", "conversations": said("<image>\nWhat?", "A."), "data_source": "0_30_s", "video": "src/v_1.mp4"},
        {"id": "v_1-qa-0", "video": "v_1", "conversations": said("<video>\nWhat?", "A.")},
        {"video": "v_1.mp4", "QA": [{"i": "", "q": "What?", "a": "A."}]},
        {"q": "What?", "a": "A.", "video_id": "v_1"},
    ],
    ids=["LLaVA-Video-178K", "LLaVA-Hound", "VideoChat2", "Video-ChatGPT"],
)
def test_rows_as_the_video_sets_have_them(tmp_path: Path, row: dict[str, Any]) -> None:
    (conversation,) = read(write_json(tmp_path / "a.json", [row]), tmp_path)
    assert conversation.turns == (("What?", "A."),)
    assert (conversation.kind, conversation.media[0].stem) == ("video", "v_1")


def test_media_in_every_form(tmp_path: Path) -> None:
    """Stems and folders of frames (LLaVA-Hound), lists of pictures and of frames."""
    for file in ("stem.webm", "v_1.x.mkv", "frames/0.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    media = [{"video": "stem"}, {"video": "v_1.x"}, {"video": "frames"}, {"video": "gone"},
             {"video": ["frames/0.jpg"] * 2}, {"image": ["a.png", "b.png"]}, {"image": ["a.png"]},
             {"image": ""}]  # fmt: skip
    rows = [row | {"conversations": said("Q", "A")} for row in media]
    found = [
        (row.kind, *(str(path.relative_to(tmp_path)) for path in row.media))
        for row in read(write_json(tmp_path / "a.json", rows), tmp_path)
    ]
    assert found == [
        ("video", "stem.webm"), ("video", "v_1.x.mkv"), ("video", "frames"), ("video", "gone"),
        ("video", "frames/0.jpg", "frames/0.jpg"), ("image", "a.png", "b.png"), ("image", "a.png"), ("text",),
    ]  # fmt: skip


def test_video_chatgpt(tmp_path: Path) -> None:
    files = ["v_one.mkv", "two.webm", "v_three.avi", "four.mov", "v_five.mp4", "v_five.mov"]
    for file in files:
        (tmp_path / file).touch()
    names = ["v_one", "v_two", "three", "four", "five", "six"]
    rows = [{"q": "What?", "a": f"{name}.\nQA_GT_caption_based_noisy", "video_id": name} for name in names]
    rows[1]["a"] = "plain."
    found = read(write_json(tmp_path / "qa.json", rows), tmp_path)
    media = [row.media[0].name for row in found]
    assert media == ["v_one.mkv", "two.webm", "v_three.avi", "four.mov", "v_five.mp4", "six.mp4"]
    assert [row.turns[0][1] for row in found] == ["v_one.", "plain.", "three.", "four.", "five.", "six."]
    assert (found[5].id, found[5].kind) == ("qa.json:6", "video")


def test_webvid(tmp_path: Path) -> None:
    (tmp_path / "000_050").mkdir()
    for file in ("000_050/11.mp4", "22.mp4"):
        (tmp_path / file).touch()
    rows = [
        [video, "https://example/x.mp4", "PT00H00M15S", "000_050", f'A "dog", {video}'] for video in ("11", "22", "33")
    ]
    header = ["videoid", "contentUrl", "duration", "page_dir", "name"]
    found = read(write_csv(tmp_path / "w.csv", header, *rows), tmp_path)
    assert [row.media for row in found] == [
        (tmp_path / file,) for file in ("000_050/11.mp4", "22.mp4", "000_050/33.mp4")
    ]
    assert [(row.id, row.turns[0][1]) for row in found] == [(row[0], row[4]) for row in rows]
    assert all(row.turns[0][0] in CAPTION_REQUESTS for row in found)
    assert read(tmp_path / "w.csv", tmp_path) == found, "the same requests in every run"


def test_plain_lines(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "question": "What?", "answer": "A."},
        {"image": "/b.png", "question": "Why?", "answer": "B."},
        {"question": "Who?", "answer": "C."},
    ]
    assert read(write_lines(tmp_path / "qa.jsonl", rows), tmp_path) == [
        Conversation("qa.jsonl:1", (tmp_path / "a.mp4",), "video", (("What?", "A."),)),
        Conversation("qa.jsonl:2", (Path("/b.png"),), "image", (("Why?", "B."),)),
        Conversation("qa.jsonl:3", (), "text", (("Who?", "C."),)),
    ]


GOOD = '{"question": "Q", "answer": "A"}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "expected a JSON object, found str"),
        ("[1]", "expected a JSON object, found list"),
        ('{"question": "Q"}', r"expected the fields of one of .*question, answer.*, found question"),
        ('{"question": "Q", "answer": null}', "expected text in 'answer', found NoneType"),
        ('{"question": "Q", "answer": "A", "image": "a", "video": "b"}', "expected one of image and video, found both"),
        ('{"question": "Q", "answer": "A", "video": ["a.mp4", "b.mp4"]}', "expected one video, found several"),
        ('{"question": "Q", "answer": "A", "image": [7]}', "expected a file's name, or a list of them, in 'image'"),
        ('{"video": "a.mp4", "start": 3, "end": 9, "QA": [{"q": "Q", "a": "A"}]}', r"expected a whole video, .*"),
        ('{"conversations": "hello"}', "expected a list in 'conversations', found str"),
        ('{"conversations": ["Q", "A"]}', "expected turns with 'from', found str"),
        ('{"conversations": [{"from": "human"}, {"from": "gpt"}]}', "expected text in 'value', found NoneType"),
        (json.dumps({"conversations": by(("human", "Q"), ("tool", 1))}), "expected a turn of one of .*, found 'tool'"),
        (json.dumps({"conversations": by(("gpt", "A"), ("human", 1))}), "expected a question and an answer behind it"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}',
         "expected a file in a part of type 'image_url'"),
    ],
)  # fmt: skip
def test_an_odd_row_is_counted_by_its_reason_and_costs_no_other(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([GOOD, row, GOOD, row]))
    found, odd = read_conversations(path, tmp_path)
    assert [conversation.id for conversation in found] == ["data.jsonl:1", "data.jsonl:3"]
    assert [(item.row, item.cause) for item in odd] == [(2, "odd"), (4, "odd")]
    assert re.fullmatch(reason, odd[0].reason)
    assert MediaReport.of(odd).counts == {f"odd, {odd[0].reason}": 2}
    path.write_text(row + "\n")
    if row[0] == "{":  # else it is a list, or CSV
        with pytest.raises(InputError, match=r"none of 1 rows can be read; row 1: expected"):
            read_conversations(path, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("[]", "holds no row"),
        ("some text", "holds no row"),
        ("\xff\xfe\x00", "cannot be read"),
        ("[{", "not JSON"),
        ("[1]", "none of 1 rows can be read; row 1: expected a JSON object, found int"),
        ("videoid,caption\n1,x\n", "none of 1 rows .* expected the fields of one of .*videoid, name, page_dir"),
        (f"videoid,name,page_dir\n1,{'x' * 200_000},y\n", "field larger than"),
    ],
)  # fmt: skip
def test_a_file_of_which_nothing_can_be_read_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_conversations(path, tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_or_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        read_conversations(write_json(tmp_path / "a.json", LLAVA), tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        read_conversations(tmp_path / "none.json", tmp_path)


# ---- examples ----------------------------------------------------------------------------------------
