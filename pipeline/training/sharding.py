"""Weights among processes: hashed by one; in a sharded training (FSDP) whole in one at beginning and end, and once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from vococache.model.fingerprint import current_weights_digest, remember_digest
from vococache.model.voco import VoCoModel


def loading_device(arguments: TrainingArguments) -> torch.device:
    """Where a process loads the model that training starts from.

    Of those that shard it, the first has it in its memory, and the others, to which it hands their shards, have shapes.
    """
    if not arguments.fsdp:
        return arguments.device
    return torch.device("cpu" if arguments.process_index == 0 else "meta")


def share_digest(model: VoCoModel) -> None:
    """Let all processes know the digest of the weights, which the first has taken: all together would take as long."""
    digest = model.weights_digest
    if digest is None and PartialState().is_main_process:
        digest = current_weights_digest(model)
    (digest,) = broadcast_object_list([digest])
    remember_digest(model, str(digest))


def give_storage(model: nn.Module) -> None:
    """Memory, never touched, for weights that are shapes alone: by its address accelerate knows an optimizer's."""
    weights: Any = model  # its method has no types
    weights._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)


def whole_weights(model: nn.Module, dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """The state dict of a sharded model on the CPU in `dtype`, gathered one tensor at a time; empty without `keep`.

    Every process must call it.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            state[name] = whole.to("cpu", dtype, copy=True)  # what is gathered may be a part of something larger
    return state


@contextmanager
def whole_root(model: nn.Module) -> Iterator[None]:
    """Lets parts of a sharded model be called by themselves: what no layer gathers is whole meanwhile."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
