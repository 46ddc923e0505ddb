"""Which part of what was read does an answer rest on? Three ways of telling, against what is known of the scenes.

python benchmarks/evidence.py [--needles 30] [--clips 300]

1. Four scenes one after the other, a question about an object that one of them shows: is it that scene's 8 segments?
2. One scene, a question about an event: is it the looks right before and after it? A prior from the text, the mean
   of the same question about other clips, stands beside it.

Ways: the question's queries against the index's keys; half a window left out at a time; the attention of the answer's
tokens, its mean over heads and layers. Of right answers alone. AUC: of pairs, one segment that is true and one that is
not, the share that are in order.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from common import report
from torch import Tensor

from vococache.model import load_model
from vococache.model.cache import PlacedCache, VoCoCache
from vococache.model.finding import index_queries, join_queries, key_scores
from vococache.model.generate import GenerationOptions, generate
from vococache.model.rope import rotate
from vococache.model.voco import VoCoModel
from vococache.pipeline.synthetic.questions import all_questions
from vococache.pipeline.synthetic.reel import make_reel
from vococache.pipeline.synthetic.render import as_recorded
from vococache.pipeline.synthetic.scene import EVENTS, LOOKS, Scene, Thing, make_scene
from vococache.workers.reason import answer_text, question_ids

SCENES = 4
HALF = 4  # segments of half a window
ABOUT_EVENTS = (
    "new_colour", "early_or_late", "which_change", "what_happens", "changing_shape", "changing_colour", "old_colour",
)  # fmt: skip
Scores = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--needles", type=int, default=30)
    parser.add_argument("--clips", type=int, default=300)
    options = parser.parse_args()
    model = load_model("synthetic")
    parts = {"scene of four": scenes(model, options.needles), "event in a scene": events(model, options.clips)}
    rows: list[list[object]] = [["what", "way", "AUC", "best segment is true", "answers"]]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for what, found in parts.items():
        result[what] = {}
        for way, pairs in found.items():
            auc = float(np.mean([area(scores, truth) for scores, truth in pairs]))
            best = float(np.mean([truth[int(np.argmax(scores))] for scores, truth in pairs]))
            result[what][way] = {"auc": round(auc, 4), "best": round(best, 4)}
            rows.append([what, way, f"{auc:.3f}", f"{best:.1%}", len(pairs)])
        chance = float(np.mean([truth.mean() for _, truth in next(iter(found.values()))]))
        rows.append([what, "chance", "0.500", f"{chance:.1%}", ""])
        result[what]["chance"] = {"auc": 0.5, "best": round(chance, 4)}
    report("evidence", rows, {"results": result})


Found = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def scenes(model: VoCoModel, needles: int) -> Found:
    """Scores and truths of questions about one of `SCENES` scenes."""
    reel, random = make_reel(5, 40, needles), Random(0)
    found: Found = defaultdict(list)
    for needle in reel.needles:
        others = random.sample([n for n in range(1, len(reel.scenes)) if n != needle.scene], SCENES - 1)
        order = random.sample([*others, needle.scene], SCENES)
        cache = torch.cat([compress(model, reel.scenes[number]) for number in order])
        truth = np.repeat([number == needle.scene for number in order], len(LOOKS))
        for question in needle.questions:
            for way, scores in ways(model, cache, question.text, question.answer).items():
                found[way].append((scores, truth))
    return found


def events(model: VoCoModel, clips: int) -> Found:
    """Scores and truths of questions about an event, by the looks."""
    found: Found = defaultdict(list)
    templates = []
    for number in range(clips):
        scene = make_scene(f"evidence {number}")
        for thing in scene.things:
            truth = np.array([any(abs(look - at) < 0.3 for at in happens(thing)) for look in LOOKS])
            asked = [q for q in all_questions(scene, Random(number), about=[thing]) if q.template in ABOUT_EVENTS]
            if not truth.any() or not asked:
                continue
            question = Random(number).choice(asked)
            scores = ways(model, compress(model, scene), question.text, question.answer)
            for way, values in scores.items():
                found[way].append((values, truth))
            templates += [question.template] * bool(scores)
    truths = np.array([truth for _, truth in found["keys"]], float)
    for place, template in enumerate(templates):
        others = [n for n, other in enumerate(templates) if other == template and n != place]
        prior = truths[others].mean(0) if others else np.zeros(len(LOOKS))
        found["text alone"].append((prior, truths[place].astype(bool)))
    return found


def happens(thing: Thing) -> list[float]:
    """When something happens to an object, in seconds."""
    if thing.action in EVENTS:
        return [thing.at]
    return [(start + end) / 2 for start, end in thing.hidden]


def compress(model: VoCoModel, scene: Scene) -> Tensor:
    with torch.inference_mode():
        return model.compress(model.pixel_values(as_recorded(scene, LOOKS, model.config.geometry.size)[:, None])).data


def ways(model: VoCoModel, cache: Tensor, text: str, truth: str) -> Scores:
    """Each way's score of each segment; none where the answer is not right."""
    placed = model.place(VoCoCache(cache))
    ids = question_ids(model, text)
    answer = generate(model, placed, [ids], 8, GenerationOptions()).ids[0]
    if answer_text(model, answer) != truth:
        return {}
    layer, heads = model.config.search["layer"], model.config.search["heads"]
    keys = cache[:, layer, 0][:, heads].transpose(1, 2)  # [S, K, G, D]
    query = join_queries(index_queries(model, ids, layer, heads), keys.flatten(0, 1))
    return {
        "keys": key_scores(query, keys.half().numpy()).numpy(),
        "left out": left_out(model, placed, ids, answer, len(cache)),
        "attention": attended(model, placed, ids, answer, len(cache)),
    }


@torch.inference_mode()
def left_out(model: VoCoModel, placed: PlacedCache, ids: Tensor, answer: Sequence[int], segments: int) -> np.ndarray:
    """The log probability that the answer loses without the half windows that a segment lies in, their mean."""
    tokens = placed.prefix // segments
    starts = range(segments - HALF + 1)
    whole = log_probability(model, placed, ids, answer, torch.ones(placed.prefix, dtype=torch.bool))
    lost = []
    for start in starts:
        seen = torch.ones(placed.prefix, dtype=torch.bool)
        seen[start * tokens : (start + HALF) * tokens] = False
        lost.append(whole - log_probability(model, placed, ids, answer, seen))
    return np.array([np.mean(lost[max(0, n - HALF + 1) : n + 1]) for n in range(segments)])


def log_probability(model: VoCoModel, placed: PlacedCache, ids: Tensor, answer: Sequence[int], seen: Tensor) -> float:
    """Of an answer behind the entries that are `seen`, which keep their places."""
    hidden, _ = run(model, placed, ids, answer, seen)
    told = model.logits(hidden[-len(answer) :]).log_softmax(-1)
    return float(told[torch.arange(len(answer)), torch.tensor(answer)].sum())


@torch.inference_mode()
def attended(model: VoCoModel, placed: PlacedCache, ids: Tensor, answer: Sequence[int], segments: int) -> np.ndarray:
    """The attention that the answer's tokens give to each segment."""
    _, weights = run(model, placed, ids, answer, torch.ones(placed.prefix, dtype=torch.bool))
    return weights.view(segments, -1).sum(1).numpy()


def run(
    model: VoCoModel, placed: PlacedCache, ids: Tensor, answer: Sequence[int], seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states [L, E] of question and answer, and the mean weight of each cached entry for the answer's tokens."""
    text = torch.cat((ids, torch.tensor(answer[:-1], dtype=torch.long)))
    length, cached = len(text), placed.prefix
    hidden = model.reading.embed_tokens(text[None])
    angles = model.rope.angles(cached + torch.arange(length), hidden.dtype)
    mask = torch.cat((seen.expand(length, -1), torch.ones(length, length, dtype=torch.bool).tril()), dim=1)
    total = torch.zeros(cached)
    for layer, past in zip(model.reading.layers, placed.buffer[:, :, None, :, :cached], strict=True):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query = rotate(attention.query(normed), angles)
        key = torch.cat((past[0], rotate(attention.key_value(normed)[0], angles)), 2)
        products = (query @ key.transpose(2, 3) * attention.scaling).masked_fill(~mask, float("-inf"))
        total += products.softmax(-1)[0, :, -len(answer) :, :cached].mean((0, 1))

        def extend(new: Tensor, value: Tensor, past: Tensor = past) -> tuple[Tensor, Tensor]:
            return torch.cat((past[0], new), 2), torch.cat((past[1], value), 2)

        hidden, _, _ = layer(hidden, angles, mask=mask, key_values=extend)
    return hidden[0], total


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """AUC over segments."""
    yes, no = scores[truth], scores[~truth]
    return float((yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean())


if __name__ == "__main__":
    main()
