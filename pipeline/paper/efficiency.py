"""The paper's Table 7: an answer's first token without cache, with all vision tokens cached, and with VoCo caches.

Weights and inputs are random (a GPU multiplies zeros faster): time, bytes and FLOPs do not depend on them. Letters as
in `model.voco`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vococache.model.cache import VoCoCache
from vococache.model.compiled import compile_layers
from vococache.model.costs import cache_bytes_per_token, full_attention_flops, read_flops
from vococache.model.decoder import run_layers
from vococache.model.generate import GenerationOptions, generate
from vococache.model.scratch import byte_tokenizer, llava_7b, random_model, small_config
from vococache.model.voco import VoCoModel
from vococache.pipeline.machine import machine
from vococache.pipeline.tables import markdown

SIZES = ("small", "7b")
QUESTION = 40  # tokens: with these the formulas give the paper's FLOPs
SEGMENTS, TOKENS = (1, 16, 64, 256, 1024), (1, 2, 8)
RUNS = 9
MOST_FLOPS = 5e15  # of a run that is repeated to be timed
NONE, ALL, VOCO = "no cache", "full caching", "VoCo"
# The paper's row of one image with one VoCo token, beside ours: reductions against no cache in %.
PAPER = {ALL: {"seconds": 64.8, "flops": 87.5}, VOCO: {"seconds": 69.6, "flops": 94.8, "bytes": 99.8}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one way of answering costs. `seconds` is None where `why` it was not measured.

    `busy_seconds`: in which a GPU computed; for the rest it waited for its next launch.
    """

    method: str
    segments: int
    tokens: int | None  # K; None where all vision tokens are seen
    entries: int  # cached, in front of the question
    cache_bytes: int
    flops: int
    seconds: float | None
    busy_seconds: float | None = None
    why: str = ""


def build(size: str, device: str | None = None) -> VoCoModel:
    """A model with random weights: "7b" (CLIP-L/14 at 336 px, Vicuna-7B) in bfloat16, or a "small" one."""
    config = small_config(byte_tokenizer()) if size == "small" else llava_7b(max(TOKENS))
    config.text.max_position_embeddings = 1 << 20  # beyond what it was trained for: only costs are asked
    config = replace(config, num_voco_tokens=max(TOKENS))
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if size == "small" else torch.bfloat16)
    try:
        with torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")):
            model = random_model(config, seed=0)
    finally:
        torch.set_default_dtype(previous)
    compile_layers(model)
    return model


def measure(
    model: VoCoModel, segments: Sequence[int] = SEGMENTS, tokens: Sequence[int] = TOKENS, runs: int = RUNS
) -> Iterator[Cost]:
    """Costs of the first token of an answer about so many frames, a way at a time."""
    question = torch.arange(QUESTION, device=model.device) % 100 + 3
    for frames in segments:
        config = replace(model.config, frames_per_segment=frames)
        everything = config.stage1_length - config.num_voco_tokens
        yield _measured(model, NONE, frames, None, everything, question, runs)
        yield _measured(model, ALL, frames, None, everything, question, runs)
        for k in tokens:
            yield _measured(model, VOCO, frames, k, frames * k, question, runs)


