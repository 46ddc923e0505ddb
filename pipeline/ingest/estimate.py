"""What an ingest would do: videos, segments, bytes and an estimate of time. Writes nothing, starts no Ray."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from vococache.errors import VideoError
from vococache.pipeline.ingest.options import IngestOptions
from vococache.pipeline.ingest.plan import SourceState
from vococache.pipeline.ingest.sources import LeftOutFiles, find_sources
from vococache.pipeline.tables import counted
from vococache.storage import is_store, open_store
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import is_url

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel
    from vococache.storage import StoreHeader
    from vococache.workers.video.process import DecoderName, DecoderProcess

MEASURED_SEGMENTS = 16
SECONDS_AN_HOUR = 3600


@dataclass(kw_only=True)
class IngestEstimate:
    """The size of a job. `unknown` maps videos whose length could not be found out to the reason.

    `segment_flops`: of stage 1. Where frames come at a rate: `hour_bytes` of caches for an hour of video, and
    `context_hours`, how much of it fits into the model's context.
    """

    videos: int = 0
    segments: int = 0
    bytes: int = 0
    seconds: float = 0.0
    segment_flops: int = 0
    hour_bytes: int | None = None
    context_hours: float | None = None
    unknown: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """A line for a person, and one for each video of unknown length."""
        lines = LeftOutFiles(self.left_out).describe()
        lines += [f"unknown: {video}: {reason}" for video, reason in sorted(self.unknown.items())]
        lines.append(
            f"{counted(self.videos, 'video')}, about {counted(self.segments, 'segment')}, {self.bytes:,} bytes of"
            f" caches, about {self.seconds:.0f} s on this machine"
        )
        if self.hour_bytes is not None and self.context_hours is not None:
            lines.append(
                f"an hour of video is {self.hour_bytes:,} bytes; {60 * self.context_hours:.0f} minutes fit into the"
                f" model's context; a segment takes {self.segment_flops / 1e9:,.1f} GFLOPs"
            )
        return "\n".join(lines)


def estimate(videos: str | Sequence[str], store: str, **options: Any) -> IngestEstimate:
    """Size up `ingest` with the same arguments, from the lengths of the videos and a short measurement.

    What `store` holds already is not counted. Raises as `ingest` does for a job that could not run.
    """
    from vococache.model.costs import compress_flops
    from vococache.workers.compress import store_header

    chosen, left_out = IngestOptions(**options), LeftOutFiles()
    sources = find_sources([videos] if isinstance(videos, str) else videos, left_out)
    loaded = chosen.compressor.load(chosen.device)
    header = replace(store_header(loaded), quantization=chosen.quantize)
    sampling = FrameSampling.chosen(chosen.fps, chosen.num_frames, header.sampling)
    work = {source.video: source.location for source in sources}
    if is_store(store):
        opened = open_store(store, "r", header=header)
        header = opened.header
        # A file that is missing is measured like the others, which tells why it cannot be.
        judged = replace(chosen.planner(sampling), local=False).judge(sources, opened)
        work = {source.video: source.location for source, found in judged if found.state is SourceState.WORK}
    result = IngestEstimate(left_out=dict(left_out))
    measurable: list[str] = []
    with DecoderProcess() as decoder:
        for video, location in work.items():
            if is_url(location):
                result.unknown[video] = "remote: not fetched for an estimate"
                continue
            try:
                frames = sampling.expected_frames(decoder.measure(location))
            except VideoError as error:
                result.unknown[video] = str(error)
                continue
            assert frames is not None
            result.videos += 1
            result.segments += math.ceil(frames / header.frames_per_segment)
            measurable.append(location)
        for location, name in product(measurable, available_decoders()):
            with suppress(VideoError):
                each = seconds_per_segment(decoder, location, name, sampling, loaded, header)
                result.seconds = each * result.segments / (os.cpu_count() or 1)
                break
    result.bytes = result.segments * (header.stored_segment_bytes + header.index_segment_bytes)
    result.segment_flops = compress_flops(loaded.config).total
    if sampling.fps is not None:
        result.hour_bytes, result.context_hours = by_the_hour(header, sampling.fps)
    return result


def by_the_hour(header: "StoreHeader", fps: float) -> tuple[int, float]:
    """Bytes of caches for an hour of video at `fps`, and the hours that fit into the model's context."""
    segments = math.ceil(SECONDS_AN_HOUR * fps / header.frames_per_segment)
    hours = (header.positions or 0) // header.tokens * header.frames_per_segment / fps / SECONDS_AN_HOUR
    return segments * (header.stored_segment_bytes + header.index_segment_bytes), hours


def seconds_per_segment(
    decoder: "DecoderProcess",
    location: str,
    name: "DecoderName",
    sampling: FrameSampling,
    model: "VoCoModel",
    header: "StoreHeader",
) -> float:
    """Seconds that one thread takes to decode and compress a segment, measured on the start of one video.

    Raises `VideoError` where the decoder called `name` gets no frame out of it.
    """
    import torch

    from vococache.workers.compress import frame_geometry

    wanted = MEASURED_SEGMENTS * header.frames_per_segment
    started = time.perf_counter()
    frames = [pixels for _, pixels in islice(decoder.open(location, sampling, frame_geometry(header), name), wanted)]
    decoded = time.perf_counter() - started
    if not frames:
        raise VideoError("no frames")
    segment = np.stack(frames[:1] * header.frames_per_segment)[None]
    with torch.inference_mode():
        model.compress(model.pixel_values(segment))  # warm up
        started = time.perf_counter()
        model.compress(model.pixel_values(segment))
    return decoded / len(frames) * header.frames_per_segment + time.perf_counter() - started
