"""A store that is filled by the stages themselves: for tests to which Ray and its processes are no matter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vococache.pipeline.ingest.outcomes import Collector
from vococache.storage import Store, open_store
from vococache.workers.compress import CompressStage, frame_geometry, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling


def fill_store(
    url: str, files: dict[str, Path], *, quantization: str | None = None, fps: float = 1.0,
    metadata: dict[str, dict[str, Any]] | None = None, **compressor: Any,
) -> Store:  # fmt: skip
    """Decode and compress files, by the ids that they get, into a store at `url`, as an ingest does but without Ray."""
    made_by = Compressor(**({"model": "synthetic"} | compressor))
    header = replace(store_header(made_by.load("cpu")), quantization=quantization)
    store = open_store(url, "a", header=header)
    decode = DecodeStage(
        store_url=url, sampling=FrameSampling(fps=fps), geometry=frame_geometry(header),
        frames_per_segment=header.frames_per_segment,
    )  # fmt: skip
    compress = CompressStage(store_url=url, compressor=made_by, device="cpu")
    decode.setup()
    compress.setup()
    collector = Collector(store)
    tasks = [
        VideoTask(
            video=video, source=str(path), size=path.stat().st_size, mtime_ns=path.stat().st_mtime_ns,
            metadata=(metadata or {}).get(video),
        )
        for video, path in files.items()
    ]  # fmt: skip
    for task in collector.expect(tasks):
        for row in decode.process(task):
            collector.add(compress.process(row))
    decode.close()
    return store
