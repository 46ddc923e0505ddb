"""The chosen frames of a file, by decord or by PyAV: the same times, and the same pixels for 8-bit video.

Runs in the decoder child; free of torch.
"""

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from heapq import heappop, heappush
from typing import Any

import av
import numpy as np

from vococache.errors import VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.video.clock import JITTER_SECONDS, MAX_REORDERED
from vococache.workers.video.container import Video
from vococache.workers.video.damage import bare_decoder
from vococache.workers.video.hdr import is_hdr
from vococache.workers.video.picture import Presentation, rgb, view_of
from vococache.workers.video.pieces import Piece, cut
from vococache.workers.video.sampling import Targets

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
    held: tuple[float, Callable[[], Frame]] | None = None
    at_first = video.context.sample_aspect_ratio
    view, seen = Presentation(), None
    for pts, frame in _ordered(video):
        time = video.clock.tick(pts)
        if held is not None and (count := targets.take(time)):
            yield held[0], count, held[1]
        now = frame.rotation, video.context.sample_aspect_ratio
        if (
            now != seen
        ):  # not of every frame: to look at its side data ties a frame to itself, until garbage is collected
            seen, view = now, view_of(video.stream, frame, now[1] if now[1] != at_first else None)
        held = (time, partial(_shown, frame, view))
    if held is not None and (count := targets.take(video.duration())):
        yield held[0], count, held[1]


def decord_frames(video: Video, targets: Targets) -> Iterator[Chosen]:
    """Decode the stream with decord, piece by piece: it reads ahead without bound, and seeks inexactly."""
    decord = _load_decord()
    view: Presentation | None = None
    for piece in cut(video):
        if view is None:
            view = _look_at_first(video, piece.packets[0][1])
        chosen = _choose(video, piece, targets)
        ranks = [rank for rank, _, _ in chosen]
        reader = _reader(decord, video, piece)
        try:
            # The last two frames too, chosen or not: if any before them could not be decoded, this fails.
            last = len(piece.packets) - 1
            wanted = sorted({*ranks, max(0, last - 1), last})
            pictures = reader.get_batch(wanted).asnumpy()
        except decord.DECORDError as error:
            raise VideoError(_decord_reason(error)) from None
        except StopIteration:
            raise VideoError("fewer frames than packets") from None
        del reader
        # Where packets gave no picture, decord repeats its last one at the end; so does a scene that stands still.
        if len(wanted) > 1 and np.array_equal(pictures[-2], pictures[-1]):
            _check_pictures(video, piece)
        for rank, time, count in chosen:
            yield time, count, partial(view.apply, pictures[wanted.index(rank)])


def fitted(chosen: Iterator[Chosen], geometry: FrameGeometry) -> Iterator[tuple[float, int, Frame]]:
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


def _ordered(video: Video) -> Iterator[tuple[int, Any]]:
    """The frames that are shown, each with its time in ticks: that of the packet from which it came."""
    latest: int | None = None
    jitter = round(JITTER_SECONDS / video.stream.time_base)
    for time, frame in _placed(video):
        if latest is not None and time < latest - jitter:
            raise VideoError("its frames are not in the order of their times")
        latest = time if latest is None else max(latest, time)
        yield latest, frame


def _placed(video: Video) -> Iterator[tuple[int, Any]]:
    """Frames with their packets' times, apart from those that need what lies before the start.

    Where it is not said which frame has which time, the earliest goes to the first. A packet that gives no picture
    takes its time with it; that it gives none is known when later ones have given theirs.
    """
    waiting: deque[Any] = deque()
    times: list[int] = []  # a heap: of packets sent
    seen: Counter[int] = Counter()  # those of them that gave a picture; two may be of one time
    for sent, frame in _decoded(video):
        if not video.is_unordered:
            if frame is not None and frame.opaque[0] >= frame.opaque[1]:
                yield frame.opaque[0], frame
            continue
        if sent is not None:
            heappush(times, sent)
        if frame is not None:
            waiting.append(frame)
            seen[frame.opaque[0]] += 1
        ends = sent is None and frame is None
        patience = MAX_REORDERED if video.context.reorder_depth and not ends else 0
        while waiting:
            if not seen[times[0]] and len(waiting) <= patience:
                break
            time = heappop(times)
            if seen[time]:
                seen[time] -= 1
                yield time, waiting.popleft()
            if not seen[time]:
                del seen[time]
        if ends:
            times.clear()


