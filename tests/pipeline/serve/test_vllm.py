"""vLLM behind the service: its greedy answers are our reader's, token for token, and nothing that is asked ends it.

Run where `make vllm` has built `.venv-vllm`. An engine starts in half a minute to a minute.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from tests.pipeline.serve.service import client, keep

from vococache.model import load_model
from vococache.model.parts import part_config
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.pipeline import ask as asking
from vococache.storage import open_store
from vococache.workers.compress import store_header
from vococache.workers.reason import ReasonStage
from vococache.workers.vllm.decoder import export_decoder

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make vllm` builds it"),
]

QUESTIONS = ("what moves?", "how many objects are there?", "is there a circle?", "what happens first?")
OPTIONS = ("--enforce-eager", "--block-size", "32")
SMALL = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
}  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **SMALL, **more}


def question(text: str, *videos: str, start: float | None = None, end: float | None = None, **more: Any) -> Any:
    return {"question": text, "videos": list(videos), "start": start, "end": end, "tokens": None} | more


def run_trial(
    store: str, decoder: Path, questions: list[Any], *options: str, salted: bool = True, bad: bool = False, **more: str
) -> dict[str, Any]:
    """`vllm_trial` in a process of its own."""
    out = decoder.parent / "found.json"
    asked = [{"max_new_tokens": 64} | one for one in questions]
    job = {
        "store": store, "decoder": str(decoder), "options": [*OPTIONS, *options], "questions": asked, "salted": salted,
        "bad": bad, "out": str(out),
    }  # fmt: skip
    with (decoder.parent / "log").open("w") as log:
        subprocess.run(
            [PYTHON, ROOT / "tests/pipeline/serve/vllm_trial.py"], input=json.dumps(job), text=True, check=False,
            stdout=log, stderr=log, env=environment(**more), cwd=decoder.parent,
        )  # fmt: skip
    assert out.exists(), (decoder.parent / "log").read_text()[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return found


def expected(stage: ReasonStage, questions: list[Any]) -> list[list[int]]:
    """Our reader's ids, one question at a time."""
    answers = []
    for one in questions:
        context = stage.load(one["videos"], start=one["start"], end=one["end"], tokens=one["tokens"])
        [answer] = stage.answer(context, [one["question"]], max_new_tokens=one.get("max_new_tokens", 64))
        answers.append(answer.ids)
    return answers


def wrong(found: dict[str, Any], right: list[list[int]]) -> int:
    return sum(ids != those for answers in found["answers"] for ids, those in zip(answers, right, strict=True))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "decoder"
    assert export_decoder(load_model("synthetic", device="cpu"), folder)
    return folder


MIXED = [
    question(text, *videos, start=start, end=end, tokens=tokens)
    for (videos, start, end, tokens), text in product(
        [
            (("clip-0",), None, None, None), (("clip-1",), None, None, None), (("clip-2",), 1, 2, None),
            (("clip-3",), 0.5, None, 2), (("clip-0",), None, 1, 1), (("clip-1", "clip-2"), None, None, None),
            (("clip-2", "clip-1"), None, None, None), (("clip-3",), None, None, None),
        ],
        QUESTIONS,
    )
]  # fmt: skip


def test_answers_in_flight_are_ours_and_bad_requests_end_alone(shelf: Path, stage: ReasonStage, decoder: Path) -> None:
    found = run_trial(str(shelf), decoder, MIXED, bad=True)
    assert wrong(found, expected(stage, MIXED)) == 0
    good = found["bad"].pop("its neighbour's salt")
    assert good in ("stop", "length")
    assert set(found["bad"].values()) <= {"error", "VLLMValidationError", "EngineGenerateError"}, found["bad"]


def test_without_the_salt_answers_are_other_videos(shelf: Path, stage: ReasonStage, decoder: Path) -> None:
    found = run_trial(str(shelf), decoder, MIXED, salted=False)
    assert wrong(found, expected(stage, MIXED)) > len(MIXED) / 4


def tiny(folder: Path, clips: Path, family: str, *, compression: str | None = None, **header: Any) -> ReasonStage:
    """A random model of a decoder family with grouped heads, its decoder exported, and its store of four clips."""
    tokenizer = byte_tokenizer()
    config = small_config(tokenizer, width=128)
    text = config.text.to_dict() | {"model_type": family, "num_key_value_heads": 2, "head_dim": 32}
    for name in ("architectures", "sliding_window", "use_sliding_window"):
        text.pop(name, None)
    if family == "mistral":
        text["sliding_window"] = None
    model = random_model(replace(config, text=part_config(text)), seed=2)
    model.tokenizer = tokenizer
    save_pretrained(model, folder / "model")
    options: Any = {} if compression is None else {
        "compression": compression, "prefix_ids": (0, 5, 6), "frames_per_segment": 1, "num_voco_tokens": 2,
    }  # fmt: skip
    made = load_model(folder / "model", device="cpu", **options)
    url = header.pop("url", str(folder / "store"))
    store = open_store(url, "a", header=replace(store_header(made), **header))
    for number in range(4):
        keep(store, made, f"clip-{number}", clips / f"clip-{number}.mp4")
    export_decoder(made, folder / "decoder")
    return ReasonStage(made, open_store(url))


LONG = [
    question(f"{text} {number}", f"clip-{number % 4}", max_new_tokens=60)
    for number, text in enumerate(QUESTIONS * 4)
]  # fmt: skip


def test_qwen_with_few_blocks_and_eight_bits(shelf: Path, tmp_path: Path) -> None:
    stage = tiny(tmp_path, shelf.parent, "qwen2", quantization="int8")
    found = run_trial(
        stage.store.url, tmp_path / "decoder", LONG, "--num-gpu-blocks-override", "40", "--max-model-len", "512"
    )
    assert wrong(found, expected(stage, LONG)) == 0
    assert found["preemptions"] > 0


def test_mistral_over_two_ranks_from_an_object_store(shelf: Path, tmp_path: Path, s3_url: str) -> None:
    stage = tiny(tmp_path, shelf.parent, "mistral", url=f"{s3_url}/vllm")
    found = run_trial(
        stage.store.url, tmp_path / "decoder", LONG, "--tensor-parallel-size", "2", VLLM_CPU_OMP_THREADS_BIND="0|1"
    )
    assert wrong(found, expected(stage, LONG)) == 0


def test_a_prefix_of_its_own_stands_in_front(shelf: Path, tmp_path: Path) -> None:
    stage = tiny(tmp_path, shelf.parent, "llama", compression="cover")
    assert stage.model.config.prefix_entries == 3
    found = run_trial(stage.store.url, tmp_path / "decoder", LONG)
    assert wrong(found, expected(stage, LONG)) == 0


# ---- over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_shelf(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store like the shelf that tests may change."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(shelf, folder / "store")
    return folder / "store"


