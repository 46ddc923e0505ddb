"""Clips on disk, stores made of files, and one local Ray for all tests that ingest."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.clips import make_clip, make_sound

from vococache.pipeline.ingest.outcomes import Collector
from vococache.storage import Store, open_store
from vococache.workers.cluster import runtime
from vococache.workers.compress import CompressStage, frame_geometry, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling

Fill = Callable[..., Store]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray that ingest finds running, and so does not start and stop for each test."""
    runtime.start_ray(None)
    yield
    runtime.stop_ray()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three good videos and of everything that a folder of videos may hold besides."""
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "plain.mp4", frames=50, fps=10)
    make_clip(folder / "short.mkv", frames=3, fps=10)
    make_clip(folder / "offset.mkv", frames=30, fps=10, start=5.0, size=(64, 96))
    (folder / "text.mp4").write_text("this is no video\n" * 40)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:-4000])
    make_sound(folder / "sound.mp4")
    return folder


@pytest.fixture(scope="session")
def fill() -> Fill:
    """Compress files, by the ids that they get, into a store: by the stages themselves, without Ray."""

    def fill_store(
        url: str, files: dict[str, Path], *, quantization: str | None = None, fps: float = 1.0,
        metadata: dict[str, dict[str, Any]] | None = None, **compressor: Any,
    ) -> Store:  # fmt: skip
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

    return fill_store
