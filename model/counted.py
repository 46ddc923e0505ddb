"""A training step counted on tensors without storage: what it computes and holds at any size, on any machine.

The step is the real one, in bfloat16 with the kernels' shapes that a GPU would be given. Gradients are dropped as soon
as they are whole, as sharding does; what is not counted: weights, their optimizer, allocators, workspaces of kernels.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vococache.model.config import VoCoConfig
from vococache.model.objective import Objective
from vococache.model.training_costs import TrainingStep
from vococache.model.voco import VoCoModel

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """FLOPs of a step; bytes beside the weights at its peak, and between its forward and backward pass."""

    flops: int
    peak_bytes: int
    kept_bytes: int


def count_step(config: VoCoConfig, step: TrainingStep, *, checkpointing: bool) -> Counted:
    """A step in which all but the vision tower learns."""
    with META:
        model = VoCoModel(config)
    model.to(torch.bfloat16).requires_grad_(True)
    model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing = checkpointing
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
    side, labelled = config.geometry.size, step.labels // step.rows
    ids = torch.zeros(step.rows, step.text, dtype=torch.long)
    labels = ids.masked_fill(torch.arange(step.text) < step.text - labelled, -100)
    frames = torch.zeros(step.segments, config.frames_per_segment, side, side, 3, dtype=torch.uint8)

    def loss() -> Tensor:
        segments = [step.segments // step.rows] * step.rows
        out: Tensor = Objective(model).train()(ids, torch.ones_like(ids), labels, segments, frames=frames)["loss"]
        return out

    with _flash(), FlopCounterMode(display=False) as flops:
        torch.autograd.backward(loss())
    with _flash(), LiveBytes(model.state_dict().values()) as live:
        value = loss()
        kept = live.now
        torch.autograd.backward(value)
    return Counted(flops=flops.get_total_flops(), peak_bytes=live.peak, kept_bytes=kept)


def _drop(weight: Tensor) -> None:
    weight.grad = None


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all tensors without storage that are made within and still there: `now`, and `peak`."""

    def __init__(self, known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


@contextmanager
def _flash() -> Iterator[None]:
    """Attention that is causal or has no mask by the flash kernel, which torch has for a GPU alone."""
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
        if attn_mask is not None or not query.is_meta:
            return plain(query, key, value, attn_mask=attn_mask, **options)
        options.pop("enable_gqa", None)
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, **options)[0]
        return out

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield
