"""vLLM behind the service: its greedy answers are our reader's, token for token, and nothing that is asked ends it.

Run where `make vllm` has built `.venv-vllm`. An engine starts in half a minute to a minute.
"""

import json
import os
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.serve.service import keep

from vococache.model import load_model
from vococache.model.checkpoints import save_pretrained
from vococache.model.config import hf_config
from vococache.model.scratch import byte_tokenizer, random_model, small_config
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
    model = random_model(replace(config, text=hf_config(text)), seed=2)
    model.tokenizer = tokenizer
    save_pretrained(model, folder / "model")
    prefix = None if compression is None else (0, 5, 6)
    made = load_model(folder / "model", compression=compression, prefix_ids=prefix, device="cpu")
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
