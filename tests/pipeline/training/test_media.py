"""The frames and labels of training data from files, and the rows that are left out."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

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
    Conversation,
)
from vococache.pipeline.training.examples import Example, collate, encode_turns
from vococache.pipeline.training.media import ConversationExamples
from vococache.pipeline.training.report import read_report
from vococache.storage import open_store
from vococache.workers.compress import store_header
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import read_image

SHAPE = (96, 64)  # of the clips, in pixels


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
