"""The chosen frames of a file, by decord or by PyAV: the same times, and the same pixels for 8-bit video.

Runs in the decoder child; free of torch.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np

from vococache.errors import VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.sampling import Targets
from vococache.workers.video import Piece, Video

# A chosen frame: its time in seconds, how often it was chosen, and how to get its RGB picture.
Chosen = tuple[float, int, Callable[[], Frame]]

THREADS = 2  # for decoding, and as many for resizing
SMALL_PIXELS = 480 * 270
BATCH_BYTES = 512 << 20  # of one piece's chosen frames, which decord holds at once
RATE = 25  # frames are counted, not timed, in what decord is given
# Where the two decoders' scalers give equal pixels. Elsewhere (10-bit, odd sizes) they place chroma differently.
EXACT_FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gbrp", "gray"}


def pyav_frames(video: Video, targets: Targets) -> Iterator[Chosen]:
    """Decode the whole stream with PyAV, in presentation order."""
    held: tuple[float, av.VideoFrame] | None = None
    for frame in _decoded(video):
        pts = video.time_of(frame)
        if pts is None:
            raise VideoError("frames without presentation times")
        if not video.shown(pts):
            continue
        time = video.clock.tick(pts)
        if held is not None and time < held[0]:
            raise VideoError("its frames are not in the order of their times")
        if held is not None and (count := targets.take(time)):
            yield held[0], count, partial(_rgb, held[1])
        held = (time, frame)
    if held is not None and (count := targets.take(video.duration())):
        yield held[0], count, partial(_rgb, held[1])


def decord_frames(video: Video, targets: Targets) -> Iterator[Chosen]:
    """Decode the stream with decord, piece by piece: it reads ahead without bound, and seeks inexactly."""
    decord = _load_decord()
    turn: int | None = None
    for piece in video.pieces():
        if turn is None:
            turn = _look_at_first(video, piece.packets[0][1])
        chosen = _choose(video, piece, targets)
        ranks = [rank for rank, _, _ in chosen]
        reader = _reader(decord, video, piece)
        try:
            pictures = reader.get_batch(ranks).asnumpy() if ranks else []
            # The last frame too, chosen or not: if any before it could not be decoded, this fails.
            last = len(piece.packets) - 1
            if last not in ranks[-1:]:
                reader[last]
        except decord.DECORDError as error:
            raise VideoError(_decord_reason(error)) from None
        except StopIteration:
            raise VideoError("fewer frames than packets") from None
        del reader
        for index, (_, time, count) in enumerate(chosen):
            yield time, count, partial(_upright, pictures[index], turn)


def shaped(chosen: Iterator[Chosen], geometry: FrameGeometry) -> Iterator[tuple[float, int, Frame]]:
    """The chosen frames as model-sized pictures, in order: (time, count, [size, size, 3])."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[tuple[float, int, Future[Frame]]] = deque()
        for time, count, picture in chosen:
            pending.append((time, count, pool.submit(lambda make: geometry.apply(make()), picture)))
            while pending and (len(pending) > 4 * THREADS or pending[0][2].done()):
                time, count, future = pending.popleft()
                yield time, count, future.result()
        for time, count, future in pending:
            yield time, count, future.result()


def _decoded(video: Video) -> Iterator[av.VideoFrame]:
    video.context.thread_type = "AUTO"
    video.context.thread_count = _threads(video)
    try:
        for packet in video.packets():
            yield from video.context.decode(packet)
        yield from video.context.decode(None)
    except av.FFmpegError as error:
        raise VideoError(f"decoding failed: {error.strerror or error}") from None


def _choose(video: Video, piece: Piece, targets: Targets) -> list[tuple[int, float, int]]:
    """Which frames of a piece are wanted: (place in presentation order, time, count)."""
    ranked = sorted(enumerate(piece.packets), key=lambda item: item[1][0])
    shown = [
        (rank, pts)
        for rank, (_, (pts, packet)) in enumerate(ranked)
        if video.shown(pts) and (piece.until is None or pts < piece.until) and not packet.is_discard
    ]
    times = [video.clock.tick(pts) for _, pts in shown]
    after = video.duration() if piece.until is None else video.clock.time(piece.until)
    counts = [targets.take(until) for until in [*times[1:], after][: len(times)]]
    chosen = [(rank, time, count) for (rank, _), time, count in zip(shown, times, counts, strict=True) if count]
    if len(chosen) * 3 * video.context.width * video.context.height > BATCH_BYTES:
        raise VideoError("too many large frames are wanted between keyframes")
    return chosen


