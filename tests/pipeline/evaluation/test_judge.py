"""The judge, against a real HTTP server that answers well, badly, slowly, too often, and with garbage."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vococache.errors import InputError
from vococache.pipeline.cli.command import cli
from vococache.pipeline.evaluation import judge as judging
from vococache.pipeline.evaluation.judge import Judge, VerdictFile, estimate, judge_run, parse_reply, summarise
from vococache.pipeline.evaluation.records import AnswerFile, AnswerRecord

Answer = tuple[int, dict[str, Any] | bytes]


def chat(text: str | None) -> Answer:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


class Server:
    """An endpoint whose `answer` decides from a request's body, and from how often it came, what comes back."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Answer] = lambda body, count: chat('{"pred": "yes", "score": 5}')
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.keys: set[str | None] = set()
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append(body)
                    server.keys.add(self.headers["Authorization"])
                    count = sum(request["messages"] == body["messages"] for request in server.requests)
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    code, reply = server.answer(body, count)
                finally:
                    with lock:
                        server.at_once -= 1
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if code in (429, 500):
                    self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def records(count: int, **changes: Any) -> list[AnswerRecord]:
    known: dict[str, Any] = {
        "type": "",
        "segments": 1,
        "status": "answered",
        "error": None,
        "seconds": 0.0,
        "truth": "dog",
    }
    return [
        AnswerRecord(**{
            "id": str(i), "video": f"v{i // 2}", "question": f"what is {i}?", "raw": "a dog", "prediction": "dog",
            **known, **changes,
        })
        for i in range(count)
    ]  # fmt: skip


def run(server: Server, rows: list[AnswerRecord], out: Path, **changes: Any) -> judging.Judged:
    judge = Judge(url=server.url, model="m", **changes)
    return summarise(judge, rows, judge_run(judge, rows, out, say=lambda line: None))


def test_verdicts_are_counted(server: Server, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> Answer:
        right = any(f"what is {i}?" in body["messages"][1]["content"] for i in (0, 3))
        return chat("{'pred': 'Yes', 'score': 4.5}" if right else '```json\n{"pred": "no", "score": 1}\n```')

    server.answer = answer
    found = run(server, records(5), tmp_path)
    assert found.counts == {"no": 3, "yes": 2}
    assert found.accuracy == found.accuracy_of_judged == 2 / 5
    assert found.score == pytest.approx((2 * 4.5 + 3 * 1) / 5)
    assert server.keys == {"Bearer secret"}
    for body in server.requests:
        assert body["temperature"] == 0
        assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_unanswered_questions_stay_in_the_denominator(server: Server, tmp_path: Path) -> None:
    found = run(server, [*records(2), *records(2, status="missing", raw="")], tmp_path)
    assert found.counts == {"unanswered": 2, "yes": 2}
    assert (found.accuracy, found.accuracy_of_judged) == (0.5, 1.0)
    assert len(server.requests) == 2


def test_garbage_is_asked_again_and_then_reported(server: Server, tmp_path: Path) -> None:
    """Neither a loop for ever nor a silent "no"."""

    def answer(body: dict[str, Any], count: int) -> Answer:
        text = body["messages"][1]["content"]
        if "what is 0?" in text:
            return chat("Certainly! The answer is yes.")
        if "what is 1?" in text:
            return chat(None)
        return chat("sorry" if count == 1 else '{"pred": "no", "score": 0}')

    server.answer = answer
    found = run(server, records(3), tmp_path)
    assert found.counts == {"no": 1, "unparseable": 2}
    assert found.accuracy == 0.0
    assert len(server.requests) == judging.ASKS * 2 + 2
    assert "Certainly" in VerdictFile(tmp_path / judging.VERDICTS).path.read_text()
    server.answer = lambda body, count: chat('{"pred": "yes", "score": 3}')
    assert run(server, records(3), tmp_path).counts == {"no": 1, "yes": 2}, "only those are asked again"


def test_busy_and_broken_servers_are_asked_again(server: Server, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> Answer:
        return ((429, {"error": {}}), (500, {"error": {}}), chat('{"pred": "yes", "score": 5}'))[min(count - 1, 2)]

    server.answer = answer
    assert run(server, records(3), tmp_path).counts == {"yes": 3}


def test_a_server_that_stays_broken_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "RETRIES", 1)
    server.answer = lambda body, count: (500, {"error": {"message": "no"}})
    found = run(server, records(2), tmp_path)
    assert found.counts == {"unreached": 2}
    assert found.accuracy_of_judged is None is found.score
    assert len(server.requests) == 4


def test_a_slow_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "RETRIES", 0)

    def answer(body: dict[str, Any], count: int) -> Answer:
        time.sleep(1.0)
        return chat('{"pred": "yes", "score": 5}')

    server.answer = answer
    assert run(server, records(1), tmp_path, timeout=0.2).counts == {"unreached": 1}


