"""A service's questions a second and latency with 1, 8 and 64 clients on 1 and on 50 videos, and its memory.

`python benchmarks/serve.py [--questions N] [--vllm PYTHON]`. Beside it in the same run: the same questions in bare
packed passes in this process, and a process a question (`voco ask`). The clients are one process more, on the same
cores. With `--vllm .venv-vllm/bin/python` the service is `voco serve --engine vllm` by that Python.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from common import figure, fill, report

from vococache.model.cache import PlacedCache
from vococache.model.generate import GenerationOptions, generate
from vococache.storage import open_store
from vococache.workers.caches import compress_frames
from vococache.workers.compress import Compressor, store_header
from vococache.workers.reason import ReasonStage, question_ids
from vococache.workers.vllm.decoder import export_decoder

VIDEOS, SEGMENTS, CLIENTS, NEW_TOKENS = (1, 50), 16, (1, 8, 64), 16
PASS = 64  # questions in a bare pass
VOCO = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()"]


def text(number: int) -> str:
    return f"what does the object number {number % 97} do after the circle has left?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=2000, help="of each number of clients and videos")
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python that has vLLM, which then answers")
    options = parser.parse_args()
    asked, engine = options.questions, "own" if options.vllm is None else "vllm"
    model = Compressor(model="synthetic").load("cpu")
    header = store_header(model)
    size = model.config.geometry.size
    frames = np.random.default_rng(0).integers(0, 256, (SEGMENTS, 1, size, size, 3), dtype=np.uint8)
    kv = compress_frames(model, frames, header.micro_batch, header.dtype)
    rows: list[tuple[object, ...]] = [("videos", "way", "questions/s", "median", "99th of 100", "RSS before, after")]
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        stage = ReasonStage(model, open_store(f"{folder}/store", "a", header=header))
        for number in range(max(VIDEOS)):
            fill(stage.store, f"v{number}", np.roll(kv, number, axis=0), header.chunk_segments)
        if options.vllm is not None:
            export_decoder(model, f"{folder}/decoder")
        service = serving(stage.store.url, options.vllm, f"{folder}/decoder")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as load, service as (url, child):
            for videos in VIDEOS:
                bare = bare_pass(stage, videos)
                rows.append((videos, f"bare passes of {PASS}", f"{1 / bare:.0f}"))
                results.append({"videos": videos, "way": "bare pass", "questions_s": 1 / bare})
                figure("serve", **results[-1])
                for clients in CLIENTS:
                    count = max(clients, asked if clients > 1 else asked // 8)
                    load.submit(run_clients, url, clients, videos, clients * 2).result()  # warm
                    before = child.memory_info().rss
                    seconds, latencies = load.submit(run_clients, url, clients, videos, count).result()
                    after = child.memory_info().rss
                    median, last = statistics.median(latencies), float(np.quantile(latencies, 0.99))
                    rows.append(
                        (videos, f"{clients} clients", f"{count / seconds:.0f}", f"{1000 * median:.0f} ms",
                         f"{1000 * last:.0f} ms", f"{before >> 20}, {after >> 20} MiB")
                    )  # fmt: skip
                    results.append(
                        {"videos": videos, "way": f"{clients} clients", "questions_s": count / seconds,
                         "questions": count, "median_s": median, "p99_s": last, "rss": [before, after]}
                    )  # fmt: skip
                    figure("serve", **results[-1])
                name = "service" if engine == "own" else "service on vLLM"
                ratios[f"{name} over bare pass, 64 clients, {videos} videos"] = bare * count / seconds
        alone = process_a_question(stage.store.url)
        rows.append((1, "a process a question", f"{1 / alone:.2f}", f"{1000 * alone:.0f} ms"))
        results.append({"videos": 1, "way": "process", "questions_s": 1 / alone, "median_s": alone})
    report(
        "serve", rows, {"engine": engine, "segments": SEGMENTS, "new_tokens": NEW_TOKENS, "results": results}, ratios
    )


def bare_pass(stage: ReasonStage, videos: int) -> float:
    """Seconds a question in packed passes over caches in memory; the median of seven."""
    placed = [stage.load([f"v{number}"]).placed for number in range(videos)]
    ids = [question_ids(stage.model, text(number)) for number in range(PASS)]
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        joined = placed[0] if videos == 1 else PlacedCache.join(placed)
        behind = [number % videos for number in range(PASS)]
        generate(stage.model, joined, ids, NEW_TOKENS, GenerationOptions(), behind=behind)
        seconds.append((time.perf_counter() - started) / PASS)
    return statistics.median(seconds[1:])


@contextmanager
def serving(store: str, vllm: str | None, decoder: str) -> Iterator[tuple[str, psutil.Process]]:
    """A service in a process of its own, by the Python that has vLLM where there is one."""
    command = [*VOCO, "serve", store, "--port", "0"]
    if vllm is not None:
        command = [vllm, *command[1:], "--engine", "vllm", "--model", decoder, "--", "--enforce-eager"]
    # By default vLLM takes nearly all of a machine's memory for its blocks.
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"VLLM_CPU_KVCACHE_SPACE": "2"} | os.environ
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url, "the service did not start"
        yield url, psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait()


def run_clients(url: str, clients: int, videos: int, count: int) -> tuple[float, list[float]]:
    """`count` questions by so many clients, each with one under way: seconds of all, and of each."""
    return asyncio.run(_run_clients(url, clients, videos, count))


async def _run_clients(url: str, clients: int, videos: int, count: int) -> tuple[float, list[float]]:
    numbers = iter(range(count))
    latencies: list[float] = []
    where = urlsplit(url)

    async def ask_on() -> None:
        # A client that costs little: the cores are shared.
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for number in numbers:
            body = json.dumps(
                {"model": "synthetic", "video": f"v{number % videos}", "max_tokens": NEW_TOKENS,
                 "messages": [{"role": "user", "content": text(number)}]}
            ).encode()  # fmt: skip
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
            started = time.perf_counter()
            writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b" 200 " in reply.splitlines()[0], reply
            await reader.readexactly(int(reply.partition(b"content-length:")[2].split(b"\r\n")[0]))
            latencies.append(time.perf_counter() - started)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask_on() for _ in range(clients)))
    return time.perf_counter() - began, latencies


def process_a_question(store: str) -> float:
    """Seconds of `voco ask`; the median of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        command = [*VOCO, "ask", store, "v0", text(0), "--max-new-tokens", str(NEW_TOKENS)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