def _reader(decord: Any, video: Video, piece: Piece) -> Any:
    """A decord reader over one piece, repacked in memory."""
    memory = _repack(video, piece)
    try:
        reader = decord.VideoReader(memory, num_threads=_threads(video), fault_tol=0)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(_decord_reason(error)) from None
    if len(reader) != len(piece.packets):
        raise VideoError(f"{len(reader)} frames in {len(piece.packets)} packets")
    return reader


def _repack(video: Video, piece: Piece) -> io.BytesIO:
    """A piece as a file of its own, its frames numbered in presentation order.

    Only the first packet is marked a keyframe, so that decord never seeks.
    """
    order = {pts: rank for rank, pts in enumerate(sorted(pts for pts, _ in piece.packets))}
    if len(order) < len(piece.packets):
        raise VideoError("several packets of one presentation time")
    delay = max(place - order[pts] for place, (pts, _) in enumerate(piece.packets))
    # MP4 counts its frames, which decord wants of very short videos; Matroska takes (nearly) any codec.
    for format_name in ("mp4", "matroska"):
        memory = io.BytesIO()
        with suppress(av.FFmpegError, ValueError), av.open(memory, "w", format=format_name) as container:
            stream = container.add_stream_from_template(video.stream)
            stream.set_display_rotation(0)  # we turn the pictures, as for PyAV
            for place, (pts, packet) in enumerate(piece.packets):
                packet.dts, packet.pts, packet.duration = place, order[pts] + delay, 1
                packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, RATE), place == 0, stream
                container.mux(packet)
            container.close()
            memory.seek(0)
            return memory
    raise VideoError(f"cannot be repacked for decord: {video.context.name}")


def _look_at_first(video: Video, packet: Any) -> int:
    """Decode the first keyframe with PyAV: its display rotation, and whether decord would give the same pixels."""
    try:
        frames = [*video.context.decode(packet), *video.context.decode(None)]
    except av.FFmpegError as error:
        raise VideoError(f"decoding failed: {error.strerror or error}") from None
    if not frames:
        raise VideoError("its first frame cannot be decoded")
    frame = frames[0]
    odd = frame.width % 2 or frame.height % 2
    if frame.format.name not in EXACT_FORMATS or (odd and "444" not in frame.format.name):
        raise VideoError(f"left to pyav: {frame.format.name} of {frame.width} x {frame.height}")
    return int(frame.rotation)


def _rgb(frame: av.VideoFrame) -> Frame:
    """[height, width, 3], upright, in the frame's own colour space: as decord converts it."""
    picture: Any = frame.to_ndarray(format="rgb24", interpolation="BILINEAR")
    return _upright(picture, frame.rotation)


def _upright(picture: Frame, rotation: int) -> Frame:
    """Apply the display rotation, in degrees counter-clockwise."""
    return np.rot90(picture, round(rotation / 90) % 4)


def _threads(video: Video) -> int:
    """Decoding threads. On small pictures, they wait for each other longer than they work."""
    return THREADS if video.context.width * video.context.height >= SMALL_PIXELS else 1


def _load_decord() -> Any:
    # Read once, when the library loads: a damaged file must not keep it trying for minutes.
    os.environ["DECORD_EOF_RETRY_MAX"] = "10240"
    try:
        import decord
    except ImportError as error:
        raise VideoError(f"not installed ({error})") from None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_reason(error: Exception) -> str:
    """decord's one-line reason, without the addresses of its own source."""
    if "Error sending packet" in str(error) or "Error decoding frame" in str(error):
        return "a packet cannot be decoded"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split("]: ")[-1].split(".cc:")[-1].strip(" 0123456789:")[:200]
