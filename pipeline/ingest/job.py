"""The main job: videos become VoCo caches in a store, through Ray."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from vococache.errors import InputError
from vococache.model.images import FrameGeometry
from vococache.pipeline.ingest.driver import IngestReport, Job, Progress
from vococache.pipeline.ingest.events import Event
from vococache.pipeline.ingest.plan import Planner
from vococache.pipeline.ingest.sources import LeftOutFiles, find_sources
from vococache.storage import Store, StoreHeader, is_store, open_store
from vococache.storage.format import FRAME_BYTES
from vococache.workers.compressor import Compressor
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import is_url


def ingest(
    videos: str | os.PathLike[str] | Sequence[str],
    store: str | os.PathLike[str],
    *,
    model: str = "synthetic",
    fps: float | None = None,
    num_frames: int | None = None,
    compression: str | None = None,
    tokens: int | None = None,
    segment_frames: int | None = None,
    chat_template: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    address: str | None = None,
    overwrite: bool = False,
    check_content: bool = False,
    retry_failed: bool = False,
    reuse: bool = False,
    redo: bool = False,
    decode_timeout: float = 60.0,
    max_pixels: int | None = None,
    max_damage: float | None = None,
    stall_after: float = 300.0,
    on_progress: Callable[[Progress], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> IngestReport:
    """Compress `videos` into the store at the path or URL `store`, which is made if absent.

    `videos`: files, folders (recursive), globs, fsspec URLs, CSV/JSONL manifests. `fps` or `num_frames`: which frames,
    by presentation time; by default as the model was made for, or one a second. `model`: a folder, an embedded model's
    name or a Hugging Face hub id. `compression` ("voco", or without VoCo tokens "cover", "pool", "full"), `tokens` (K)
    and `segment_frames` (F): the model's own when None, and so is `chat_template`, Jinja text that a model without VoCo
    tokens is asked by.
    `quantize`: "int8" or "int4", how a new store keeps caches; by default as they were computed.
    `device`: "cpu" or "cuda" for the compressor; by default GPUs where Ray has any. `address`: a Ray cluster; by
    default a local Ray is started and stopped. `overwrite`: redo videos that are complete with other sampling
    or of another source. `check_content`: compare sha256 even where place, size and modification time are as before.
    `retry_failed`: try again what failed before and did not change. `reuse`: where the store holds the same content
    under another id, copy its caches. `redo`: make videos again that the store holds complete, as where
    their chunks are damaged. `decode_timeout`: seconds without a frame that cost a video; `max_pixels` (default
    8192 x 8192): so does a larger frame; `max_damage` (default 0.5): of a broadcast, so does a larger lost share.
    `on_event`: told each chunk, each video's outcome, and after every `stall_after` seconds in which nothing came,
    what each stage is at, and once a minute how far the job is; the logger "vococache.ingest" gets the same as lines of
    JSON.

    Running it again does no work for what is complete, and resumes what was interrupted at its last chunk.
    A bad video costs itself alone: it is recorded in the store and in the report. Raises `InputError`,
    `ModelError` or `StoreError` before any work starts when the job itself cannot run.
    """
    FrameSampling(fps=fps, num_frames=num_frames)  # refuses what chooses nothing before a model is loaded
    if max_damage is not None and not 0 <= max_damage <= 1:
        raise InputError(f"expected max_damage from 0 to 1, found {max_damage:g}")
    left_out = LeftOutFiles()
    sources = find_sources([os.fspath(videos)] if isinstance(videos, str | os.PathLike) else videos, left_out)
    report = IngestReport(store=os.fspath(store), left_out=dict(left_out))
    # The actors have working directories of their own.
    place, model = absolute(report.store), absolute(model) if Path(model).is_dir() else model
    compressor = Compressor(
        model=model, compression=compression, chat_template=chat_template, dtype=dtype, tokens=tokens,
        frames=segment_frames,
    )  # fmt: skip
    started = time.perf_counter()
    ours, telling = False, ExitStack()
    try:
        opened = open_made(place, compressor, quantize)
        asked = fps is not None or num_frames is not None
        if opened is None or not (asked or opened.header.sampling):
            from vococache.workers.cluster import nodes, runtime

            if address is None:  # refuse, or find nothing to do, before a local Ray is started
                header = nodes.describe_compressor(compressor, device)
            else:
                ours = runtime.start_ray(address)
                header = nodes.describe_compressor_remotely(compressor, device)
            sampling = FrameSampling.chosen(fps, num_frames, header.sampling)
            opened = open_store(place, "a", header=replace(header, quantization=quantize))
        else:
            sampling = FrameSampling.chosen(fps, num_frames, opened.header.sampling)
            compressor = replace(compressor, dtype=opened.header.compute_dtype)
        if redo:
            for video in sorted({source.video for source in sources} & set(opened.ids())):
                opened.redo(video)
        planner = Planner(
            sampling=sampling, overwrite=overwrite, check_content=check_content, retry_failed=retry_failed, reuse=reuse,
            local=address is None,
        )  # fmt: skip
        job = Job(report, opened, len(sources), stall_after, on_progress, on_event)
        work = job.work(planner.judge(sources, opened))
        telling.enter_context(job.progress_told())
        first = next(work, None)
        if first is not None:  # else Ray, and mostly the model, are not even imported
            from vococache.workers.cluster import board, nodes, pools, runtime, stages
            from vococache.workers.compress import CompressStage
            from vococache.workers.decode import DecodeStage
            from vococache.workers.video.process import Limits

            ours = runtime.start_ray(address) or ours
            nodes.check_store_visible(opened, place, local=address is None)
            limits: dict[str, Any] = {"max_pixels": max_pixels, "max_damage": max_damage}
            geometry = FrameGeometry.from_dict(opened.header.geometry)
            decode = DecodeStage(
                store_url=place,
                sampling=sampling,
                geometry=geometry,
                frames_per_segment=opened.header.frames_per_segment,
                timeout_s=decode_timeout,
                limits=Limits(**{key: value for key, value in limits.items() if value is not None}),
            )
            compress = CompressStage(store_url=place, compressor=compressor, device=device)
            sized, notes = pools.choose_pools(device, local=address is None), board.make_board()
            frames = max(1, FRAME_BYTES // (3 * geometry.size**2))
            report.startup_seconds = time.perf_counter() - started
            job.run(
                chain([first], work),
                lambda tasks: stages.run_stages(tasks, decode, compress, sized, notes, frames),
                lambda: board.busy(notes),
            )
            report.run_seconds = time.perf_counter() - started - report.startup_seconds
    finally:
        telling.close()
        if ours:
            runtime.stop_ray()
    return report


def open_made(place: str, compressor: Compressor, quantize: str | None) -> Store | None:
    """The store at `place` if `compressor` made it, by a quick look, and it is quantized as asked for."""
    if not is_store(place):
        return None
    store = open_store(place, "a")
    return store if compressor.made(store) and quantize in (None, store.header.quantization) else None


def as_made(header: StoreHeader) -> dict[str, Any]:
    """The arguments of `ingest` that a store's caches were made with."""
    return {
        "compression": header.compression, "tokens": header.tokens, "segment_frames": header.frames_per_segment,
        "chat_template": header.prompt.get("chat_template"),
    }  # fmt: skip


def absolute(place: str) -> str:
    """A path from the root on; URLs as they are."""
    return place if is_url(place) else str(Path(place).expanduser().absolute())
