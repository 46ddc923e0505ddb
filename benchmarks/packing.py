"""Packing: 20 questions on one video in one pass, against the same questions one by one.

`python benchmarks/packing.py`. In memory: no store, so that only the passes are measured. Greedy, no stop token,
so both ways generate the same number of tokens.
"""

import statistics
import time
from collections.abc import Callable

import torch
from common import report

from vococache.model.cache import VoCoCache
from vococache.model.generate import GenerationOptions, generate
from vococache.model.scratch import byte_tokenizer, random_model, small_config

QUESTIONS, SEGMENTS, NEW_TOKENS, RUNS = 20, 256, 16, 5


def main() -> None:
    model = random_model(small_config(byte_tokenizer()), seed=0)
    config = model.config
    shape = (SEGMENTS, config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim)
    cache = VoCoCache(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    choose = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 60, (QUESTIONS,), generator=choose).tolist()
    texts = [torch.randint(3, config.text.vocab_size, (length,), generator=choose) for length in lengths]
    placed = model.place(cache)
    greedy = GenerationOptions(stop_ids=())

    def together() -> list[list[int]]:
        return generate(model, placed, texts, NEW_TOKENS, greedy).ids

    def one_by_one() -> list[list[int]]:
        return [generate(model, placed, [text], NEW_TOKENS, greedy).ids[0] for text in texts]

    same = together() == one_by_one()
    packed, single = alternate(together, one_by_one)
    rows = [
        ("one by one", f"{single * 1000:.0f} ms", f"{QUESTIONS / single:.1f} questions/s"),
        ("one pass", f"{packed * 1000:.0f} ms", f"{QUESTIONS / packed:.1f} questions/s"),
    ]
    result = {"questions": QUESTIONS, "segments": SEGMENTS, "new_tokens": NEW_TOKENS, "same_answers": same}
    result |= {"one_pass_s": packed, "one_by_one_s": single}
    report("packing", rows, result, {"one pass over one by one": single / packed})


def alternate(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, run in turn so that drift of the machine meets both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for function, times in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
