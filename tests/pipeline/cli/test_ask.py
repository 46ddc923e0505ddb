"""`voco ask`: what it prints, and what it takes for a video."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.clips import make_clip
from tests.pipeline.command import Voco
from tests.pipeline.stages import fill_store

import vococache


def test_ask_json_is_the_contract(voco: Voco, store: Path) -> None:
    result = voco("ask", store, "plain", "What?", "Who?", "--start", 1, "--end", 3, "--max-new-tokens", 3, "--json")
    assert result.code == 0
    answers = result.json["answers"]
    assert [answer["question"] for answer in answers] == ["What?", "Who?"]
    assert set(answers[0]) == {"question", "answer", "videos", "segments", "timings", "evidence"}
    assert answers[0]["segments"] == [{"video": "plain", "start": 1, "stop": 4, "start_time": 1.0, "end_time": 3.0}]
    assert set(answers[0]["timings"]) == {"load", "prefill", "decode"}
    assert "only synthetic clips" in result.err, "the embedded model says what it is"
    assert "'plain' was sampled with fps 1, the model was made for fps 2" in result.err


def test_answers_need_no_video_file(voco: Voco, clips: Path, tmp_path: Path) -> None:
    clip = Path(shutil.copy(clips / "plain.mp4", tmp_path / "gone.mp4"))
    fill_store(str(tmp_path / "store"), {"gone": clip})
    clip.unlink()
    first = voco("ask", tmp_path / "store", "gone", "What?", "--max-new-tokens", 4)
    assert first.code == 0
    assert voco("ask", tmp_path / "store", "gone", "What?", "--max-new-tokens", 4).out == first.out, "deterministic"


def test_ask_about_several_videos_and_fewer_tokens(voco: Voco, store: Path) -> None:
    arguments = ("ask", store, "plain", "--video", "offset", "What?", "--max-new-tokens", 2, "--json")
    answer = voco(*arguments, "--tokens", 1).json["answers"][0]
    assert answer["videos"] == ["plain", "offset"]
    assert [span["video"] for span in answer["segments"]] == ["plain", "offset"]


def test_chat_reads_questions_until_the_end(
    voco: Voco, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "questions").write_text("What?\nAnd then?\n")
    with (tmp_path / "questions").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        result = voco("ask", store, "plain", "--max-new-tokens", 3, "--json")
    assert result.code == 0
    assert [list(json.loads(line)) for line in result.out.splitlines()] == [["answer"], ["answer"]]


def test_a_path_stands_for_the_id_it_got(voco: Voco, store: Path, clips: Path) -> None:
    assert voco("ask", store, clips / "plain.mp4", "What?", "--max-new-tokens", 1).code == 0


def test_a_model_that_did_not_make_the_store_is_refused(voco: Voco, store: Path, other_model: Path) -> None:
    result = voco("ask", store, "plain", "What?", "--model", other_model)
    assert result.code == 2
    assert "made by another compressor" in result.err


@pytest.mark.slow
def test_a_video_path_with_odd_characters_is_asked_by_the_id_that_ls_tells(
    voco: Voco, tmp_path: Path, local_ray: None
) -> None:
    make_clip(tmp_path / "a 'b' ü\n.mp4", frames=5)
    vococache.ingest(str(tmp_path), str(tmp_path / "store"))
    (row,) = json.loads(voco("ls", tmp_path / "store", "--json").out)
    assert voco("ask", tmp_path / "store", row["id"], "What?", "--max-new-tokens", 1).code == 0
