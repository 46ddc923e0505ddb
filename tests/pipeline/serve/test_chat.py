"""OpenAI's chat protocol as the official client speaks it, against a service in a process of its own."""

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from tests.pipeline.serve.service import client, hostile_id, serving

from vococache.pipeline import ask as asking
from vococache.pipeline.live import growth
from vococache.pipeline.remote import Service
from vococache.pipeline.search.job import find
from vococache.storage import claims, maintenance, open_store
from vococache.workers.reason import ReasonStage

QUESTIONS = ("what moves?", "how many objects are there?", "is there a circle?", "what happens first?")


def asked(text: str, *urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def create(made: openai.OpenAI, messages: list[dict[str, Any]], **options: Any) -> Any:
    return made.chat.completions.create(model="synthetic", messages=messages, **options)  # type: ignore[call-overload]


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_the_model_stands_in_the_list_with_its_note(openai_client: openai.OpenAI) -> None:
    [model] = openai_client.models.list().data
    assert (model.id, model.owned_by) == ("synthetic", "vococache")
    assert model.voco["store"] == "store"  # type: ignore[attr-defined]
    assert "moving shapes" in model.voco["note"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_what_ask_says_streamed_and_not(
    openai_client: openai.OpenAI, stage: ReasonStage, question: str
) -> None:
    [expected] = asking.ask(stage, "clip-1", question)
    whole = create(openai_client, asked(question, "voco:clip-1"))
    assert whole.choices[0].message.content == expected.answer
    assert whole.choices[0].finish_reason == "stop"
    [span] = whole.voco["segments"]
    assert span == {"video": "clip-1", "start": 0, "stop": 8, "start_time": 0.0, "end_time": 3.5}
    assert set(whole.voco["timings"]) == {"queue", "load", "first_token", "total"}
    assert whole.voco["evidence"] == [asdict(rest) for rest in expected.evidence]
    assert 0 <= whole.voco["timings"]["first_token"] <= whole.voco["timings"]["total"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(openai_client, asked(question, "voco:clip-1"), **options))
    assert text_of(chunks) == expected.answer
    assert chunks[0].voco == {"segments": [span]}
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert set(chunks[-2].voco["timings"]) == set(whole.voco["timings"])
    assert chunks[-2].voco["evidence"] == whole.voco["evidence"]
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens > 8 * 4
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


@pytest.mark.parametrize(
    ("urls", "extra", "windows"),
    [
        (["voco:clip-0#t=1,2"], {}, [("clip-0", 1, 2)]),
        ([], {"video": "clip-0", "start": 1, "end": 2}, [("clip-0", 1, 2)]),
        (["voco:clip-2", "voco:clip-0"], {}, [("clip-2", None, None), ("clip-0", None, None)]),
        (["voco:clip-0#t=,0:01.5"], {"video": ["clip-2"], "start": 3}, [("clip-2", 3, None), ("clip-0", None, 1.5)]),
        (["voco:clip-0#t=2", "voco:clip-0#t=2"], {}, [("clip-0", 2, None)]),
    ],
)
def test_videos_and_windows_are_those_that_were_named(
    openai_client: openai.OpenAI, stage: ReasonStage, urls: list[str], extra: dict[str, Any], windows: list[Any]
) -> None:
    reply = create(openai_client, asked("what moves?", *urls), extra_body=extra)
    spans = [stage.select(*window) for window in windows]
    assert [(span["video"], span["start"], span["stop"]) for span in reply.voco["segments"]] == [
        (span.video, span.start, span.stop) for span in spans
    ]
    [expected] = stage.answer(stage.place(spans, 4), ["what moves?"])
    assert reply.choices[0].message.content == expected.answer


@pytest.mark.parametrize(
    ("extra", "long"),
    [
        ({"video": "clip-1", "find": "a red circle"}, False),
        ({"all": True, "find": "a red circle"}, False),
        ({"all": True}, False),
        ({"all": True}, True),
    ],
)
def test_what_is_found_is_what_ask_finds_and_is_told(
    openai_client: openai.OpenAI, stage: ReasonStage, extra: dict[str, Any], long: bool
) -> None:
    question = "what moves?"
    if long:  # all clips and this question do not fit the model's positions, a window and it do
        words = stage.model.encode_text("what moves? ")
        question = "what moves? " * ((stage.limit - 150) // len(words))
    [expected] = asking.ask(stage, extra.get("video"), question, find=extra.get("find"))
    assert (expected.skeleton is not None) == ("find" in extra or long)
    told = expected.to_dict()
    reply = create(openai_client, asked(question), extra_body=extra)
    assert reply.choices[0].message.content == expected.answer
    assert {**reply.voco, "timings": None} == {
        name: told[name] for name in ("segments", "evidence", "skeleton") if name in told
    } | {"timings": None}
    assert ("find" in reply.voco["timings"]) == ("skeleton" in told)
    first, *_ = create(openai_client, asked(question), extra_body=extra, stream=True)
    assert first.voco == {name: told[name] for name in ("segments", "skeleton") if name in told}
    if long:
        with pytest.raises(openai.BadRequestError, match="segments fit"):
            create(openai_client, asked(question), extra_body=extra | {"whole": True})


def test_earlier_turns_are_history(openai_client: openai.OpenAI, stage: ReasonStage) -> None:
    expected = list(asking.chat(stage, ["clip-3"], iter(QUESTIONS[:3])))
    messages = asked(QUESTIONS[0], "voco:clip-3")
    for question, answer in zip([*QUESTIONS[1:3], None], expected, strict=True):
        reply = create(openai_client, messages)
        assert reply.choices[0].message.content == answer
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]


def test_fewer_tokens_and_sampling_are_those_of_ask(openai_client: openai.OpenAI, stage: ReasonStage) -> None:
    [fewer] = asking.ask(stage, "clip-0", "what moves?", tokens=1)
    assert create(openai_client, asked("what moves?", "voco:clip-0"), extra_body={"tokens": 1}).choices[
        0
    ].message.content == (fewer.answer)
    for seed in range(3):
        [drawn] = asking.ask(stage, "clip-0", "what moves?", temperature=1.5, top_p=0.9, seed=seed)
        sampled = create(openai_client, asked("what moves?", "voco:clip-0"), temperature=1.5, top_p=0.9, seed=seed)
        assert sampled.choices[0].message.content == drawn.answer


def test_a_live_source_is_asked_about_by_the_clock_and_by_its_end(
    service: str, openai_client: openai.OpenAI, stage: ReasonStage, shelf: Path
) -> None:
    """Over the full hour, while it grows; what comes to it can be asked about at once."""
    store, question = open_store(shelf, "a"), "how many objects are there?"
    kv, times, claim = store.read("clip-1"), np.arange(8.0)[:, None] / 2, claims.take(store, "door", "a test")
    parts = [
        growth.GrowingPart(
            video=f"door.2026-11-26T{hour}", live="door", source="", started=started, fps=2.0, chunk_segments=8
        )
        for hour, started in ((17, 1_795_712_400.0 + 3596.0), (18, 1_795_712_400.0 + 3600.0))
    ]

    def asked_of(url: str | None = None, **extra: Any) -> list[tuple[str, int, int]]:
        messages = asked(question, *([] if url is None else [url]))
        reply = create(openai_client, messages, extra_body=extra)
        spans = [(span["video"], span["start"], span["stop"]) for span in reply.voco["segments"]]
        window = {name: extra[name] for name in ("start", "end", "last") if name in extra}
        if window:
            [expected] = asking.ask(stage, extra["video"], question, **window)
            assert reply.choices[0].message.content == expected.answer
        return spans

    try:
        for part in parts:
            growth.begin(store, part, claim)
            growth.write(store, part, kv, times)
        growth.finish(store, parts[0])
        first, second = (part.video for part in parts)
        over_the_hour = [(first, 6, 8), (second, 0, 3)]
        edges = {"start": "2026-11-26T17:59:59Z", "end": "2026-11-26T18:00:01Z"}
        assert asked_of(video="door", **edges) == over_the_hour
        assert asked_of(f"voco:door#t=clock:{edges['start']},{edges['end']}") == over_the_hour
        assert asked_of(f"voco:{first}#t=clock:{edges['start']}") == over_the_hour[:1]
        assert asked_of(video="door", last=2.0) == [(second, 4, 8)]
        remote = Service.at(service, str(shelf))
        assert remote.notes(["door"]) == asking.notes(stage, ["door"])
        [answer] = remote.ask(["door"], [question], **edges)
        assert [(span.video, span.start, span.stop) for span in answer.segments] == over_the_hour
        growth.write(store, parts[1], kv, times + 4.0)
        assert asked_of(video="door", last=2.0) == [(second, 12, 16)]
        found = find(stage, "a circle", videos=["door"], last=2.0, read=False)
        assert found.segments == 4
        assert [(window.video, window.start) for window in found.windows] == [(second, 6.0)]
        for url, reason in (
            ("voco:door#t=60,120", "expected a time such as 17:05"),
            ("voco:door#t=clock:noon", "expected a time such as 17:05"),
            ("voco:door#t=clock:,2001-01-01T00:00Z", "nothing in that window"),
            ("voco:clip-0#t=clock:17:05", "has no clock"),
        ):
            with pytest.raises(openai.BadRequestError, match=reason):
                asked_of(url)
    finally:
        maintenance.remove(store, *(part.video for part in parts if store.find(part.video) is not None))


USER = {"role": "user", "content": "what moves?"}


@pytest.mark.parametrize(
    ("status", "code", "said", "body"),
    [
        (404, "model_not_found", "expected 'synthetic'", {"model": "gpt-4"}),
        (404, "video_not_found", "did you mean 'clip-0'", {"video": "clip-00"}),
        (404, "video_not_found", "failed", {"video": "broken"}),
        (400, "invalid_request", "expected a safe one", {"video": "../../etc/passwd"}),
        (400, "invalid_request", "expected a safe one", {"video": "/etc/passwd"}),
        (400, "invalid_request", "expected a safe one", {"video": "clip-0\0"}),
        (400, "invalid_request", "expected a safe one", {"video": ""}),
        (400, "invalid_request", "no video", {"video": None}),
        (400, "invalid_request", "expected at most 16", {"video": [f"v{n}" for n in range(16)], "parts": ["voco:a"]}),
        (400, "invalid_request", "no video and no window", {"all": True}),
        (400, "invalid_request", "found both", {"find": "a ring", "whole": True}),
        (400, "invalid_request", "search is empty", {"find": " "}),
        (400, "invalid_request", "each video once", {"find": "x", "parts": ["voco:clip-0#t=0,1", "voco:clip-0#t=2"]}),
        (400, "invalid_request", "no segment", {"start": 90}),
        (400, "invalid_request", "after its end", {"start": 2, "end": 1}),
        (400, "invalid_request", "start", {"start": -1}),
        (400, "invalid_request", "expected voco:", {"parts": ["file:///etc/passwd"]}),
        (400, "invalid_request", "expected voco:", {"parts": ["https://example.com/clip.mp4"]}),
        (400, "invalid_request", "expected voco:", {"parts": ["voco:clip-0#t=abc"]}),
        (400, "invalid_request", "expected voco:", {"parts": ["voco:clip-0#t="]}),
        (400, "invalid_request", "keeps 1 to 4 tokens", {"tokens": 9}),
        (400, "invalid_request", "the question is empty", {"messages": [{"role": "user", "content": " "}]}),
        (400, "invalid_request", "at most 16384", {"messages": [{"role": "user", "content": "x" * 16385}]}),
        (400, "context_length_exceeded", "positions", {"messages": [{"role": "user", "content": "é" * 9000}]}),
        (400, "invalid_request", "messages", {"messages": []}),
        (400, "invalid_request", "system text", {"messages": [{"role": "system", "content": "be brief"}, USER]}),
        (400, "invalid_request", "in turn", {"messages": [USER, USER]}),
        (400, "invalid_request", "in turn", {"messages": [USER, {"role": "assistant", "content": "a"}]}),
        (400, "invalid_request", "max_tokens", {"max_tokens": 513}),
        (400, "invalid_request", "max_tokens", {"max_tokens": 0}),
        (400, "invalid_request", "temperature", {"temperature": float("nan")}),
        (400, "invalid_request", "n:", {"n": 2}),
        (400, "invalid_request", "'stop' is not supported", {"stop": ["\n"]}),
        (400, "invalid_request", "'tools' is not supported", {"tools": [{"type": "function"}]}),
        (400, "invalid_request", "'logprobs' is not supported", {"logprobs": True}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_refused_in_openais_form(
    service: str, stream: bool, status: int, code: str, said: str, body: dict[str, Any]
) -> None:
    parts = body.pop("parts", None) if "parts" in body else None
    messages = [USER] if parts is None else asked("what moves?", *parts)
    sent = {"model": "synthetic", "messages": messages, "stream": stream}
    sent |= ({"video": "clip-0"} if parts is None else {}) | body
    if parts is not None:
        body["parts"] = parts
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{service}v1/chat/completions", content=json.dumps(sent), headers=headers, timeout=60)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert str(Path(__file__).parent) not in error["message"]


def test_the_client_raises_its_own_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        create(openai_client, asked("what?", "voco:clip-00"))
    with pytest.raises(openai.BadRequestError, match="expected a safe one"):
        create(openai_client, asked("what?", "voco:..%2F..%2Fetc"), stream=True)


def test_questions_that_wait_together_share_a_pass(service: str, stage: ReasonStage) -> None:
    before = metric(service, "voco_pass_questions_count"), metric(service, "voco_answers_total")
    videos = [f"clip-{number % 4}" for number in range(48)]
    questions = [QUESTIONS[number // 4 % 4] for number in range(48)]
    with client(service) as made, ThreadPoolExecutor(48) as pool:
        replies = list(
            pool.map(
                lambda n: create(made, asked(questions[n], f"voco:{videos[n]}")).choices[0].message.content, range(48)
            )
        )
    expected = [asking.ask(stage, video, text)[0].answer for video, text in zip(videos, questions, strict=True)]
    assert replies == expected
    passes = metric(service, "voco_pass_questions_count") - before[0]
    assert metric(service, "voco_answers_total") - before[1] == 48
    assert passes < 48
    assert metric(service, "voco_questions") == 0


def test_a_hostile_name_is_a_video_like_any_other(openai_client: openai.OpenAI) -> None:
    reply = create(openai_client, [USER], extra_body={"video": hostile_id()})
    assert reply.voco["segments"][0]["video"] == hostile_id()
    url = "voco:" + urllib.request.quote(hostile_id(), safe="")
    assert create(openai_client, asked("what moves?", url)).voco["segments"][0]["video"] == hostile_id()


def long_answer(url: str, tokens: int = 512) -> Any:
    made = client(url)
    return made.chat.completions.create(
        model="model", messages=asked("why?", "voco:clip-0"), max_tokens=tokens, stream=True  # type: ignore[arg-type]
    )  # fmt: skip


def test_past_the_queue_questions_are_refused_and_who_leaves_frees_a_place(slow_shelf: Path) -> None:
    with serving(slow_shelf, "--queue", "2") as (_, url):
        first, second = long_answer(url), long_answer(url)
        assert next(first).choices[0].delta.role == "assistant"
        with pytest.raises(openai.RateLimitError, match="2 questions wait already") as refused:
            long_answer(url)
        assert refused.value.response.headers["retry-after"] == "1"
        first.close()
        second.close()
        until(lambda: metric(url, "voco_questions") == 0)
        assert metric(url, "voco_cancelled_total") == 2
        assert metric(url, "voco_answers_total") == 0
        # A client of a whole answer leaves as well.
        with client(url) as made, pytest.raises(openai.APITimeoutError):
            made.with_options(timeout=0.5).chat.completions.create(
                model="model", messages=asked("why?", "voco:clip-0"), max_tokens=512  # type: ignore[arg-type]
            )  # fmt: skip
        until(lambda: metric(url, "voco_questions") == 0)
        assert metric(url, "voco_cancelled_total") == 3
        assert len(text_of(long_answer(url, 60))) > 10, "the next one is answered"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_was_asked_is_answered(slow_shelf: Path, number: signal.Signals) -> None:
    with serving(slow_shelf) as (child, url):
        stream = long_answer(url, 60)
        next(stream)
        child.send_signal(number)
        finish = [chunk.choices[0].finish_reason for chunk in stream][-1]
        assert finish == "length"
        assert child.wait(60) == 0
        assert child.stderr is not None
        assert child.stderr.read().splitlines()[-1] == "voco: ended"
        with pytest.raises(openai.APIConnectionError):
            client(url).models.list()


@pytest.mark.slow
def test_kill_under_load_leaves_no_request_without_an_end(shelf: Path) -> None:
    """Each is answered, or fails as a lost connection does; none hangs, none gets half an answer as a whole one."""
    with serving(shelf) as (child, url):
        answered: list[str] = []
        failed: list[Exception] = []

        def ask_on() -> None:
            with client(url) as made:
                while not failed or child.poll() is None:
                    try:
                        stream = list(create(made, asked("what moves?", "voco:clip-1"), stream=True))
                        assert stream[-1].choices[0].finish_reason is not None
                        answered.append(text_of(stream))
                    except (openai.APIConnectionError, openai.APIError, httpx.HTTPError) as error:
                        failed.append(error)
                        return

        threads = [threading.Thread(target=ask_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(answered) > 24)
        child.kill()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert len(failed) == 8
        assert set(answered) == {answered[0]}
