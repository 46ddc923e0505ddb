"""`voco ask` by a running service, and from a file into a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.serve.service import RUN

from vococache.pipeline.ask import ask, chat
from vococache.workers.reason import ReasonStage

LOADED = """
import sys
from vococache.pipeline.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


# What takes seconds to import, and a question over caches needs none of; the last three are PyTorch's compiler.
NOT_TO_READ = (
    "transformers", "huggingface_hub", "accelerate", "peft", "ray", "av", "decord", "fastapi", "openai",
    "torch._dynamo", "torch.distributed.tensor", "sympy",
)  # fmt: skip


def voco(*arguments: str, code: int = 0, entry: str | None = None, told: str = "") -> subprocess.CompletedProcess[str]:
    command = RUN if entry is None else [sys.executable, "-c", entry]
    done = subprocess.run([*command, *arguments], input=told, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_a_service_answers_and_nothing_is_loaded(service: str, stage: ReasonStage) -> None:
    questions = ["what moves?", "is there a circle?"]
    window = ["--start", "1", "--end", "3", "--tokens", "2"]
    done = voco("ask", "store", "clip-0", *questions, *window, "--server", service, "--json", entry=LOADED)
    expected = ask(stage, "clip-0", questions, start=1, end=3, tokens=2)
    found = json.loads(done.stdout)["answers"]
    assert [answer["answer"] for answer in found] == [answer.answer for answer in expected]
    assert [answer["segments"] for answer in found] == [answer.to_dict()["segments"] for answer in expected]
    assert {*found[0]} == {*expected[0].to_dict()}
    *notes, loaded = done.stderr.splitlines()
    assert not {"torch", "tokenizers", "zarr", *NOT_TO_READ} & {*loaded.split()}
    assert "moving shapes" in notes[0]
    found_first = ["--all", "--find", "a red circle"]
    done = voco("ask", "store", *found_first, questions[0], "--server", service, "--json")
    [answer] = json.loads(done.stdout)["answers"]
    [told] = ask(stage, None, questions[0], find="a red circle")
    assert answer | {"timings": None} == told.to_dict() | {"timings": None}
    assert "moving shapes" in done.stderr


def test_a_question_waits_for_no_more_code_than_reads(shelf: Path, stage: ReasonStage) -> None:
    done = voco("ask", str(shelf), "clip-0", "what moves?", "--json", entry=LOADED)
    [answer], [expected] = json.loads(done.stdout)["answers"], ask(stage, "clip-0", "what moves?")
    assert (answer["answer"], answer["evidence"]) == (expected.answer, expected.to_dict()["evidence"])
    loaded = {*done.stderr.splitlines()[-1].split()}
    assert "torch" in loaded
    assert not {*NOT_TO_READ} & loaded


def test_a_chat_with_a_service_keeps_its_turns(
    service: str, stage: ReasonStage, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setenv("VOCO_SERVER", service)
    questions = ["what moves?", "and what is its colour?"]
    done = voco("ask", "anywhere/store", "clip-0", told="\n".join(questions))
    assert done.stdout.splitlines() == list(chat(stage, ["clip-0"], iter(questions)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["other", "clip-0", "what?"], "serves a store 'store', not 'other'"),
        (["store", "clip-00", "what?"], "did you mean 'clip-0'"),
        (["store", "clip-0", "what?", "--model", "synthetic"], "--model has no effect with --server"),
        (["store", "clip-0", "what?", "--server", "nonsense"], "expected a URL"),
        (["store", "clip-0", "what?", "--server", "http://127.0.0.1:9"], "`voco serve` starts a service"),
        (["store"], "no video"),
        (["store", "--questions", "nothing.jsonl"], "expected --questions FILE with --out FILE"),
        (["store", "--questions", "nothing.jsonl", "--out", "a.csv"], "named *.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    service: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("VOCO_SERVER", service)
    lines = voco("ask", *arguments, code=2).stderr.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.slow
def test_a_file_of_questions_is_answered_and_gone_on_with(shelf: Path, stage: ReasonStage, tmp_path: Path) -> None:
    rows = [
        {"video": f"clip-{n % 3}", "question": text, "id": f"{n}-{text}"}
        for n in range(3)
        for text in ("what moves?", "how many?")
    ]
    rows.append({"video": "broken", "question": "what moves?", "id": "b"})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["ask", str(shelf), "--questions", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "a.jsonl")]
    done = voco(*command, code=1)  # as one video failed
    assert "6 of 7 questions answered" in done.stdout
    assert "broken: decord" in done.stderr
    header, *lines = (tmp_path / "a.jsonl").read_text().splitlines()
    found = {row["id"]: row for row in map(json.loads, lines)}
    for row in rows[:-1]:
        assert found[row["id"]]["raw"] == ask(stage, row["video"], row["question"])[0].answer
    assert (found["b"]["status"], found["b"]["raw"]) == ("failed", "")
    whole = sorted(lines)
    torn = [header, *lines[:2], lines[2][:20]]  # as a kill may leave it
    (tmp_path / "a.jsonl").write_text("\n".join(torn))
    voco(*command, code=1)
    again = (tmp_path / "a.jsonl").read_text().splitlines()[1:]

    def timeless(line: str) -> dict[str, object]:
        return json.loads(line) | {"seconds": 0}

    assert list(map(timeless, sorted(again))) == list(map(timeless, whole))
