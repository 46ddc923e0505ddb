"""Which of a file's video streams a player shows."""

from collections import Counter
from itertools import islice
from typing import Any

import av
from av.stream import Disposition

from vococache.errors import VideoError

PEEKED_PACKETS = 400  # looked at to tell a film from a still picture, where there are several streams


def shown_stream(container: Any) -> tuple[int, bool]:
    """Its number: a film's before a still picture's, the default before others, then the most pixels and bits.

    Never cover art. Also: were packets read to tell them apart, so that the file must be opened anew? Raises
    `VideoError` where there is none that can be decoded.
    """
    hidden = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & hidden]
    if not streams:
        raise VideoError("no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise VideoError("no decoder for the codec of its video stream")
    if len(streams) == 1:
        return streams[0].index, False
    packets = _peek(container, streams)

    def rank(stream: Any) -> tuple[bool, bool, int, int]:
        context = stream.codec_context
        is_film = packets[stream.index] > 1 and not stream.disposition & Disposition.still_image
        is_default = bool(stream.disposition & Disposition.default)
        return is_film, is_default, pixels(context), context.bit_rate or 0

    return max(streams, key=rank).index, True


def _peek(container: Any, streams: list[Any]) -> Counter[int]:
    """How many packets each stream has near the start."""
    packets: Counter[int] = Counter()
    try:
        for packet in islice(container.demux(streams), PEEKED_PACKETS):
            packets[packet.stream.index] += packet.size > 0
    except av.FFmpegError:
        pass  # told when it is read in earnest
    return packets


def pixels(context: Any) -> int:
    """Pixels of a frame, as a codec says."""
    return int(context.width * context.height)
