"""A video stream in pieces for decord, which would read ahead without bound and seeks inexactly.

See docs/design/0003-decoding.md. Runs in the decoder child; free of torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
from av.bitstream import BitStreamFilterContext

from vococache.errors import VideoError
from vococache.workers.video.container import Video

# A piece is what decord is given at once (see docs/design/0003-decoding.md): whole groups of pictures.
PIECE_PACKETS = 240
PIECE_BYTES = 256 << 20
HEADED = ("h264", "hevc", "mpeg1video", "mpeg2video")  # have their parameters in the stream, in some containers


@dataclass
class Piece:
    """Consecutive groups of pictures, decodable on their own.

    `packets` in decoding order with their times; frames from `until` on are shown by the next piece, frames before
    `floor` not at all.
    """

    packets: list[tuple[int, Any]]
    until: int | None
    floor: int


def cut(video: Video) -> Iterator[Piece]:
    """The stream in pieces for decord. Raises `VideoError` where it cannot be cut."""
    piece: list[tuple[int, Any]] = []
    tail: list[tuple[int, Any]] = []  # the next keyframe, and frames after it that are shown before it
    size, floor = 0, 0
    heads = _Heads(video)
    was_shown = was_left_out = False
    if video.format_name == "mpeg":
        raise VideoError("left to pyav: a program stream, whose damage is seen in decoding alone")
    if video.is_composed:
        raise VideoError("left to pyav: an edit list shows it in parts")
    for sample in video.samples():
        was_left_out = was_left_out or (was_shown and sample.packet.is_discard)
        was_shown = was_shown or not sample.packet.is_discard
        if was_left_out and not sample.packet.is_discard:
            raise VideoError("left to pyav: some of its frames are not to be shown")
        if video.damage.packets:
            raise VideoError("left to pyav: it has broken packets")
        if video.stutters:
            raise VideoError("left to pyav: its clock does not rise from packet to packet")
        packet = sample.packet
        if sample.is_key and heads.differs(packet):
            raise VideoError("left to pyav: its size, shape or coding changes within the stream")
        size += packet.size
        if size > PIECE_BYTES:
            raise VideoError(f"more than {PIECE_BYTES >> 20} MiB between keyframes")
        if sample.begins and piece:
            if tail:
                yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
                piece, tail = tail[:1], []
            yield Piece(piece, sample.time, floor)
            piece, size = [], packet.size
        floor = sample.floor
        if tail and sample.time < tail[0][0]:
            tail.append((sample.time, packet))
            continue
        if tail:
            yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
            piece, tail, size = tail[:1], [], tail[0][1].size + packet.size
        if sample.is_key and len(piece) >= PIECE_PACKETS:
            tail = [(sample.time, packet)]
        else:
            piece.append((sample.time, packet))
    if tail:
        yield Piece(piece + tail if len(tail) > 1 else piece, tail[0][0], floor)
        piece = tail[:1]
    if piece:
        yield Piece(piece, None, floor)


class _Heads:
    """Parameters of the codec, of the first keyframe that has them."""

    def __init__(self, video: Video) -> None:
        self._stream, self._context = video.stream, video.context
        self._first: bytes | None = None

    def differs(self, packet: Any) -> bool:
        """Does a keyframe come with other parameters of the codec than those that the stream began with?"""
        if packet.has_sidedata("new_extradata"):
            return bool(bytes(packet.get_sidedata("new_extradata")) != self._context.extradata)
        if self._context.name not in HEADED or (self._context.extradata or b"")[:1] == b"\1":
            return False  # not in its packets
        extractor = BitStreamFilterContext("extract_extradata", self._stream)
        found = [p for p in extractor.filter(av.Packet(bytes(packet))) if p.has_sidedata("new_extradata")]
        head = bytes(found[0].get_sidedata("new_extradata")) if found else None
        self._first = self._first or head
        return head not in (None, self._first)
