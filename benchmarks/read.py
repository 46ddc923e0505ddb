"""Time to first token and per token behind 1 to 1,024 segments, of 1 to 32 questions at once, beside the floor.

`python benchmarks/read.py [--size 7b|small] [--device cuda|cpu]`. The floor of a decoding step is its bytes, weights
and cached entries, over the memory's rate; that of a first token is the same text without a video.
"""

import statistics
from functools import partial

import torch
from common import figure, memory_rate, random_model_of, report

from vococache.model.cache import PlacedCache, VoCoCache
from vococache.model.costs import cache_bytes_per_token
from vococache.model.generate import Generation, GenerationOptions, generate
from vococache.model.voco import VoCoModel
from vococache.pipeline.paper.efficiency import QUESTION, RUNS, median_seconds

SEGMENTS, QUESTIONS, NEW = (1, 64, 256, 1024), (1, 8, 32), 33


def main() -> None:
    size, model = random_model_of(__doc__)
    config = model.config
    rate = memory_rate(model.device)
    weights = sum(p.nbytes for part in (model.language_model.layers, model.lm_head) for p in part.parameters())
    entry = cache_bytes_per_token(config, str(model.dtype).removeprefix("torch."))
    alone = first_seconds(model, model.place(model.empty_cache()), 1)
    rows: list[tuple[object, ...]] = [
        ("segments", "questions", "first token", "over text alone", "a token", "over floor")
    ]
    found: list[dict[str, float]] = []
    for segments in SEGMENTS:
        shape = (segments, config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim)
        placed = model.place(VoCoCache(torch.randn(shape, dtype=model.dtype, device=model.device)))
        for questions in QUESTIONS:
            first = first_seconds(model, placed, questions)
            token = token_seconds(model, placed, questions)
            floor = (weights + entry * (placed.prefix + questions * (QUESTION + NEW // 2))) / rate
            rows.append((
                segments, questions, f"{1000 * first:.2f} ms", f"{first / alone:.2f}",
                f"{1000 * token:.2f} ms", f"{token / floor:.2f}",
            ))  # fmt: skip
            found.append({"segments": segments, "questions": questions, "first_s": first, "token_s": token,
                          "floor_s": floor})  # fmt: skip
            figure("read", **found[-1])
    rows.append((f"memory: {rate / 1e9:.4g} GB/s; text alone: {1000 * alone:.2f} ms",))
    result = {"size": size, "device": str(model.device), "memory_gb_s": rate / 1e9, "text_alone_s": alone}
    short = found[0]
    ratios = {
        "text alone over first token": alone / short["first_s"],
        "floor over a token": short["floor_s"] / short["token_s"],
    }
    report("read", rows, result | {"rows": found}, ratios)


def first_seconds(model: VoCoModel, placed: PlacedCache, questions: int) -> float:
    """Seconds to the first tokens of so many questions in one pass."""
    return median_seconds(partial(answers, model, placed, questions, 1), model.device)


def token_seconds(model: VoCoModel, placed: PlacedCache, questions: int) -> float:
    """Seconds of each later token of so many questions in one pass."""
    runs = [answers(model, placed, questions, NEW).decode_seconds for _ in range(RUNS + 2)][2:]
    return statistics.median(runs) / (NEW - 1)


def answers(model: VoCoModel, placed: PlacedCache, questions: int, new: int) -> Generation:
    """`new` tokens for each of so many questions."""
    texts = [torch.arange(QUESTION, device=model.device) % 100 + 3 + number for number in range(questions)]
    return generate(model, placed, texts, new, GenerationOptions(stop_ids=()))


if __name__ == "__main__":
    main()
