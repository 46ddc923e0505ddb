"""Generation: several questions behind one placed cache or several, in one pass, greedy or sampled.

Letters: B questions, P cached entries, N packed text tokens, A questions in a step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vococache.errors import InputError
from vococache.model.cache import PlacedCache, put
from vococache.model.packing import additive, arrange_behind, pack
from vococache.model.step import next_step, round_up

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel

Watch = Callable[[int, list[int]], bool]  # is told a question's number and its new ids; False ends its answer

# Each look at what was chosen waits for the GPU; between two looks an answer that has ended goes on for nothing.
TOKENS_BETWEEN_LOOKS = {"cuda": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How the next token is chosen. Temperature 0 is greedy; `stop_ids` None means the model's own."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"expected temperature >= 0 and 0 < top_p <= 1, found {self.temperature} and {self.top_p}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """New ids of each question (a stop token included, where one came) and the seconds of both phases."""

    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float


@torch.inference_mode()
def generate(
    model: "VoCoModel",
    placed: PlacedCache,
    questions: Sequence[Tensor],
    max_new_tokens: int | Sequence[int],
    sampling: GenerationOptions,
    *,
    behind: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Generation:
    """Answer `questions` (1-D id tensors, each what follows the last VoCo token) behind one placed cache.

    The questions are packed into one row: the cached entries are held once, and each question's logits are
    those of asking it alone. `max_new_tokens`: of all, or of each. `behind`: where several caches were joined
    (`PlacedCache.join`), the one that each question is about. `watch` is told of new tokens as they come.
    Raises `ContextLimitError` where a question and its answer do not fit.
    """
    count = len(questions)
    limits = [max_new_tokens] * count if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if not questions or any(len(question) == 0 for question in questions) or min(limits) < 1:
        raise InputError("expected at least one question of at least one token, and at least one new token")
    caches = [0] * count if behind is None else list(behind)
    for question, limit, cache in zip(questions, limits, caches, strict=True):
        model.check_length(placed.lengths[cache] + len(question) + limit)
    started = time.perf_counter()
    ids, text = pack(questions, model.device)
    length, longest = placed.prefix + ids.shape[1], max(limits)
    positions, seen = arrange_behind(text, placed.lengths, caches)
    placed.rewind(round_up(length + longest * count, count, model) - placed.prefix)
    slots = torch.arange(placed.prefix, length, device=model.device)
    extend = partial(put, placed.buffer, slots=slots, width=length)
    hidden = model.text_layers(ids, positions, additive(seen, model.dtype), extend)[0]
    placed.length = length
    ends = torch.tensor([len(question) for question in questions], device=model.device).cumsum(0) - 1
    chooser = Chooser(sampling, count)
    stop_ids = model.config.prompt.stop_ids if sampling.stop_ids is None else sampling.stop_ids
    answers = Answers(stop_ids, limits, watch)
    active = list(range(count))
    chosen = chooser.choose(model.logits(hidden[ends]), active)
    going = answers.take([chosen], active)
    prefilled = time.perf_counter()

    # A question's last token has seen all that the question sees.
    step = next_step(model, placed, positions[0, ends] + 1, seen[0, 0, ends])
    made, at_once = 1, TOKENS_BETWEEN_LOOKS.get(model.device.type, 1)
    while going and made < longest:
        if 2 * len(going) <= len(active):  # a few that have ended cost less than another shape
            rows = torch.tensor(going, device=model.device)
            active, chosen = [active[row] for row in going], chosen[rows]
            step = next_step(model, placed, step.positions[rows], step.seen[rows, : placed.length])
        fresh: list[Tensor] = []
        for _ in range(min(at_once, longest - made)):
            if placed.length + len(active) > step.width:
                step = next_step(model, placed, step.positions, step.seen[:, : placed.length])
            chosen = chooser.choose(step(chosen), active)
            fresh.append(chosen)
            placed.length += len(active)
        made += len(fresh)
        going = answers.take(fresh, active)
    return Generation(
        ids=answers.ids, prefill_seconds=prefilled - started, decode_seconds=time.perf_counter() - prefilled
    )


class Answers:
    """The answers so far, each up to its stop token, its limit, or the end that `watch` puts to it."""

    def __init__(self, stop_ids: Sequence[int], limits: Sequence[int], watch: Watch | None = None) -> None:
        self.stop = set(stop_ids)
        self.limits = limits
        self.watch = watch
        self.ids: list[list[int]] = [[] for _ in limits]
        self.unwanted: set[int] = set()

    def take(self, fresh: Sequence[Tensor], active: Sequence[int]) -> list[int]:
        """Add what some steps have chosen for the questions `active`, [A] each; which of these rows still go on?

        Here a GPU is waited for.
        """
        before = {question: len(self.ids[question]) for question in active}
        for tokens in torch.stack(list(fresh)).tolist():
            for question, token in zip(active, tokens, strict=True):
                if not self.ended(question):
                    self.ids[question].append(token)
        if self.watch is not None:
            for question, length in before.items():
                new = self.ids[question][length:]
                if new and not self.watch(question, new):
                    self.unwanted.add(question)
        return [row for row, question in enumerate(active) if not self.ended(question)]

    def ended(self, question: int) -> bool:
        """Has its last token come?"""
        ids = self.ids[question]
        return question in self.unwanted or len(ids) >= self.limits[question] or (bool(ids) and ids[-1] in self.stop)


class Chooser:
    """Chooses the next token of each question, with one random stream per question.

    So a sampled answer does not depend on what else was asked in the same pass.
    """

    def __init__(self, sampling: GenerationOptions, questions: int) -> None:
        self.sampling = sampling
        self.streams = [torch.Generator().manual_seed(sampling.seed) for _ in range(questions)]

    def choose(self, logits_AV: Tensor, active: Sequence[int]) -> Tensor:
        """Token ids [A] from logits [A, V] of the questions `active`."""
        if self.sampling.temperature == 0:
            return logits_AV.argmax(dim=-1)
        probabilities, order = (logits_AV.float() / self.sampling.temperature).softmax(-1).sort(-1, descending=True)
        # The smallest set of tokens whose probability reaches top_p (nucleus sampling, arXiv 1904.09751).
        before = probabilities.cumsum(-1) - probabilities
        nucleus = probabilities.masked_fill(before >= self.sampling.top_p, 0).cpu()
        picks = [
            torch.multinomial(row, 1, generator=self.streams[question])
            for row, question in zip(nucleus, active, strict=True)
        ]
        return order.gather(-1, torch.stack(picks).to(order.device))[:, 0]