@pytest.mark.parametrize("reply", [b"<html>", b"", b"[]", b'{"choices": []}', b'{"choices": [{}]}'])
def test_a_response_that_is_no_chat(server: Server, tmp_path: Path, reply: bytes) -> None:
    server.answer = lambda body, count: (200, reply)
    (pred,) = run(server, records(1), tmp_path).counts
    assert pred in ("unparseable", "unreached")


@pytest.mark.parametrize("code", [401, 403, 404, 400])
def test_a_refusal_ends_the_run_with_one_line(server: Server, tmp_path: Path, code: int) -> None:
    server.answer = lambda body, count: (code, {"error": {"message": "bad"}})
    with pytest.raises(InputError) as caught:
        run(server, records(50), tmp_path, concurrency=2)
    assert "secret" not in str(caught.value)
    assert len(server.requests) < 20, "the others are not tried"


def test_no_server_at_all_ends_the_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "RETRIES", 0)
    rows = records(50)
    judge = Judge(url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(InputError, match=r"^judge http://127.0.0.1:9/v1 cannot be reached: "):
        judge_run(judge, rows, tmp_path, say=lambda line: None)
    run(server, rows[:1], tmp_path)
    file = judge_run(judge, rows[:2], tmp_path, say=lambda line: None)
    assert summarise(judge, rows[:2], file).counts == {"unreached": 1, "yes": 1}, "it was there a moment ago"


def test_verdicts_are_kept(server: Server, tmp_path: Path) -> None:
    run(server, records(4), tmp_path)
    with (tmp_path / judging.VERDICTS).open("a") as file:
        file.write('{"key": "torn')
    assert run(server, records(5), tmp_path).counts == {"yes": 5}
    assert len(server.requests) == 5, "four were known"
    run(server, records(5), tmp_path, prompt=judging.PROMPT + "Be strict.")
    assert len(server.requests) == 10, "another prompt is another judge"
    same = [*records(1), *records(1)]
    run(server, same, tmp_path / "..", prompt=judging.PROMPT)
    assert len(server.requests) == 11, "a question that comes twice is judged once"


def test_one_request_that_is_refused_costs_itself_alone(server: Server, tmp_path: Path) -> None:
    run(server, records(1), tmp_path)
    server.answer = lambda body, count: (
        (400, {"error": {"message": "too bad"}}) if "what is 1?" in str(body) else chat('{"pred": "no", "score": 0}')
    )
    assert run(server, records(3), tmp_path).counts == {"no": 1, "unreached": 1, "yes": 1}


def test_a_call_that_hangs_holds_up_no_other_verdict(server: Server, tmp_path: Path) -> None:
    over, released = threading.Event(), list[bool]()

    def answer(body: dict[str, Any], count: int) -> Answer:
        if "what is 0?" in str(body):  # the first of all
            released.append(over.wait(30))
        return chat('{"pred": "yes", "score": 5}')

    server.answer = answer
    kept: list[int] = []

    def update(done: int, total: int) -> None:
        kept.append(len(VerdictFile(tmp_path / judging.VERDICTS).known))
        if done == total - 1:
            over.set()

    judge = Judge(url=server.url, model="m", concurrency=2)
    judge_run(judge, records(4), tmp_path, say=lambda line: None, on_progress=update)
    assert released == [True], "the others were done before it"
    assert len(kept) == 4
    assert all(known >= done for done, known in enumerate(kept, 1))


def test_calls_at_once_are_limited(server: Server, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> Answer:
        time.sleep(0.05)
        return chat('{"pred": "yes", "score": 5}')

    server.answer = answer
    run(server, records(12), tmp_path, concurrency=3)
    assert server.most_at_once == 3


def test_the_estimate_comes_before_the_first_call(server: Server, tmp_path: Path) -> None:
    lines: list[tuple[str, int]] = []
    judge = Judge(url=server.url, model="m")
    judge_run(
        judge, records(3), tmp_path, say=lambda line: lines.append((line, len(server.requests))), price=(1e6, 0.0)
    )
    tokens = estimate(judge, records(3)).tokens_in
    assert lines == [
        (f"judge m: 3 calls, about {tokens:,} tokens in and 96 out: {tokens:.2f} in the price's currency", 0)
    ]
    judge_run(judge, records(9), tmp_path, say=lambda line: None, dry_run=True)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"pred": "yes", "score": 5}', ("yes", 5.0)),
        ("{'pred': 'no', 'score': 0}", ("no", 0.0)),
        ('{"pred": "YES ", "score": 4.8}', ("yes", 4.8)),
        ('```python\n{"pred": "no", "score": 2}\n```', ("no", 2.0)),
        ('{"pred": "yes"}', None),
        ('{"pred": "yes", "score": "5"}', None),
        ('{"pred": "yes", "score": true}', None),
        ('{"pred": "yes", "score": 6}', None),
        ('{"pred": "yes", "score": NaN}', None),
        ('{"pred": "maybe", "score": 3}', None),
        ('{"pred": 1, "score": 3}', None),
        ('{"pred": "yes", "score": 3, "why": ""}', None),
        ("yes", None),
        ("['yes', 5]", None),
        ("{'pred': 'yes', 'score': 5} and more", None),
        ("__import__('os').system('true')", None),
        ("(" * 5000, None),
        ("[" * 100_000, None),
        ('{{"pred": "yes", "score": 5}}', None),
        ("", None),
    ],
)
def test_replies(text: str, expected: tuple[str, float] | None) -> None:
    assert parse_reply(text) == expected