@contextmanager
def serving(store: Path, decoder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service on vLLM, and its URL."""
    command = ["-c", "from vococache.pipeline.cli import main; main()", "serve", str(store), "--port", "0"]
    options = ["--engine", "vllm", "--model", str(decoder), "--", *OPTIONS]
    with (decoder.parent / "service.log").open("w") as log:
        child = subprocess.Popen(
            [PYTHON, *command, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            process_group=0,
        )
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        assert url.startswith("http://"), (decoder.parent / "service.log").read_text()[-4000:]
        yield child, url
    finally:
        child.terminate()
        child.wait(60)
        child.stdout.close()


@pytest.fixture(scope="module")
def service(own_shelf: Path, decoder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with serving(own_shelf, decoder) as started:
        yield started


def asked(made: openai.OpenAI, text: str, video: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return made.chat.completions.create(model="synthetic", messages=messages, extra_body={"video": video}, **options)


def test_the_service_speaks_as_with_our_own_engine(service: Any, stage: ReasonStage) -> None:
    _, url = service
    with client(url) as made:
        [model] = made.models.list().data
        assert (model.id, model.voco["store"]) == ("synthetic", "store")  # type: ignore[attr-defined]
        for text in QUESTIONS:
            [expected] = asking.ask(stage, "clip-1", text)
            whole = asked(made, text, "clip-1")
            assert whole.choices[0].message.content == expected.answer
            assert whole.choices[0].finish_reason == "stop"
            [span] = whole.voco["segments"]
            assert span == {"video": "clip-1", "start": 0, "stop": 8, "start_time": 0.0, "end_time": 3.5}
            assert set(whole.voco["timings"]) == {"first_token", "total"}
            chunks = list(asked(made, text, "clip-1", stream=True, stream_options={"include_usage": True}))
            parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(parts) == expected.answer
            assert chunks[0].voco == {"segments": [span]}
            assert chunks[-1].usage == whole.usage
        assert asked(made, "what moves?", "clip-1", max_tokens=1).choices[0].finish_reason == "length"
        drawn = {
            asked(made, "what moves?", "clip-1", temperature=1.5, seed=7).choices[0].message.content for _ in range(3)
        }
        assert len(drawn) == 1
    with urllib.request.urlopen(f"{url}metrics") as reply:
        text = reply.read().decode()
    assert "voco_answers_total 1" in text
    assert "vllm:num_requests_running" in text
    with urllib.request.urlopen(f"{url}videos?status=failed") as reply:
        assert [row["id"] for row in json.load(reply)["videos"]] == ["broken"]


def test_what_cannot_be_answered_is_refused_before_vllm(service: Any) -> None:
    _, url = service
    with client(url) as made:
        with pytest.raises(openai.NotFoundError, match="did you mean"):
            asked(made, "what?", "clip-00")
        with pytest.raises(openai.BadRequestError, match="positions"):
            asked(made, "\u00e9" * 9000, "clip-0")
        with pytest.raises(openai.BadRequestError, match="the question is empty"):
            asked(made, " ", "clip-0")
        with pytest.raises(openai.BadRequestError, match="'logprobs' is not supported"):
            asked(made, "what?", "clip-0", logprobs=True)


def test_a_video_that_is_made_again_is_answered_anew(service: Any, own_shelf: Path, shelf: Path) -> None:
    _, url = service
    model, store = load_model("synthetic", device="cpu"), open_store(own_shelf, "a")
    found = []
    with client(url) as made:
        for clip in ("clip-0.mp4", "clip-1.mp4", "clip-2.mp4"):
            keep(store, model, "changing", shelf.parent / clip)
            reader = ReasonStage(model, store)
            for text in QUESTIONS:
                found.append(asked(made, text, "changing").choices[0].message.content)
                assert found[-1] == asking.ask(reader, "changing", text)[0].answer
    assert len(set(found)) > 2


def test_damage_costs_the_video_alone(service: Any, own_shelf: Path, stage: ReasonStage) -> None:
    _, url = service
    chunks = [path for path in (own_shelf / "videos" / "clip-3").rglob("*") if path.is_file()]
    largest = max(chunks, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with client(url) as made, ThreadPoolExecutor(8) as pool:
        damaged = [pool.submit(asked, made, text, "clip-3") for text in QUESTIONS]
        good = [pool.submit(asked, made, text, "clip-2") for text in QUESTIONS]
        for text, reply in zip(QUESTIONS, good, strict=True):
            assert reply.result().choices[0].message.content == asking.ask(stage, "clip-2", text)[0].answer
        for reply in damaged:
            with pytest.raises(openai.InternalServerError, match="is not what was written") as told:
                reply.result()
            assert told.value.code == "video_damaged"


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_who_leaves_frees_a_place_and_sigterm_drains(service: Any) -> None:
    child, url = service
    with client(url) as made:
        before = metric(url, "voco_answers_total")
        streams = [asked(made, text, "clip-1", stream=True) for text in QUESTIONS * 4]
        for stream in streams:
            stream.close()
        until(lambda: metric(url, "voco_questions") == 0 and metric(url, "vllm:num_requests_running") == 0)
        assert metric(url, "voco_cancelled_total") + metric(url, "voco_answers_total") - before == len(streams)
        last = asked(made, "what moves?", "clip-1", stream=True)
        next(last)
        child.terminate()
        assert [chunk.choices[0].finish_reason for chunk in last][-1] == "stop"
    assert child.wait(60) == 0


def test_ctrl_c_drains(own_shelf: Path, decoder: Path) -> None:
    """A terminal tells all processes of its group."""
    with serving(own_shelf, decoder) as (child, url), client(url) as made:
        last = asked(made, "what moves?", "clip-1", stream=True)
        next(last)
        os.killpg(child.pid, signal.SIGINT)
        assert [chunk.choices[0].finish_reason for chunk in last][-1] == "stop"
        assert child.wait(60) == 0


def test_a_service_that_is_killed_leaves_nothing_running(own_shelf: Path, decoder: Path) -> None:
    with serving(own_shelf, decoder) as (child, _):
        theirs = psutil.Process(child.pid).children(recursive=True)
        assert len(theirs) >= 2, "an engine and a worker"
        child.kill()
        until(lambda: not any(process.is_running() and process.status() != "zombie" for process in theirs))
