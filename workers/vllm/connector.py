"""vLLM's connector: a stored video's entries in front of a question, in vLLM's own blocks.

The scheduler's half says which blocks are to be filled and keeps them apart from others'. The worker's half reads the
store in threads, while other requests go on, and writes through the attention backend. Nothing in the scheduler's half
may raise, which would end the engine: a request that cannot be had is sent to fail as a load.

Letters: Y layers, P entries, G key-value heads of this rank, D head dimension.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.rope import Rope
from vococache.storage import open_store
from vococache.workers.parent import die_with
from vococache.workers.vllm.checks import check_engine, check_overrides, check_writes
from vococache.workers.vllm.decoder import Decoder
from vococache.workers.vllm.entries import local_heads, placed, slots
from vococache.workers.vllm.requests import Segments, check_prompt

READERS = 4  # threads that read a store
log = logging.getLogger("vllm.voco")  # below vLLM's logger, which writes it out


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants in front of its text: segments, in so many entries; or why these cannot be had."""

    segments: Segments | None
    entries: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """A request's entries from `first` on, to be laid into its blocks. Pickled: scheduler -> every worker."""

    request: str
    wanted: Wanted
    first: int
    block_ids: list[int]


@dataclass
class Loads(KVConnectorMetadata):
    """Those that begin with a step."""

    loads: list[Load] = field(default_factory=list)


