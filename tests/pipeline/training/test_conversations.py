"""Training data from files: every form that is read, the frames and labels of its rows, and the rows left out."""

import csv
import json
import multiprocessing
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from tests.clips import make_clip, overstate, picture, read_frame_number
from torch.utils.data import DataLoader

from vococache.errors import InputError, VideoError
from vococache.model.objective import Objective
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import (
    CAPTION_REQUESTS,
    DETAILED_REQUESTS,
    Conversation,
    read_conversations,
)
from vococache.pipeline.training.examples import Example, collate, encode_turns
from vococache.pipeline.training.media import ConversationExamples
from vococache.pipeline.training.report import LeftOutRow, MediaReport, read_report, record, settle
from vococache.storage import open_store
from vococache.workers.compress import store_header
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import read_image

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


@pytest.fixture(scope="module")
def model() -> VoCoModel:
    """Two frames a segment."""
    tokenizer = byte_tokenizer()
    made = random_model(small_config(tokenizer).with_voco(frames=2), seed=0)
    made.tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good clips and an image, and what is broken."""
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "clip.mp4", frames=34)
    make_clip(folder / "deep.mkv", frames=20, pix_fmt="yuv420p10le")  # which decord leaves to PyAV
    Image.fromarray(picture(5, *SHAPE)).save(folder / "still.png")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:-4000])
    (folder / "text.mp4").write_text("this is no video\n" * 40)
    (folder / "zero.jpg").touch()
    Image.fromarray(picture(6, 960, 640)).save(folder / "whole.jpg")
    (folder / "half.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:9000])
    return folder


@pytest.fixture
def make(model: VoCoModel, media: Path, tmp_path: Path) -> Iterator[Callable[..., ConversationExamples]]:
    """Examples over media by their names ("" for text)."""
    made = []

    def build(
        *names: str, sampling: FrameSampling | None = None, max_frames: int | None = None
    ) -> ConversationExamples:
        rows = [about(media, name) for name in names]
        report = tmp_path / "report.jsonl"
        examples = ConversationExamples(model, rows, sampling or FrameSampling(fps=2.0), report, max_frames=max_frames)
        made.append(examples)
        return examples

    yield build
    for examples in made:
        examples.close()


def about(folder: Path, name: str) -> Conversation:
    turns = ((f"What is {name}?", f"{name} it is."), ("Sure?", "Yes."))
    if not name:
        return Conversation("text", (), "text", turns)
    return Conversation(f"about {name}", (folder / name,), "image" if name[-4:] in (".png", ".jpg") else "video", turns)


def ingested(model: VoCoModel, path: Path, sampling: FrameSampling, folder: Path) -> np.ndarray:
    """The segments that ingest would compress."""
    store = open_store(str(folder / "store"), "a", header=store_header(model))
    stage = DecodeStage(
        store_url=store.url,
        sampling=sampling,
        geometry=model.config.geometry,
        frames_per_segment=model.config.frames_per_segment,
    )
    stage.setup()
    try:
        rows = list(stage.process(VideoTask(video=path.stem, source=str(path))))
    finally:
        stage.close()
    return np.concatenate([row.frames for row in rows if row.frames is not None])


def numbers(frames: np.ndarray | None) -> list[list[int]]:
    assert frames is not None
    return [[read_frame_number(frame, SHAPE) for frame in segment] for segment in frames]


def silent(example: Example) -> bool:
    """No frames, and nothing to learn?"""
    return example.frames is None and all(label == IGNORED_LABEL for text in example.texts for label in text.labels)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("clip.mp4", FrameSampling(fps=2)),  # 7 frames: the last segment is half full
        ("clip.mp4", FrameSampling(num_frames=2)),  # a single segment
        ("deep.mkv", FrameSampling(fps=2)),
    ],
)
def test_frames_are_those_of_ingest(
    make: Callable[..., ConversationExamples],
    model: VoCoModel,
    media: Path,
    tmp_path: Path,
    name: str,
    sampling: FrameSampling,
) -> None:
    frames = make(name, sampling=sampling)[0].frames
    assert frames is not None
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (2, 64, 64, 3)
    assert np.array_equal(frames, ingested(model, media / name, sampling, tmp_path))


def test_a_long_video_is_spread_over_the_frames_there_are(
    make: Callable[..., ConversationExamples], media: Path
) -> None:
    examples = make("clip.mp4", sampling=FrameSampling(fps=2), max_frames=4)
    assert numbers(examples[0].frames) == [[4, 12], [21, 29]]
    examples.media.max_frames = 7  # enough
    assert numbers(examples[0].frames) == [[0, 5], [10, 15], [20, 25], [30, 30]]


def test_a_header_that_claims_too_little_does_not_make_it_longer(
    make: Callable[..., ConversationExamples], media: Path
) -> None:
    overstate(make_clip(media / "short.mkv", frames=34), factor=0.1)  # type: ignore[arg-type]
    assert numbers(make("short.mkv", max_frames=4)[0].frames) == [[4, 12], [21, 29]]


def test_an_image_is_shaped_as_a_frame_and_fills_its_segment(
    make: Callable[..., ConversationExamples], model: VoCoModel
) -> None:
    frames = make("still.png")[0].frames
    assert frames is not None
    assert np.array_equal(frames, np.stack([[model.config.geometry.apply(picture(5, *SHAPE))] * 2]))


def test_several_images_are_a_segment_each(make: Callable[..., ConversationExamples], media: Path) -> None:
    examples = make("still.png")
    examples.conversations = [replace(examples.conversations[0], media=(media / "still.png", media / "whole.jpg"))]
    frames = examples[0].frames
    assert frames is not None
    assert frames.shape[:2] == (2, 2)
    one = examples.media.image(media / "still.png")
    assert np.array_equal(frames[:1], one)
    assert not np.array_equal(frames[1:], one)


def test_a_folder_of_frames_is_a_video(make: Callable[..., ConversationExamples], media: Path) -> None:
    folder = media / "frames"
    folder.mkdir()
    (folder / "notes.txt").touch()
    for number in range(1, 12):  # of which 10 comes behind 9
        Image.fromarray(picture(number, *SHAPE)).save(folder / f"frame{number}.png")
    assert numbers(make("frames", sampling=FrameSampling(fps=2))[0].frames) == [
        [1, 2],
        [3, 4],
        [5, 6],
        [7, 8],
        [9, 10],
        [11, 11],
    ]
    assert numbers(make("frames", max_frames=4)[0].frames) == [[2, 5], [7, 10]]
    few = make("frames", sampling=FrameSampling(num_frames=2))
    assert numbers(few[0].frames) == [[3, 9]]
    few.conversations = [replace(few.conversations[0], media=tuple(folder / f"frame{n}.png" for n in (4, 5, 6, 7)))]
    assert numbers(few[0].frames) == [[5, 7]]
    (media / "empty").mkdir()
    assert silent(make("empty")[0])


def test_a_photograph_is_upright(model: VoCoModel, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees for display
    Image.fromarray(np.rot90(picture(9, *SHAPE))).save(tmp_path / "a.png", exif=exif)
    assert read_frame_number(read_image(tmp_path / "a.png", model.config.geometry), SHAPE) == 9


def test_an_image_too_long_to_be_padded(model: VoCoModel, tmp_path: Path) -> None:
    Image.new("L", (20_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(VideoError, match="at most 16384 pixels a side"):
        read_image(tmp_path / "a.png", model.config.geometry)


def test_every_answer_is_labelled_and_text_has_no_frames(
    make: Callable[..., ConversationExamples], model: VoCoModel
) -> None:
    examples = make("still.png", "")
    for index, name in enumerate(("still.png", "")):
        (text,) = examples[index].texts
        labels = [label for label in text.labels if label != IGNORED_LABEL]
        assert model.tokenizer.decode(labels) == f" {name} it is.</s> Yes.</s>"
    assert examples[1].frames is None
    prompt = model.config.prompt
    assert examples[0].texts[0].ids[0] == prompt.text_newline_ids[0] != prompt.bos_id
    assert examples[1].texts[0].ids[0] == prompt.bos_id


def test_missing_media_are_counted_and_named(make: Callable[..., ConversationExamples], tmp_path: Path) -> None:
    examples = make("gone.mp4", "still.png", "lost.jpg", "gone.mp4", "")
    report = examples.check_media()
    assert report.counts == {"missing": 3}
    assert {Path(name).name for name in report.names["missing"]} == {"gone.mp4", "lost.jpg"}
    assert "3 missing (" in str(report)
    assert "gone.mp4" in str(report)
    assert read_report(tmp_path / "report.jsonl") == report
    assert len(examples) == 2
    assert [examples[index].frames is None for index in range(2)] == [False, True]
    examples.check_media()
    assert read_report(tmp_path / "report.jsonl") == report, "nothing is counted twice"


def test_rows_without_words_are_left_out(make: Callable[..., ConversationExamples]) -> None:
    examples = make("still.png", "still.png", "")
    examples.conversations = [
        replace(row, turns=turns)
        for row, turns in zip(
            examples.conversations, ((("Q", ""),), (("Q", "A"), ("", "A")), (("Q", "A"),)), strict=True
        )
    ]
    assert examples.check_media().counts == {"empty": 2}
    assert len(examples) == 1


def test_a_run_without_any_row_is_refused(make: Callable[..., ConversationExamples], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 2 rows can be trained on: 2 missing \(.*gone.mp4"):
        make("gone.mp4", "lost.jpg").check_media()
    assert read_report(tmp_path / "report.jsonl").counts == {"missing": 2}


BROKEN = ("cut.mp4", "text.mp4", "zero.jpg", "half.jpg")


def test_broken_media_are_named_and_never_replaced(make: Callable[..., ConversationExamples], tmp_path: Path) -> None:
    examples = make(*BROKEN, "still.png")
    assert examples.check_media().counts == {}
    for _ in range(2):  # epochs
        assert [silent(examples[index]) for index in range(5)] == [True, True, True, True, False]
    report = read_report(tmp_path / "report.jsonl")
    assert report.counts == {"broken": 4}
    reasons = {Path(name).name: reason for name, reason in report.names["broken"].items()}
    assert set(reasons) == set(BROKEN)
    assert all(reasons.values())
    assert "truncated" in reasons["half.jpg"]


def test_a_broken_row_leaves_the_loss_of_its_batch_alone(
    make: Callable[..., ConversationExamples], model: VoCoModel
) -> None:
    examples = make("still.png", "text.mp4", "")
    still, broken, text = (examples[index] for index in range(3))
    objective = Objective(model)
    with_it, without = (objective(**collate(rows))["loss"] for rows in ([still, broken, text], [still, text]))
    torch.testing.assert_close(with_it, without)
    assert objective(**collate([broken, broken]))["loss"] == 0


def test_a_row_without_room_is_cut_or_where_no_answer_is_left_silent_and_reported(
    make: Callable[..., ConversationExamples], model: VoCoModel, tmp_path: Path
) -> None:
    limit = model.config.max_positions
    room = limit - len(encode_turns(model.tokenizer, model.config.prompt, [("", "yes")]).ids)
    examples = make("", "", "still.png", "still.png", "")
    examples.conversations = [
        replace(row, turns=(("x" * (room + more), "yes"),))
        for row, more in zip(examples.conversations, (0, 1, -2, -1, 50), strict=True)  # an image takes 2 positions
    ]
    assert [silent(examples[index]) for index in range(5)] == [False, False, False, False, True]
    assert [len(examples[index].texts[0].ids) for index in range(4)] == [limit, limit, limit - 2, limit - 2]
    report = read_report(tmp_path / "report.jsonl")
    assert report.counts == {"cut": 2, "too long": 1}
    assert set(report.names["cut"].values()) == {f"1 of {limit + 1} tokens", f"1 of {limit - 1} tokens"}
    assert f"room for {limit} of its {limit + 50} tokens" in report.names["too long"]["text"]


def test_workers_give_the_same_and_leave_no_process(make: Callable[..., ConversationExamples], tmp_path: Path) -> None:
    examples = make("clip.mp4", "text.mp4", "still.png", "deep.mkv", "cut.mp4", "")
    alone = list(DataLoader(examples, batch_size=2, collate_fn=collate))  # its decoder lives on while others fork
    loader = DataLoader(
        examples,
        batch_size=2,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    before = set(psutil.Process().children(recursive=True)) - {psutil.Process(examples.media._decoder.pid)}
    iterator = iter(loader)
    batches = [next(iterator) for _ in alone]
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) == 5, "two workers, and a decoder of each and of this process"
    assert next(iterator, None) is None  # which ends the workers
    for ours, theirs in zip(alone, batches, strict=True):
        assert ours["segments"] == theirs["segments"]
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "segments")
    assert read_report(tmp_path / "report.jsonl").counts == {"broken": 2}
    examples.close()
    assert not [process for process in started if process.is_running()]


def test_examples_travel_to_other_processes_without_their_decoder(make: Callable[..., ConversationExamples]) -> None:
    examples = make("clip.mp4")
    frames = examples[0].frames
    copy: ConversationExamples = pickle.loads(pickle.dumps(examples))
    assert np.array_equal(copy[0].frames, frames)
    copy.close()


def test_lines_of_a_report_are_short_and_whole(tmp_path: Path) -> None:
    """Longer ones might be torn where several processes append."""
    path = tmp_path / "report.jsonl"
    items = [
        LeftOutRow(index, text * 5000, text * 5000, "broken", text * 5000)
        for index, text in enumerate("a\n\0é🎈\ud800")
    ]
    path.write_bytes(b"".join(item.to_line() for item in items))
    assert all(len(item.to_line()) < 4096 for item in items)
    assert read_report(path).counts == {"broken": 6}


def test_a_settled_report_has_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    items = [LeftOutRow(3, name, "a.mp4", "broken", "torn") for name in ("one", "two")]  # of two files
    for _ in range(3):
        record(path, items)
    assert settle(path).counts == read_report(path).counts == {"broken": 2}
    assert len(path.read_bytes().splitlines()) == 2


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert read_report(tmp_path / "none.jsonl") == MediaReport({}, {})
    assert str(MediaReport({}, {})) == ""
