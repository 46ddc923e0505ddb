"""Stage 1 of ingest: a video becomes rows of chunks, by decord where it can and by PyAV where it cannot."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from vococache.errors import VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.storage import Intent, Store, open_store
from vococache.storage.format import even_chunk_segments
from vococache.workers.rows import End, Row, VideoTask
from vococache.workers.video.process import DecodedFrames, DecoderName, DecoderProcess, Limits, available_decoders
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import LocalVideo, SourceStat, local_video, stat_source

Segment = tuple[list[Frame], list[float]]  # of one segment: pictures [size, size, 3], and their times


@dataclass(kw_only=True)
class DecodeStage:
    """Turns tasks into rows. Plain: Ray is not known here.

    A video gives the rows of its chunks and an end row, or else an error row. Only one chunk is held at a time, apart
    from the frames read ahead to learn whether the video is a short one. Safe to run again: what the store
    holds already comes without frames.
    """

    store_url: str
    sampling: FrameSampling
    geometry: FrameGeometry
    frames_per_segment: int
    timeout_s: float = 60.0
    limits: Limits = field(default_factory=Limits)
    max_copy_bytes: int = 16 << 30  # of a remote video on this node's disk
    _store: Store = field(init=False, repr=False)
    _decoder: DecoderProcess = field(init=False, repr=False)

    def setup(self) -> None:
        """Open the store; the decoder child starts with the first video."""
        self._store = open_store(self.store_url, "a")
        self._decoder = DecoderProcess(timeout_s=self.timeout_s, limits=self.limits)

    def close(self) -> None:
        """End the decoder child."""
        self._decoder.close()

    def process(self, task: VideoTask) -> Iterator[Row]:
        """The rows of one video. A video that cannot be decoded costs one error row; a bad store raises."""
        reasons: dict[str, str] = {}
        stat, digest = None if task.size is None else SourceStat(size=task.size, mtime_ns=task.mtime_ns), None
        try:
            with local_video(task.source, self.max_copy_bytes, stat) as local:
                stat, digest = local.stat, local.content_hash
                known = self._known(task.video, local)
                # First the decoder whose chunks the store has.
                decoders = sorted(
                    enumerate(available_decoders()), key=lambda n: known is None or n[1] != known[0].decoder
                )
                for attempt, decoder in decoders:
                    try:
                        yield from self._attempt(task, local, known, attempt, decoder)
                        return
                    except VideoError as error:
                        reasons[decoder] = str(error)
        except VideoError as error:
            reasons["source"] = str(error)
            stat = stat or stat_source(task.source)
        end = End(
            source=task.source,
            size=stat.size if stat else 0,
            mtime_ns=stat.mtime_ns if stat else 0,
            content_hash=digest,
        )
        yield Row(video=task.video, end=end, error=joined(reasons))

    def _known(self, video: str, local: LocalVideo) -> tuple[Intent, bool] | None:
        """What the store has begun or completed of the same content and sampling, and whether it is complete."""
        wanted = local.content_hash, self.sampling.to_dict()
        return next(
            ((i, done) for i, done in self._store.intents(video) if (i.content_hash, i.sampling) == wanted), None
        )

    def _attempt(
        self,
        task: VideoTask,
        local: LocalVideo,
        known: tuple[Intent, bool] | None,
        attempt: int,
        decoder: DecoderName,
    ) -> Iterator[Row]:
        """The rows of one decoder's attempt, from the start of the video. Raises `VideoError`."""
        started = time.perf_counter()
        frames = self._decoder.open(local.path, self.sampling, self.geometry, decoder)
        segments = self._segments(frames)
        longest = self._store.header.chunk_segments
        ahead = list(islice(segments, longest + 1))
        if not ahead:
            raise VideoError("no frames")
        # Chunks of a file that was moved or touched since stay good: they belong to the intent as it was begun.
        begun = known[0] if known is not None and not known[1] else None
        intent = Intent(
            source=begun.source if begun else task.source,
            content_hash=local.content_hash,
            size=local.stat.size,
            mtime_ns=begun.mtime_ns if begun else local.stat.mtime_ns,
            sampling=self.sampling.to_dict(),
            decoder=decoder,
            chunk_segments=self._chunk_segments(len(ahead), frames.expected_frames),
        )
        stored = self._store.begin(task.video, intent)
        for index, (chunk, is_last) in enumerate(_chunked(ahead, segments, intent.chunk_segments)):
            end = None
            if is_last:
                assert frames.duration is not None
                end = End(
                    duration=frames.duration,
                    decoder=decoder,
                    chunks=index + 1,
                    source=task.source,
                    size=local.stat.size,
                    mtime_ns=local.stat.mtime_ns,
                    content_hash=local.content_hash,
                    findings=frames.findings,
                    metadata=task.metadata,
                )
            receipt = stored.get(index)
            yield Row(
                video=task.video,
                attempt=attempt,
                index=index,
                intent=intent.token,
                frames=None if receipt else np.stack([np.stack(pictures) for pictures, _ in chunk]),
                timestamps=_times(chunk),
                receipt=receipt,
                end=end,
                seconds={"decode": time.perf_counter() - started},
            )
            started = time.perf_counter()  # whoever takes the rows took his time

    def _segments(self, frames: DecodedFrames) -> Iterator[Segment]:
        """Frames in groups of a segment; the last group is filled up with its last frame."""
        while group := list(islice(frames, self.frames_per_segment)):
            group += [group[-1]] * (self.frames_per_segment - len(group))
            yield [picture for _, picture in group], [time for time, _ in group]

    def _chunk_segments(self, ahead: int, expected_frames: int | None) -> int:
        """Chunk length of a video of which `ahead` segments were read, one more than a chunk may have if it is long."""
        longest = self._store.header.chunk_segments
        if ahead <= longest:
            return ahead
        expected = -(-(expected_frames or 0) // self.frames_per_segment)
        return even_chunk_segments(expected, longest) if expected > longest else longest


def joined(reasons: dict[str, str]) -> str:
    """What went wrong, in one line: once where the decoders agree."""
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _chunked(ahead: list[Segment], segments: Iterator[Segment], size: int) -> Iterator[tuple[list[Segment], bool]]:
    """Segments in chunks of `size`, and whether each is the last; lets go of those read ahead as they are used."""
    rest = chain((ahead.pop(0) for _ in range(len(ahead))), segments)
    chunk = list(islice(rest, size))
    while chunk:
        following = next(rest, None)
        yield chunk, following is None
        chunk = [] if following is None else [following, *islice(rest, size - 1)]


def _times(chunk: list[Segment]) -> npt.NDArray[np.float64]:
    """[segments, frames], seconds."""
    return np.array([times for _, times in chunk], np.float64)