class VoCoConnector(KVConnectorBase_V1):
    """`kv_connector_extra_config`: `store`; `cache_bytes` of placed entries that each worker keeps; `parent`, a pid."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_overrides(VoCoConnector, KVConnectorBase_V1)
        extra = self._kv_transfer_config.kv_connector_extra_config
        if os.getpid() != extra["parent"]:
            os.setpgrp()  # Ctrl-C is the service's, which answers what was asked before it ends its engine
        if role == KVConnectorRole.SCHEDULER:
            die_with(extra["parent"])  # vLLM's engine would outlive a service that was killed; its workers end with it
        self.store = open_store(extra["store"])
        self.decoder = Decoder.at(vllm_config.model_config.model)
        check_engine(vllm_config, self.store.header, self.decoder)
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise InputError("expected one kind of attention in all layers: stored entries belong to each")
        self.block_size: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self.shares_blocks = bool(vllm_config.cache_config.enable_prefix_caching)
        # The scheduler's half.
        self.wanted: dict[str, Wanted] = {}  # of the requests about videos that are in the house
        self.starting: list[Load] = []
        self.loading: dict[str, str] = {}  # salt -> the request that loads it; others wait for its blocks
        # The worker's half.
        self.cache_bytes = int(extra["cache_bytes"])
        self.entries: OrderedDict[Segments, Future[Tensor]] = OrderedDict()  # [Y, 2, P, G, D], the last asked last
        self.waiting: list[tuple[Load, Future[Tensor]]] = []
        self.layers: dict[int, Any] = {}

    # ---- scheduler -----------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Look at what it wants, and salt its blocks, whatever salt its client gave."""
        wanted = self._wanted(request)
        if wanted is not None:
            self.wanted[request.request_id] = wanted
            self._salt(request, wanted)

    def _wanted(self, request: Any) -> Wanted | None:
        try:
            segments = Segments.from_params(request.kv_transfer_params)
            if segments is None:
                return None
            entries = segments.entries(self.decoder.config.prefix_entries)
            check_prompt(
                request.prompt_token_ids, entries, self.decoder.placeholder,
                reads_blocks=not request.get_skip_reading_prefix_cache(),
            )  # fmt: skip
            return Wanted(segments, entries)
        except Exception as error:  # whatever was asked for
            return Wanted(None, 1, str(error))

    def _salt(self, request: Any, wanted: Wanted) -> None:
        """Tell its blocks from others'. Those of a request that cannot be had are like no others."""
        segments, own = wanted.segments, f"refused:{request.request_id}"
        request.cache_salt = own if segments is None else segments.salt(self.store.identity)
        request.block_hashes.clear()
        request.update_block_hashes()
        request.skip_reading_prefix_cache = False  # or the load of what is refused, which is to fail, would not begin

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """The entries that are not in known blocks; None where another request is loading whole blocks of them."""
        wanted = self.wanted.get(request.request_id)
        missing = 0 if wanted is None else max(0, wanted.entries - num_computed_tokens)
        loads = self.loading.get(request.cache_salt, request.request_id)
        # What is left of a block is shared by nobody, so nobody waits for it.
        if missing > self._unshared(missing + num_computed_tokens) and loads != request.request_id:
            return None, False
        return missing, missing > 0

    def _unshared(self, entries: int) -> int:
        """How many of so many entries lie in a block that is not full: a text follows them there."""
        return entries % self.block_size if self.shares_blocks else entries

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Begin a load; or, when it is called again, the request goes on with its text: its blocks are known now."""
        if not num_external_tokens:
            self._has_loaded(request)
            return
        wanted = self.wanted[request.request_id]
        (block_ids,) = blocks.get_block_ids()
        first = wanted.entries - num_external_tokens
        self.starting.append(Load(request.request_id, wanted, first, list(block_ids)))
        self.loading[request.cache_salt] = request.request_id

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """The loads that begin with this step."""
        meta, self.starting = Loads(self.starting), []
        return meta

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """However it ended, nobody waits for its load any more."""
        self._has_loaded(request)
        self.wanted.pop(request.request_id, None)
        return False, None

    def _has_loaded(self, request: Any) -> None:
        if self.loading.get(request.cache_salt) == request.request_id:
            del self.loading[request.cache_salt]

    # ---- worker --------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """The model is there: find its attention layers."""
        context = self._vllm_config.compilation_config.static_forward_context
        self.layers = {extract_layer_index(name): context[name] for name in kv_caches}
        check_writes(self.layers, self.store.header)
        parallel = self._vllm_config.parallel_config.tensor_parallel_size
        self.heads = local_heads(self.store.header.kv_heads, get_tensor_model_parallel_rank(), parallel)
        self.rope, self.dtype = Rope(self.decoder.config.text), self._vllm_config.model_config.dtype
        prefix = self.decoder.prefix()
        self.prefix = None if prefix is None else prefix[:, :, self.heads]
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="voco")

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin to read."""
        meta = self._get_connector_metadata()
        assert isinstance(meta, Loads)
        for load in meta.loads:
            self.waiting.append((load, self._reading(load)))

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Lay what has been read into its blocks; which requests can go on, and which failed?"""
        results = KVConnectorTransferResults()
        done = [read.done() for _, read in self.waiting]  # looked at once: a load is told of once
        ready = [pair for pair, is_done in zip(self.waiting, done, strict=True) if is_done]
        self.waiting = [pair for pair, is_done in zip(self.waiting, done, strict=True) if not is_done]
        for load, read in ready:
            results.finished_recving.add(load.request)
            try:
                self._lay(load, read.result())
            except Exception as error:  # costs this request alone
                log.error("request %s: %s: %s", load.request, type(error).__name__, error)
                results.failed_recving.add(load.request)
        if ready:
            self._shrink()
        return results

    def _reading(self, load: Load) -> "Future[Tensor]":
        """The entries of a load, from memory or on their way."""
        segments = load.wanted.segments
        if segments is None:
            failed: Future[Tensor] = Future()
            failed.set_exception(InputError(load.wanted.error))
            return failed
        if segments not in self.entries:
            self.entries[segments] = self.readers.submit(self._read, segments)
        self.entries.move_to_end(segments)
        return self.entries[segments]

    @torch.inference_mode()
    def _read(self, segments: Segments) -> Tensor:
        """This rank's entries from the store, checked and placed."""
        caches = []
        for part in segments.parts:
            data = self.store.read(part.video, part.start, part.stop, made_of=part.made_of)
            cache = VoCoCache(torch.from_numpy(data)).first_tokens(segments.tokens)
            caches.append(VoCoCache(cache.data[:, :, :, self.heads]))
        return placed(caches, self.prefix, self.rope, self.dtype)

    @torch.inference_mode()
    def _lay(self, load: Load, entries: Tensor) -> None:
        """Write entries into a request's blocks, as the backend writes those that it computes."""
        device = next(iter(self.layers.values())).kv_cache.device
        places = slots(load.block_ids, load.first, load.wanted.entries, self.block_size).to(device)
        entries = entries[:, :, load.first :].to(device)
        for index, layer in self.layers.items():
            key, value = entries[index].contiguous().unbind(0)
            layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, places)

    def _shrink(self) -> None:
        """Forget what failed, and of what was read the least recently asked until the limit is kept."""
        read = {key: future for key, future in self.entries.items() if future.done()}
        failed = [key for key, future in read.items() if future.exception() is not None]
        sizes = {key: future.result().nbytes for key, future in read.items() if key not in failed}
        for key in [*failed, *_oldest(sizes, self.cache_bytes)]:
            del self.entries[key]

    def shutdown(self) -> None:
        """The worker ends."""
        if self.role == KVConnectorRole.WORKER and self.layers:
            self.readers.shutdown(wait=False, cancel_futures=True)

    # What a connector that saves, or loads layer by layer, would do.

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is under way when a layer computes."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def _oldest(sizes: dict[Segments, int], limit: int) -> Iterable[Segments]:
    """The first keys, without which the others keep the limit."""
    total = sum(sizes.values())
    for key, size in sizes.items():
        if total <= limit:
            return
        yield key
        total -= size
