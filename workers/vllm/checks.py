"""What of vLLM's settings stored entries can be laid into; all else is refused before an engine answers from it."""

import inspect
from typing import Any

from vococache.errors import InputError
from vococache.storage import StoreHeader
from vococache.workers.vllm.decoder import Decoder

# Parameters of what a connector calls and overrides, self left out: other names are another interface.
WRITE = ("layer", "key", "value", "kv_cache", "slot_mapping")


def check_engine(config: Any, header: StoreHeader, decoder: Decoder) -> None:
    """Refuse a vLLM configuration (`VllmConfig`) that cannot read the store with `InputError`."""
    model, parallel = config.model_config, config.parallel_config
    text = model.hf_text_config
    if model.use_mla:
        raise InputError("latent attention (MLA) keeps no keys and values that stored ones could be laid beside")
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise InputError("context parallelism spreads a block over ranks: stored entries are not laid into such blocks")
    if config.speculative_config is not None:
        raise InputError("a draft model would read the placeholders as text: leave speculative decoding out")
    if config.kv_transfer_config.kv_load_failure_policy != "fail":
        raise InputError("placeholders cannot be recomputed: kv_load_failure_policy must be 'fail'")
    heads = int(text.num_key_value_heads)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    found = (int(text.num_hidden_layers), heads, dim)
    if found != (header.layers, header.kv_heads, header.head_dim):
        raise InputError(
            f"the store keeps (layers, heads, dimension) {(header.layers, header.kv_heads, header.head_dim)}, the"
            f" decoder has {found}"
        )
    if not 0 <= decoder.placeholder < int(text.vocab_size):
        raise InputError(f"the placeholder's id {decoder.placeholder} is outside the vocabulary of {text.vocab_size}")
    if model.max_model_len > decoder.config.max_positions:
        raise InputError(f"--max-model-len {model.max_model_len}: the decoder has {decoder.config.max_positions}")
    ranks = parallel.tensor_parallel_size
    if heads % ranks and ranks % heads:
        raise InputError(f"{heads} key-value heads cannot be shared by {ranks} ranks of tensor parallelism")


def check_overrides(own: type, base: type) -> None:
    """Refuse a base class whose methods take something else than ours that override them with `InputError`."""
    for name, method in vars(own).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        theirs = getattr(base, name, None)
        wanted = None if theirs is None else tuple(inspect.signature(theirs).parameters)
        found = tuple(inspect.signature(method).parameters)
        if wanted != found:
            raise InputError(
                f"this vLLM's connectors are others: {name}{found} expects {wanted}; install the version that"
                " `vococache[vllm]` pins"
            )


def check_writes(layers: dict[int, Any], header: StoreHeader) -> None:
    """Refuse attention layers that are not the store's, or whose backend writes in another way, with `InputError`."""
    if not layers or any(index >= header.layers for index in layers):
        raise InputError(f"expected attention layers of 0 to {header.layers - 1}, found {sorted(layers)}")
    for layer in layers.values():
        write = getattr(layer.impl, "do_kv_cache_update", None)
        if write is None or tuple(inspect.signature(write).parameters) != WRITE:
            raise InputError(f"attention by {type(layer.impl).__name__} does not write keys and values by itself")
