"""Compress and write: a chunk's frames become VoCo caches in the store."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vococache.errors import InputError, StoreMismatchError, VoCoError
from vococache.model.compiled import compile_layers
from vococache.model.config import VoCoConfig
from vococache.model.fingerprint import compressor_fingerprint, compute_dtype
from vococache.model.images import FrameGeometry
from vococache.model.voco import VoCoModel
from vococache.storage import ChunkReceipt, Store, StoreHeader, VideoInfo, open_store
from vococache.storage.format import max_chunk_segments
from vococache.storage.index import keys_index
from vococache.workers.caches import compress_frames, micro_batch
from vococache.workers.compressor import Compressor
from vococache.workers.rows import Row


def store_header(model: VoCoModel) -> StoreHeader:
    """The header of the store that `model` fills."""
    config = model.config
    dtype = "float32" if model.dtype == torch.float32 else "float16"
    geometry = (config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim)
    frame_bytes = config.frames_per_segment * 3 * config.geometry.size**2
    return StoreHeader(
        fingerprint=compressor_fingerprint(model),
        model=model.name,
        layers=config.layers,
        kv_heads=config.kv_heads,
        tokens=config.num_voco_tokens,
        head_dim=config.head_dim,
        frames_per_segment=config.frames_per_segment,
        dtype=dtype,
        compute_dtype=compute_dtype(model),
        geometry=config.geometry.to_dict(),
        prompt=config.prompt.to_dict(),
        chunk_segments=max_chunk_segments(int(np.prod(geometry)) * np.dtype(dtype).itemsize, frame_bytes),
        micro_batch=micro_batch(config),
        compression=config.compression,
        sampling=config.sampling,
        positions=config.max_positions - config.prefix_entries,
        index=index_of(config),
    )


def index_of(config: VoCoConfig) -> dict[str, Any]:
    """The index of a store that a model of `config` fills: of the keys that segments are best found by, where known."""
    chosen = {name: config.search[name] for name in ("layer", "heads") if name in config.search}
    return keys_index(config.layers, config.kv_heads, config.num_voco_tokens, config.head_dim, **chosen)


def check_fingerprint(model: VoCoModel, header: StoreHeader, store_url: str) -> None:
    """Refuse to mix a store with a model that did not make it, whatever dtype the model is loaded in."""
    try:
        config = model.config.with_voco(tokens=header.tokens, frames=header.frames_per_segment)
        found = compressor_fingerprint(model, config=config, dtype=header.compute_dtype)
    except VoCoError as error:
        found = f"none ({error})"
    if found != header.fingerprint:
        raise StoreMismatchError(
            f"store {store_url} was made by another compressor: it holds fingerprint {header.fingerprint[:12]} (model"
            f" {header.model!r}), model {model.name!r} has {found[:12]}; use that model, or another store"
        )


@dataclass(kw_only=True)
class CompressStage:
    """Stage 2 of ingest: rows with frames become rows with receipts, and videos of one row complete; other rows pass.

    Two threads may call `process`: one chunk is written, which an object store takes its time for, while the next is
    computed.
    """

    store_url: str
    compressor: Compressor
    device: str | None = None
    _model: VoCoModel = field(init=False, repr=False)
    _store: Store = field(init=False, repr=False)
    _computing: threading.Lock = field(init=False, repr=False)

    def setup(self) -> None:
        """Load the model and open the store; refuse a store that this model did not make."""
        self._model = self.compressor.load(self.device)
        self._store = open_store(self.store_url, "a")
        check_fingerprint(self._model, self._store.header, self.store_url)
        compile_layers(self._model)
        self._computing = threading.Lock()

    def process(self, row: Row) -> Row:
        """Write a row's frames as caches. The bits depend on the chunk alone: not on workers or order.

        Errors of one video (a range that the store's dtype does not hold) become its error row.
        """
        if row.frames is None:
            return row
        header = self._store.header
        try:
            with self._computing:
                started = time.perf_counter()
                kv = compress_frames(self._model, row.frames, header.micro_batch, header.dtype)
                compressed = time.perf_counter()
            receipt, info = self._write(row, kv)
        except InputError as error:
            return replace(row, frames=None, error=str(error))
        seconds = row.seconds | {"compress": compressed - started, "store": time.perf_counter() - compressed}
        return replace(row, frames=None, receipt=receipt, info=info, seconds=seconds)

    def _write(self, row: Row, kv: npt.NDArray[Any]) -> tuple[ChunkReceipt | None, VideoInfo | None]:
        """Store a chunk; a video that is no more than that is complete with it, and costs the driver nothing."""
        if not row.is_whole:
            return self._store.write_chunk(row.video, row.intent, row.index, kv), None
        assert row.end is not None
        assert row.timestamps is not None
        end = row.end
        done = self._store.write_whole(
            row.video, row.intent, kv, row.timestamps, end.duration, end.findings, end.metadata
        )
        return done or (None, None)


def frame_geometry(header: StoreHeader) -> FrameGeometry:
    """How frames are shaped for the store's compressor."""
    return FrameGeometry.from_dict(header.geometry)
