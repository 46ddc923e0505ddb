"""One decoding step of several questions at once, in shapes that stay: a GPU records it once and replays it.

Operation by operation, a step of a 7B model is about 500 kernels, and a GPU waits for their launches longer than it
computes. So what changes from token to token lies in tensors that stay where they are, and a step looks at more entries
than there are yet: those still to come are masked.

Letters: A questions, W entries that the step looks at, G key-value heads, D head dimension, V vocabulary.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vococache.model.cache import PlacedCache, put
from vococache.model.packing import additive

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel

# Steps of the same shape, by device: a recording must pay. Elsewhere masked entries would only cost.
SAME_SHAPE = {"cuda": 64}
WARM_UPS = 2  # steps before the recording, which may not meet anything that is done only once


class DecodingStep:
    """Reads one new token of each of A questions, within the first W entries of a placed cache."""

    def __init__(self, model: "VoCoModel", placed: PlacedCache, questions: int, width: int) -> None:
        # Not the placed cache, which keeps its steps: in a circle its memory would outlive it.
        self.model, self.buffer, self.width = model, placed.buffer, width
        self.ids = torch.zeros(questions, dtype=torch.long, device=model.device)
        self.positions = torch.zeros_like(self.ids)
        self.slots = torch.zeros_like(self.ids)  # where in the cache the new entries go
        self.seen = torch.zeros(questions, width, dtype=torch.bool, device=model.device)
        self.runs = 0
        self.recorded: Any = None

    def start(self, positions: Tensor, seen: Tensor) -> None:
        """Go on with tokens at `positions` [A], each behind the entries that are `seen` [A, entries so far]."""
        length = seen.shape[1]
        self.positions.copy_(positions)
        torch.arange(length, length + len(self.ids), out=self.slots)
        self.seen[:, :length] = seen
        self.seen[:, length:] = False

    def __call__(self, ids: Tensor) -> Tensor:
        """The logits [A, V] behind the tokens `ids` [A]; valid until the next call."""
        self.ids.copy_(ids)
        if ids.is_cuda and self.runs == WARM_UPS:
            self.record()
        if self.recorded is None:
            self.logits = self.run()
        else:
            self.recorded.replay()
        self.runs += 1
        return self.logits

    def record(self) -> None:
        """Record what `run` launches; nothing is computed yet."""
        self.recorded = torch.cuda.CUDAGraph()
        # What other threads do on the GPU meanwhile is no part of it, and no error.
        with torch.cuda.graph(self.recorded, capture_error_mode="thread_local"):
            self.logits = self.run()

    def run(self) -> Tensor:
        """A step, all of it on the device: nothing is waited for."""
        self.seen.scatter_(1, self.slots[:, None], True)
        extend = partial(put, self.buffer, slots=self.slots, width=self.width)
        mask = additive(self.seen, self.model.dtype)
        hidden = self.model.text_layers(self.ids[None], self.positions[None], mask, extend)[0]
        self.positions += 1
        self.slots += len(self.ids)
        return self.model.logits(hidden)


def next_step(model: "VoCoModel", placed: PlacedCache, positions: Tensor, seen: Tensor) -> DecodingStep:
    """The step that goes on with so many questions (`DecodingStep.start`), one recorded earlier where there is one."""
    questions = len(positions)
    shape = (questions, min(round_up(placed.length + questions, questions, model), placed.capacity))
    step: DecodingStep = placed.steps.get(shape) or DecodingStep(model, placed, *shape)
    if model.device.type in SAME_SHAPE:
        placed.steps[shape] = step
    step.start(positions, seen)
    return step


def round_up(entries: int, questions: int, model: "VoCoModel") -> int:
    """Entries that a step looks at for `entries` that it needs."""
    block = questions * SAME_SHAPE[model.device.type] if model.device.type in SAME_SHAPE else 1
    return -(-entries // block) * block
