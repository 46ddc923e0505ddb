"""An engine of vLLM's over a store, asked directly; run by the Python that has it.

Reads a JSON object from the standard input and writes one to the file that it names as `out`: the ids of each answer,
how the bad requests among the questions ended, and how often a request was preempted.
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from vococache.pipeline.serve import vllm
from vococache.pipeline.serve.contexts import Window
from vococache.pipeline.serve.engine import Event, Question
from vococache.pipeline.serve.vllm import VllmEngine, segments, vllm_engine
from vococache.workers.vllm.requests import PARAMS


async def answer(engine: VllmEngine, asked: dict[str, Any]) -> list[int]:
    """The ids of a question's answer."""
    windows = tuple(Window(video, asked["start"], asked["end"]) for video in asked["videos"])
    question = Question(
        windows=windows, question=asked["question"], tokens=asked["tokens"], max_new_tokens=asked["max_new_tokens"]
    )
    checked = await asyncio.to_thread(engine.check, question)
    events: asyncio.Queue[Event] = asyncio.Queue()
    engine.submit(checked, events.put_nowait, streamed=False)
    event = await events.get()
    if isinstance(event, Exception):
        raise event
    return event.ids


async def bad(engine: VllmEngine, video: str) -> dict[str, str]:
    """How requests end that no client of ours can send."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    checked = await asyncio.to_thread(engine.check, Question(windows=(Window(video),), question="what moves?"))
    good, text = segments(checked).to_params(), checked.ids.tolist()
    front = [engine.placeholder] * checked.entries
    far = {PARAMS: good[PARAMS] | {"parts": [[*good[PARAMS]["parts"][0][:3], 20]]}}
    old = {PARAMS: good[PARAMS] | {"parts": [[video, "0" * 64, *good[PARAMS]["parts"][0][2:]]]}}
    requests: dict[str, tuple[list[int], dict[str, Any], dict[str, Any]]] = {
        "one token": ([engine.placeholder], good, {}),
        "no text": (front, good, {}),
        "too many placeholders": ([*front, engine.placeholder, *text], good, {}),
        "too few placeholders": (front[1:] + text, good, {}),
        "prompt log-probabilities": (front + text, good, {"prompt_logprobs": 1}),
        "no parts": (front + text, {PARAMS: {"parts": [], "tokens": 4}}, {}),
        "nonsense": (front + text, {PARAMS: 3}, {}),
        "segments that are not there": ([engine.placeholder] * (20 * 4) + text, far, {}),
        "a video that was made again": (front + text, old, {}),
        "its neighbour's salt": (front + text, good, {"cache_salt": "x"}),
    }

    async def ends(ids: list[int], params: dict[str, Any], more: dict[str, Any]) -> str:
        salt = more.pop("cache_salt", None)
        sampling = SamplingParams(max_tokens=4, temperature=0, extra_args={"kv_transfer_params": params}, **more)
        prompt = tokens_input(ids) | ({} if salt is None else {"cache_salt": salt})
        reason = "none"
        try:
            async for output in engine.client.generate(prompt, sampling, uuid.uuid4().hex):
                reason = str(output.outputs[0].finish_reason)
        except Exception as error:
            return type(error).__name__
        return reason

    ended = await asyncio.gather(*(ends(*request) for request in requests.values()))
    return dict(zip(requests, ended, strict=True))


async def trial(engine: VllmEngine, job: dict[str, Any]) -> dict[str, Any]:
    """All questions in flight together, twice, with the bad requests among them."""
    found: dict[str, Any] = {"answers": []}
    for _ in range(2):
        asked = [asyncio.create_task(answer(engine, question)) for question in job["questions"]]
        if job["bad"]:
            found["bad"] = await bad(engine, job["questions"][0]["videos"][0])
        found["answers"].append(await asyncio.gather(*asked))
    found["preemptions"] = sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:num_preemptions_total"
    )
    return found


def main() -> None:
    job = json.load(sys.stdin)
    if not job["salted"]:
        vllm.CONNECTOR = {"kv_connector": "Unsalted", "kv_connector_module_path": "tests.pipeline.serve.vllm_unsalted"}
    engine = vllm_engine(job["store"], job["decoder"], options=job["options"])
    try:
        found = asyncio.run(trial(engine, job))
    finally:
        engine.stop()
    with Path(job["out"]).open("w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