def test_prompts(tmp_path: Path) -> None:
    judge = Judge(url="", model="", prompt="Q {question} A {answer} P {prediction} {x}")
    (row,) = records(1, raw="{question} {answer}")
    assert judge.messages(row) == [{"role": "user", "content": "Q what is 0? A dog P {question} {answer} {x}"}]
    with pytest.raises(InputError, match=r"lacks \{answer\}"):
        Judge(url="", model="", prompt="{question} {prediction}")
    with pytest.raises(InputError, match="cannot be read"):
        judging.read_prompt(tmp_path)
    assert judging.read_prompt(None) == judging.PROMPT


def test_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        judge_run(Judge(url="http://127.0.0.1:9/v1", model="m"), records(1), tmp_path, say=lambda line: None)


def test_the_command(server: Server, tmp_path: Path) -> None:
    """Judge a run, tell what came of it, and report it."""
    settings = {"data_set": "msvd-qa", "split": "test", "questions": 4, "annotations": ""}
    AnswerFile(tmp_path / "answers.jsonl", settings, {}).commit(records(4))
    judge = ["eval", "judge", str(tmp_path), "--judge-model", "m", "--judge-url", server.url]
    dry = CliRunner().invoke(cli, [*judge, "--dry-run", "--price", "1", "2"], standalone_mode=False)
    assert (dry.return_value, server.requests) == (0, [])
    done = CliRunner().invoke(cli, judge, standalone_mode=False)
    assert done.return_value == 0
    assert "4 yes" in done.output
    told = CliRunner().invoke(cli, ["eval", "report", str(tmp_path), "--judge-model", "m"])
    assert "this run, judge m" in told.output
    server.answer = lambda body, count: chat("maybe")
    again = CliRunner().invoke(cli, [*judge[:4], "other", *judge[5:]], standalone_mode=False)
    assert again.return_value == 1
    assert "4 unparseable" in again.output