def _measured(
    model: VoCoModel, method: str, frames: int, k: int | None, entries: int, question: torch.Tensor, runs: int
) -> Cost:
    """One row: `entries` stand in front of the question, computed or cached. No time where memory is lacking."""
    config, length = model.config, len(question)
    bytes_ = entries * cache_bytes_per_token(config, str(model.dtype).removeprefix("torch."))
    if method == NONE:
        flops, cached = full_attention_flops(config, frames=frames, tokens=length).total, 0
    else:
        flops, cached = read_flops(config, entries=entries, tokens=length).total, 1
    cost = Cost(
        method=method, segments=frames, tokens=k, entries=cached * entries, cache_bytes=cached * bytes_, flops=flops,
        seconds=None,
    )  # fmt: skip
    if method == NONE and flops > MOST_FLOPS:
        return replace(cost, why=f"{flops / 1e15:.0f} PFLOPs: minutes a run")
    # Keys and values are there three times: as they come, as one tensor, and rotated. Or else an MLP's inner values.
    inner = 3 * int(config.text.intermediate_size) * model.dtype.itemsize
    needed, free = inner * (entries + length) if method == NONE else 3 * bytes_, _free_bytes(model.device)
    if needed > free:
        return replace(cost, why=f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
    if method == NONE:
        size = config.geometry.size
        pixels = torch.randn(1, frames, 3, size, size, dtype=model.dtype, device=model.device)
        work = partial(token_without_cache, model, pixels, question)
    else:
        shape = (1, config.layers, 2, config.kv_heads, entries, config.head_dim)
        cache = VoCoCache(torch.randn(shape, dtype=model.dtype, device=model.device))
        work = partial(first_token, model, cache, question)
    try:
        seconds = median_seconds(work, model.device, runs)
        return replace(cost, seconds=seconds, busy_seconds=busy_seconds(work, model.device))
    except torch.OutOfMemoryError:
        return replace(cost, why="more memory than there is")


def token_without_cache(model: VoCoModel, pixels: torch.Tensor, question: torch.Tensor) -> int:
    """The first token of an answer, in one forward over pixels [1, F, 3, H, W] and the question: nothing is kept."""
    asked = model.language_model.embed_tokens(question)[None]
    embedded = torch.cat((model.stage1_embeddings(pixels, 0), asked), dim=1)
    angles = model.rope.angles(torch.arange(embedded.shape[1], device=model.device), embedded.dtype)
    layers = model.language_model.layers
    hidden = run_layers(layers, embedded, angles, None, lambda _, key, value: (key, value))
    return int(model.logits(hidden[0, -1:]).argmax())


def first_token(model: VoCoModel, cache: VoCoCache, question: torch.Tensor) -> int:
    """The first token of an answer behind a cache as the store has it: keys are rotated to their positions first."""
    return generate(model, model.place(cache), [question], 1, GenerationOptions(stop_ids=())).ids[0][0]


def _free_bytes(device: torch.device) -> int:
    """Memory that is left on a device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


@torch.inference_mode()
def median_seconds(work: Callable[[], object], device: torch.device, runs: int = RUNS) -> float:
    """Median time of `work` after a warm-up: GPU time by events, else by the clock."""
    seconds: list[float] = []
    for _ in range(runs + 2):
        if device.type == "cuda":
            event: Any = torch.cuda.Event
            stream = torch.cuda.current_stream(device)
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record(stream)
            work()
            end.record(stream)
            torch.cuda.synchronize(device)
            seconds.append(start.elapsed_time(end) / 1000)
        else:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


@torch.inference_mode()
def busy_seconds(work: Callable[[], object], device: torch.device) -> float | None:
    """Time of all kernels and copies of `work` on a GPU, None elsewhere; nothing else may run there."""
    if device.type != "cuda":
        return None
    profile: Any = torch.profiler.profile  # has no types
    with profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize(device)
    kernels = [event for event in profiled.key_averages() if event.device_type.name == "CUDA"]
    return sum(float(event.self_device_time_total) for event in kernels) / 1e6


def table(costs: Sequence[Cost], device: torch.device) -> tuple[str, dict[str, Any]]:
    """Costs as Markdown, reductions against no cache beside them, and as JSON values."""
    head = (
        "segments",
        "method",
        "K",
        "cached entries",
        "cache",
        "time",
        "less time",
        "GPU busy",
        "less",
        "TFLOPs",
        "fewer FLOPs",
        "paper",
    )
    lines = [head]
    for cost in costs:
        base = next(other for other in costs if (other.segments, other.method) == (cost.segments, NONE))
        full = next((o for o in costs if (o.segments, o.method) == (cost.segments, ALL)), None)
        less_bytes = "" if full is None or cost.method != VOCO else f" (-{1 - cost.cache_bytes / full.cache_bytes:.1%})"
        lines.append((
            str(cost.segments), cost.method, "-" if cost.tokens is None else str(cost.tokens), str(cost.entries),
            f"{cost.cache_bytes / 1e6:.3f} MB{less_bytes}",
            cost.why or _milliseconds(cost.seconds),
            _less(cost.seconds, base.seconds), _milliseconds(cost.busy_seconds),
            _less(cost.busy_seconds, base.busy_seconds), f"{cost.flops / 1e12:.4g}", _less(cost.flops, base.flops),
            _paper(cost),
        ))  # fmt: skip
    return f"{markdown(lines)}\n", {
        "device": str(device),
        "costs": [asdict(cost) for cost in costs],
        "machine": machine(),
    }


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f} ms"


def _less(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None or value == base else f"{1 - value / base:.1%}"


def _paper(cost: Cost) -> str:
    """The reductions that the paper found for the same row."""
    if cost.segments != 1 or cost.method not in PAPER or cost.tokens not in (None, 1):
        return ""
    return ", ".join(f"{name} -{value}%" for name, value in PAPER[cost.method].items())