def _decoded(video: Video) -> Iterator[tuple[int | None, Any]]:
    """The times of packets as they are sent, and frames as they are shown; neither where a part of the stream ends."""
    context = video.context
    context.thread_type = "SLICE" if video.is_strict else "AUTO"  # frames at once would tell of an error too late
    context.thread_count = _threads(video)
    broken: int | None = (
        None  # time of a packet that could not be decoded, of which there may be a picture for all that
    )
    for sample in video.samples():
        if sample.begins:
            yield from _drained(video, context, broken)
            context.flush_buffers()
        if sample.heads:  # of another recording, which the decoder takes if it has one thread
            yield from _drained(video, context, broken)
            context = bare_decoder(video.context, sample.heads)
            context.copy_opaque = True
        sample.packet.opaque = sample.time, sample.floor
        yield sample.time, None
        try:
            for frame in context.decode(sample.packet):
                if frame.opaque[0] != broken:
                    yield None, frame
        except av.FFmpegError as error:
            _lose(video, error)
            broken = sample.time
    yield from _drained(video, context, broken)


def _drained(video: Video, context: Any, broken: int | None) -> Iterator[tuple[None, Any]]:
    """The frames that the decoder still holds, but for the one of a broken packet."""
    try:
        for frame in context.decode(None):
            if frame.opaque[0] != broken:
                yield None, frame
    except av.FFmpegError as error:
        _lose(video, error)
    yield None, None


def _lose(video: Video, error: av.FFmpegError) -> None:
    """A packet that cannot be decoded is a loss of a broadcast, and the end of any other file."""
    if not video.is_broadcast:
        raise VideoError(f"decoding failed: {error.strerror or error}") from None
    video.damage.lose()


def _check_pictures(video: Video, piece: Piece) -> None:
    """Raises `VideoError` where a piece's packets are not as many pictures, which PyAV is asked to count."""
    context = bare_decoder(video.context)
    try:
        count = sum(len(context.decode(packet)) for packet in [*(packet for _, packet in piece.packets), None])
    except av.FFmpegError as error:
        raise VideoError(f"decoding failed: {error.strerror or error}") from None
    if count != len(piece.packets):
        raise VideoError(f"left to pyav: {count} pictures in {len(piece.packets)} packets")


def _choose(video: Video, piece: Piece, targets: Targets) -> list[tuple[int, float, int]]:
    """Which frames of a piece are wanted: (place in presentation order, time, count)."""
    ranked = sorted(enumerate(piece.packets), key=lambda item: item[1][0])
    shown = [
        (rank, pts)
        for rank, (_, (pts, packet)) in enumerate(ranked)
        if pts >= piece.floor and (piece.until is None or pts < piece.until) and not packet.is_discard
    ]
    times = [video.clock.tick(pts) for _, pts in shown]
    after = video.duration()
    if piece.until is not None:  # what comes then may be left out by an edit list, and so all behind it
        after = min(after, video.clock.time(piece.until))
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


def _look_at_first(video: Video, packet: Any) -> Presentation:
    """Decode the first keyframe with PyAV: how it is shown, and whether decord would give the same pixels."""
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
    if is_hdr(frame):
        raise VideoError("left to pyav: HDR")
    return view_of(video.stream, frame, None)


def _shown(frame: av.VideoFrame, view: Presentation) -> Frame:
    """[height, width, 3], as a player shows it."""
    return view.apply(rgb(frame))


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
