"""What travels between the stages of ingest: a task in, rows of chunks out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.storage import ChunkReceipt, VideoInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTask:
    """One video to ingest. `source`: absolute path or fsspec URL.

    `size` in bytes and `mtime_ns` of the file, as a listing told them; None where they are to be asked for. `metadata`:
    what a manifest says of it.
    """

    video: str
    source: str
    size: int | None = None
    mtime_ns: int = 0
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """What is known when a video ends, well or badly.

    `chunks` counts those of the attempt that succeeded. `size`, `mtime_ns` and `content_hash` describe the file, as far
    as it was read.
    """

    duration: float = 0.0
    decoder: str = ""
    chunks: int = 0
    source: str = ""
    size: int = 0
    mtime_ns: int = 0
    content_hash: str | None = None
    findings: dict[str, Any] = field(default_factory=dict)  # `damage` and `discontinuities`, where there are any
    metadata: dict[str, Any] = field(default_factory=dict)  # as in its task


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One chunk of a video, the last one with its `end`; or its failure (`error`, with what is known in `end`).

    A chunk that the store holds already comes with its receipt and without frames. A row that is all of a video
    has its `info` once that is complete in the store.
    """

    video: str
    attempt: int = 0  # a later attempt (another decoder) replaces the chunks of an earlier one
    index: int = -1
    intent: str = ""  # token of the intent that the chunk belongs to
    frames: npt.NDArray[np.uint8] | None = None  # [segments, frames, size, size, 3]
    timestamps: npt.NDArray[np.float64] | None = None  # [segments, frames], seconds
    receipt: ChunkReceipt | None = None
    end: End | None = None
    error: str | None = None
    info: VideoInfo | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # what each stage spent on this row

    @property
    def is_whole(self) -> bool:
        """Is it all of its video?"""
        return self.end is not None and self.end.chunks == 1
