"""The main job: videos become VoCo caches in a store, through Ray."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from vococache.errors import StoreError
from vococache.model.images import FrameGeometry
from vococache.pipeline.ingest.driver import IngestReport, Job, Progress
from vococache.pipeline.ingest.events import Event
from vococache.pipeline.ingest.options import IngestOptions
from vococache.pipeline.ingest.sources import LeftOutFiles, Source, find_sources
from vococache.storage import Store, StoreHeader, catalog, is_store, open_store
from vococache.storage.format import FRAME_BYTES
from vococache.storage.sealing import seal
from vococache.workers.compressor import Compressor
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import is_url


def ingest(
    videos: str | os.PathLike[str] | Sequence[str],
    store: str | os.PathLike[str],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> IngestReport:
    """Compress `videos` into the store at the path or URL `store`, which is made if absent.

    `videos`: files, folders (recursive), globs, fsspec URLs, CSV/JSONL manifests. `options`: the fields of
    `vococache.pipeline.ingest.options.IngestOptions`: model, sampling, compression, what to do again, limits.
    `on_event`: told each chunk, each video's outcome, and after every `stall_after` seconds in which nothing came,
    what each stage is at, and once a minute how far the job is; the logger "vococache.ingest" gets the same as lines of
    JSON.

    Running it again does no work for what is complete, and resumes what was interrupted at its last chunk.
    A bad video costs itself alone: it is recorded in the store and in the report. Raises `InputError`,
    `ModelError` or `StoreError` before any work starts when the job itself cannot run.
    """
    chosen, left_out = IngestOptions(**options), LeftOutFiles()
    sources = find_sources([os.fspath(videos)] if isinstance(videos, str | os.PathLike) else videos, left_out)
    report = IngestReport(store=os.fspath(store), left_out=dict(left_out))
    return ingest_sources(sources, report, chosen, on_progress=on_progress, on_event=on_event)


def ingest_sources(
    sources: Sequence[Source],
    report: IngestReport,
    options: IngestOptions,
    *,
    redo: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> IngestReport:
    """Compress `sources` into the store that `report` names, and fill the report.

    `redo`: make videos again that the store holds complete, as where their chunks are damaged: of these, what is
    sound is kept. Otherwise as `ingest`.
    """
    place, address, device = absolute(report.store), options.address, options.device
    if Path(options.model).is_dir():  # the actors have working directories of their own
        options = replace(options, model=absolute(options.model))
    compressor = options.compressor
    started = time.perf_counter()
    ours, telling = False, ExitStack()
    try:
        opened = open_made(place, compressor, options.quantize)
        if opened is None or not (options.samples or opened.header.sampling):
            from vococache.workers.cluster import nodes, runtime

            if address is None:  # refuse, or find nothing to do, before a local Ray is started
                header = nodes.describe_compressor(compressor, device)
            else:
                ours = runtime.start_ray(address)
                header = nodes.describe_compressor_remotely(compressor, device)
            sampling = FrameSampling.chosen(options.fps, options.num_frames, header.sampling)
            opened = open_store(place, "a", header=replace(header, quantization=options.quantize))
        else:
            sampling = FrameSampling.chosen(options.fps, options.num_frames, opened.header.sampling)
            compressor = replace(compressor, dtype=opened.header.compute_dtype)
        job = Job(report, opened, len(sources), options.stall_after, on_progress, on_event)
        work = job.work(options.planner(sampling, redo=redo).judge(sources, opened))
        telling.enter_context(job.progress_told())
        first = next(work, None)
        if first is not None:  # else Ray, and mostly the model, are not even imported
            from vococache.workers.cluster import board, nodes, pools, runtime, stages
            from vococache.workers.compress import CompressStage
            from vococache.workers.decode import DecodeStage

            ours = runtime.start_ray(address) or ours
            nodes.check_store_visible(opened, place, local=address is None)
            geometry = FrameGeometry.from_dict(opened.header.geometry)
            decode = DecodeStage(
                store_url=place,
                sampling=sampling,
                geometry=geometry,
                frames_per_segment=opened.header.frames_per_segment,
                timeout_s=options.decode_timeout,
                limits=options.limits,
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
        if first is not None or report.reused or not opened.is_local:
            written = len(report.done) + report.segments // opened.header.chunk_segments
            with suppress(StoreError):  # what was asked for is done; whoever comes next opens more, or seals
                seal(opened, least=catalog.FEW, written=written)
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
