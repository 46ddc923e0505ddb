"""Asking about what is too long to be read whole, and what answers rest on."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.pipeline.command import Voco
from tests.pipeline.search.conftest import Fill

import vococache
from vococache.errors import ContextLimitError, InputError
from vococache.pipeline.ask import ask, chat, open_reader, scope_of
from vococache.pipeline.synthetic.reel import Reel
from vococache.storage import Store
from vococache.workers.reason import ReasonStage
from vococache.workers.spans import Skeleton


@pytest.fixture
def short(reel_store: Store) -> ReasonStage:
    """A reader into whose context the reel does not fit."""
    stage = open_reader(reel_store.url)
    stage.model.config.text.max_position_embeddings = 300
    return stage


def test_answers_are_those_of_the_window_that_holds_it(short: ReasonStage, reel: Reel) -> None:
    right = 0
    for needle in reel.needles:
        questions = [question.text for question in needle.questions]
        answers = ask(short, "reel", questions, find=needle.name)
        direct = ask(short, "reel", questions, start=needle.start, end=needle.end - 1)
        for question, found, near in zip(needle.questions, answers, direct, strict=True):
            (span,) = found.segments
            assert found.skeleton == Skeleton(every=0, tokens=0, segments=0)
            assert {*found.timings} == {"find", "load", "prefill", "decode"}
            assert near.skeleton is None
            if (span.start_time, span.end_time) == (needle.start, needle.end - 1):
                assert found.answer == near.answer
            right += found.answer == question.answer
            best = found.evidence[0]
            assert needle.start - 4 <= best.start < best.end <= needle.end + 4
    assert right >= 0.8 * sum(len(needle.questions) for needle in reel.needles)


def test_by_the_question_alone_and_refused_where_it_is_to_be_read_whole(short: ReasonStage, reel: Reel) -> None:
    needle = reel.needles[0]
    question = f"what happens to the {needle.thing.colour} {needle.thing.shape}?"
    (answer,) = ask(short, "reel", question)
    assert answer.segments[0].start_time < needle.end
    assert answer.segments[0].end_time >= needle.start
    with pytest.raises(ContextLimitError, match="segments fit: try --start 0 --end"):
        ask(short, "reel", question, whole=True)
    with pytest.raises(InputError, match="found both"):
        ask(short, "reel", question, whole=True, find="x")
    with pytest.raises(ContextLimitError, match="shorten the question"):
        ask(short, "reel", question * 40)
    assert list(chat(short, ["reel"], iter([question]))) == [answer.answer]


def test_a_skeleton_stands_between_the_windows(short: ReasonStage) -> None:
    """Where no number of segments is too many: windows in full, of the rest every n-th, in time order."""
    del short.model.config.search["segments"]
    (answer,) = ask(short, "reel", "what happens to the red circle?", max_new_tokens=4)
    room = short.limit - 8
    assert answer.skeleton is not None
    assert answer.skeleton.segments > 0
    read = 4 * (answer.skeleton.segments + sum(span.stop - span.start for span in answer.segments))
    assert room / 2 < read <= room
    starts = [span.start for span in answer.segments]
    assert starts == sorted(starts)


def test_fewer_tokens_of_all_segments_read_as_they_are_alone(reel_store: Store) -> None:
    """Pieces side by side are what one cache of as many tokens is."""
    from vococache.workers.focus import _entries
    from vococache.workers.spans import Piece

    stage = open_reader(reel_store.url)
    piece = Piece("reel", [3, 4, 9, 150], 2)
    entries = _entries(stage, piece)
    whole = torch.from_numpy(reel_store.read("reel"))[[3, 4, 9, 150], :, :, :, :2]
    from vococache.model.cache import VoCoCache

    torch.testing.assert_close(stage.model.rotated(entries), stage.model.rotated(VoCoCache(whole)))
    assert scope_of(stage, ["reel"], 10.0, 20.0, None).segments == 11


def test_all_of_a_store(fill: Fill, reel_file: Path, reel: Reel, tmp_path: Path) -> None:
    store = fill(str(tmp_path / "store"), {"one": reel_file, "two": reel_file})
    needle = reel.needles[0]
    stage = open_reader(store.url)
    (answer,) = ask(stage, None, needle.questions[0].text, find=needle.name)
    assert answer.videos == ["one"] or answer.videos == ["two"]
    assert answer.evidence[0].video in answer.videos
    (whole,) = ask(stage, None, needle.questions[0].text)
    assert whole.videos == ["one", "two"]
    assert whole.skeleton is None


def test_evidence_of_what_fits_is_the_scene_that_is_asked_about(reel_store: Store, reel: Reel) -> None:
    stage = open_reader(reel_store.url)
    hits = 0
    for needle in reel.needles:
        question = f"what happens to the {needle.thing.colour} {needle.thing.shape}?"
        (answer,) = ask(stage, "reel", question)
        assert answer.skeleton is None
        best = answer.evidence[0]
        assert best.score == 1.0
        hits += best.start < needle.end and best.end > needle.start
    assert hits >= len(reel.needles) - 1


def test_the_command(reel_store: Store, reel: Reel, tmp_path: Path, voco: Voco) -> None:
    needle = reel.needles[0]
    asked = ("--find", needle.name, needle.questions[0].text)
    code, out, err = voco("ask", reel_store.url, "reel", *asked, "--evidence", tmp_path / "evidence.png")
    assert code == 0
    assert "[reel " in out
    assert "too long to be read whole: read were reel " in err
    with Image.open(tmp_path / "evidence.png") as sheet:
        assert sheet.width == 960
        colours = sheet.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 100, "with pictures of the source"
    code, out, _ = voco("ask", reel_store.url, "--all", *asked, "--json")
    (answer,) = json.loads(out)["answers"]
    assert (code, {*answer["evidence"][0]}) == (0, {"video", "start", "end", "score"})
    assert answer["skeleton"] == {"every": 0, "tokens": 0, "segments": 0}
    code, _, err = voco("ask", reel_store.url, "reel", "x?", "--evidence", tmp_path / "evidence.txt")
    assert (code, len([line for line in err.splitlines() if "cannot be written" in line])) == (2, 1)


def test_a_store_without_an_index_refuses_as_before(fill: Fill, reel_file: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from vococache.storage import open_store
    from vococache.workers.compress import store_header

    model = vococache.load_model("synthetic")
    url = str(tmp_path / "store")
    open_store(url, "a", header=replace(store_header(model), index=None))
    fill(url, {"reel": reel_file})
    stage = open_reader(url)
    (answer,) = ask(stage, "reel", "what happens to the red circle?")
    assert answer.evidence == []
    stage.model.config.text.max_position_embeddings = 300
    with pytest.raises(ContextLimitError):
        ask(stage, "reel", "what happens to the red circle?")
