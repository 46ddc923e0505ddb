"""Compiled layers: on a GPU, for processes that stay, PyTorch fuses what surrounds attention in a decoder's layers.

A third of stage 1 is otherwise spent on operations that move more bytes than they compute.
"""

import logging
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import nn

from vococache.model.generate import GenerationOptions, generate
from vococache.model.layers import DecoderLayer

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel

logger = logging.getLogger(__name__)


def compile_layers(model: "VoCoModel") -> None:
    """Compile on a GPU, by running both stages once; on a CPU nothing changes.

    Seconds on a machine where it was done before (PyTorch keeps what it compiled), else half a minute. Where it cannot
    be done (Triton wants a C compiler) a warning says so, and the layers stay as they were.
    """
    if model.device.type != "cuda":
        return
    decoders = [model.language_model.layers, model.reading.layers]
    for layers in decoders:
        fuse(layers)
    try:
        warm_up(model)
    except Exception as error:  # whatever a compiler or its lack leads to
        logger.warning("the model's layers are not compiled: %s", str(error).strip().splitlines()[:1])
        for layer in chain(*decoders):
            vars(layer).pop("before_attention", None)
            vars(layer).pop("after_attention", None)


def fuse(layers: nn.ModuleList) -> None:
    """Fuse what surrounds attention by `torch.compile`, once for all layers and sizes.

    Attention itself has its kernels, and what it is given (masks, a cache that grows) takes too many forms.
    """
    before, after = (
        torch.compile(half, dynamic=True) for half in (DecoderLayer.before_attention, DecoderLayer.after_attention)
    )
    for layer in layers:
        vars(layer).update(before_attention=MethodType(before, layer), after_attention=MethodType(after, layer))


def warm_up(model: "VoCoModel") -> None:
    """Run both stages in the sizes that are compiled apart: one segment and several, a text and one token."""
    ids, text = torch.zeros(model.config.stage1_length, dtype=torch.long, device=model.device), torch.arange(3)
    embedded = model.language_model.embed_tokens(ids)
    with torch.inference_mode():
        for segments in (2, 1):
            cache = model.entries(embedded.expand(segments, -1, -1), model.segment_entries)
        generate(model, model.place(cache), [text], 2, GenerationOptions(stop_ids=()))
