"""Generation: several questions behind one placed cache, in one pass, greedy or sampled.

Letters: B questions, P cached entries, N packed text tokens, A questions still going.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vococache.errors import InputError
from vococache.model.cache import PlacedCache
from vococache.model.packing import arrange, pack
from vococache.model.voco import VoCoModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
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
    model: VoCoModel,
    placed: PlacedCache,
    questions: Sequence[Tensor],
    max_new_tokens: int,
    sampling: Sampling,
) -> Generation:
    """Answer `questions` (1-D id tensors, each what follows the last VoCo token) behind one placed cache.

    The questions are packed into one row: the cached entries are held once, and each question's logits are
    those of asking it alone. Raises `ContextLimitError` where a question and its answer do not fit.
    """
    if not questions or any(len(question) == 0 for question in questions) or max_new_tokens < 1:
        raise InputError("expected at least one question of at least one token, and at least one new token")
    model.check_length(placed.prefix + max(len(question) for question in questions) + max_new_tokens)
    started = time.perf_counter()
    ids, text = pack(questions, model.device)
    packed, mask = arrange(text, torch.tensor([placed.prefix], device=model.device), placed.prefix)
    placed.rewind(ids.shape[1] + max_new_tokens * len(questions))
    hidden = model.text_layers(ids, packed, mask, placed.append)[0]
    placed.length += ids.shape[1]
    ends = torch.tensor([len(question) for question in questions], device=model.device).cumsum(0) - 1
    chooser = Chooser(sampling, len(questions))
    active = torch.arange(len(questions), device=model.device)
    chosen = chooser.choose(model.logits(hidden[ends]), active)
    new_ids = [[token] for token in chosen.tolist()]
    prefilled = time.perf_counter()

    stop = set(model.config.prompt.stop_ids if sampling.stop_ids is None else sampling.stop_ids)
    owner, positions = text[0] - 1, packed[0, ends] + 1
    for _ in range(max_new_tokens - 1):
        going = torch.tensor([new_ids[question][-1] not in stop for question in active.tolist()], device=model.device)
        active, chosen, positions = active[going], chosen[going], positions[going]
        if len(active) == 0:
            break
        owner = torch.cat((owner, active))
        mask = active[:, None] == owner[None, :]
        mask = torch.cat((mask.new_ones(len(active), placed.prefix), mask), dim=1)
        hidden = model.text_layers(chosen[None], positions[None], mask, placed.append)[0]
        placed.length += len(active)
        chosen = chooser.choose(model.logits(hidden), active)
        for question, token in zip(active.tolist(), chosen.tolist(), strict=True):
            new_ids[question].append(token)
        positions = positions + 1
    return Generation(ids=new_ids, prefill_seconds=prefilled - started, decode_seconds=time.perf_counter() - prefilled)


class Chooser:
    """Chooses the next token of each question, with one random stream per question.

    So a sampled answer does not depend on what else was asked in the same pass.
    """

    def __init__(self, sampling: Sampling, questions: int) -> None:
        self.sampling = sampling
        self.streams = [torch.Generator().manual_seed(sampling.seed) for _ in range(questions)]

    def choose(self, logits_AV: Tensor, active: Tensor) -> Tensor:
        """Token ids [A] from logits [A, V] of the questions `active` [A]."""
        if self.sampling.temperature == 0:
            return logits_AV.argmax(dim=-1)
        probabilities, order = (logits_AV.float() / self.sampling.temperature).softmax(-1).sort(-1, descending=True)
        # The smallest set of tokens whose probability reaches top_p (nucleus sampling, arXiv 1904.09751).
        before = probabilities.cumsum(-1) - probabilities
        nucleus = probabilities.masked_fill(before >= self.sampling.top_p, 0).cpu()
        picks = [
            torch.multinomial(row, 1, generator=self.streams[question])
            for row, question in zip(nucleus, active.tolist(), strict=True)
        ]
        return order.gather(-1, torch.stack(picks).to(order.device))[:, 0]
