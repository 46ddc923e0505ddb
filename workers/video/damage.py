"""Damage that costs a moment: what of a broadcast's packets can be shown, and what is lost and told.

Runs in the decoder child; free of torch.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import av

from vococache.errors import VideoError
from vococache.workers.video.transport import Losses

MAX_DAMAGE = 0.5  # of a video's duration, by default
MAX_GROUP = 1000  # packets that are decoded once more to learn whether the last of them is whole


@dataclass(slots=True)
class Sample:
    """A packet with its time in ticks.

    `begins`: a part begins here that is decoded on its own, another recording or the first after a loss; what is shown
    before `floor`, the time of its keyframe, would need what lies before it.
    `heads`: packets before it that only set up the decoder.
    """

    packet: Any
    time: int
    end: int
    is_key: bool
    begins: bool
    floor: int
    heads: list[Any]


@dataclass
class Damage:
    """Counts what a stream lost, and passes on what is whole."""

    context: Any  # of the decoder: which codec
    losses: Losses | None = None  # of a transport stream
    packets: int = 0
    ticks: int = 0
    skipped: int = 0  # ticks before the first keyframe, which are no part of the video's duration
    _end: int | None = None  # of what has been passed on
    _lost: bool = False  # until the next keyframe
    _suspects: int = 0  # packets that may lack something
    _is_first: bool = True
    _unit: int = 0  # of a transport stream: where the current packet's starts
    _told: int | None = None  # the unit that was counted last
    _heads: list[Any] = field(default_factory=list)
    _group: list[Any] = field(default_factory=list)  # packets from the last keyframe on

    def lose(self) -> None:
        """The packet passed on last could not be decoded: nothing can be shown until the next keyframe."""
        self.packets += 1
        self._lost = True

    def skip(self, ticks: int) -> None:
        """A recording began so long before its first keyframe, and what was there cannot be shown."""
        self.packets += 1
        self.skipped = ticks

    def mended(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """`samples` without what cannot be shown as it was recorded.

        All up to the next keyframe is lost with a broken packet, for it refers to what is lost. But where that keyframe
        follows at once, a recording may have ended with all that it has.
        """
        judge = self._by_flags if self.losses is None else self._by_count
        end: int | None = None
        for sample, following in _with_next(samples):
            end = sample.end if end is None else max(end, sample.end)
            if self._lost and not sample.is_key:
                continue
            if self._lost:
                self._lost, sample.begins = False, True
                if self._end is not None:
                    self.ticks += max(0, sample.time - self._end)
                    self._end = max(self._end, sample.time)  # it may be broken, too
            self._heads = sample.heads or self._heads
            if sample.is_key:
                self._group = []
            if len(self._group) <= MAX_GROUP:
                self._group.append(sample.packet)
            if not judge(sample, following):
                self._lost = True
                self._end = sample.time if self._end is None else self._end
                continue
            self._end = sample.end if self._end is None else max(self._end, sample.end)
            yield sample
        if self._end is not None and end is not None:
            self.ticks += max(0, end - self._end)

    def _by_count(self, sample: Sample, following: Sample | None) -> bool:
        """Is a packet of a transport stream whole? Takes note of what is missing behind it."""
        assert self.losses is not None
        packet = sample.packet
        start = self._unit = self._unit if packet.pos is None else packet.pos
        next_start = following.packet.pos if following is not None else None
        is_last = following is None or next_start not in (None, start)  # of the unit
        end = next_start if is_last else start + 1
        is_broken = self.losses.is_broken(start, end)
        is_before_loss = is_last and self.losses.is_before_loss(start, end)
        is_broken = is_broken or (is_before_loss and self.losses.is_in_doubt(start, end))
        is_broken = is_broken or (packet.is_corrupt and not self._is_whole(True))
        if is_broken or is_before_loss:
            self.packets += start != self._told
            self._told, self._lost = start, True
        return not is_broken

    def _by_flags(self, sample: Sample, following: Sample | None) -> bool:
        """The same where FFmpeg's flags alone tell: the flagged packet, or the next one, may lack something.

        Both are decoded once more, strictly, which does not notice all damage; the second one is whole only if a
        keyframe follows it. The first packet may lack something without a flag, and the last one may be cut off.
        """
        if sample.packet.is_corrupt:
            self.packets += 1
            self._suspects = self._suspects or 2
        is_suspect = self._suspects > 0
        in_doubt = self._suspects == 1 and following is not None and not following.is_key
        is_end = self._is_first or following is None
        self._is_first = False
        if in_doubt or ((is_suspect or is_end) and not self._is_whole(is_suspect)):
            self.packets += not is_suspect
            self._suspects = 0
            return False
        self._suspects -= is_suspect
        self._lost = is_suspect and not self._suspects
        return True

    def _is_whole(self, is_suspect: bool) -> bool:
        """Is the last packet of the group whole? Of one that nothing speaks against: unless it alone is not."""
        if len(self._group) > MAX_GROUP:
            return not is_suspect
        if _decodes(self.context, self._heads, self._group):
            return True
        return not is_suspect and not _decodes(self.context, self._heads, self._group[:-1])


def check_damage(seconds: float, duration: float, most: float) -> None:
    """Raises `VideoError` where more than the share `most` of a video was lost."""
    if seconds > most * duration:
        raise VideoError(
            f"damaged: {seconds:.1f} of {duration:.1f} s are lost, expected a share of at most {most:g} (--max-damage)"
        )


def _with_next(samples: Iterable[Sample]) -> Iterator[tuple[Sample, Sample | None]]:
    """Each sample, and the one behind it."""
    held: Sample | None = None
    for sample in samples:
        if held is not None:
            yield held, sample
        held = sample
    if held is not None:
        yield held, None


def bare_decoder(like: Any, heads: Iterable[Any] = (), **options: str) -> Any:
    """A decoder of the same codec, of one thread, that has seen nothing yet but `heads`, which set it up anew."""
    context: Any = av.CodecContext.create(like.codec.name, "r")
    context.extradata = like.extradata
    context.width, context.height = like.width, like.height
    context.options = like.options | options
    context.thread_count = 1
    for head in heads:
        with suppress(av.FFmpegError):  # there is no picture in it
            context.decode(head)
    return context


def _decodes(like: Any, heads: list[Any], packets: list[Any]) -> bool:
    """Do packets decode without any error? Where the decoder conceals damage, it is told not to."""
    context = bare_decoder(like, heads, err_detect="explode")
    try:
        for packet in [*packets, None]:
            context.decode(packet)
    except av.FFmpegError:
        return False
    return True
