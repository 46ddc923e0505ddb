"""Damage that costs a moment: what of a broadcast's packets can be shown, and what is lost and told.

Runs in the decoder child; free of torch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av

from vococache.errors import VideoError

MAX_DAMAGE = 0.5  # of a video's duration, by default
MAX_GROUP = 1000  # packets that are decoded once more to learn whether the last of them is whole


@dataclass(slots=True)
class Sample:
    """A packet with its time in ticks.

    `begins`: a part begins here that is decoded on its own, another recording or the first after a loss; what is shown
    before `floor`, the time of its keyframe, would need what lies before it.
    """

    packet: Any
    time: int
    end: int
    is_key: bool
    begins: bool
    floor: int


@dataclass
class Damage:
    """Counts what a stream lost, and passes on what is whole."""

    context: Any  # of the decoder: which codec
    packets: int = 0
    ticks: int = 0
    _end: int | None = None  # of what has been passed on
    _lost: bool = False  # until the next keyframe
    _group: list[Any] = field(default_factory=list)  # packets from the last keyframe on

    def lose(self) -> None:
        """The packet passed on last could not be decoded: nothing can be shown until the next keyframe."""
        self.packets += 1
        self._lost = True

    def mended(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """`samples` without what cannot be shown as it was recorded.

        FFmpeg flags a packet where a stream's count of pieces shows a gap: it, or the next one, may lack something, and
        what follows up to the next keyframe is lost with it. But where that keyframe follows at once, a recording may
        have ended with all that it has. So these two are decoded once more, strictly, which does not notice all damage.
        The first packet of a stream may lack something without a flag, and the last one may be cut off.
        """
        suspects = 0
        is_first = True
        end: int | None = None
        for sample, following in _with_next(samples):
            end = sample.end if end is None else max(end, sample.end)
            if self._lost and not sample.is_key:
                continue
            if self._lost:
                self._lost, sample.begins = False, True
                self.ticks += max(0, sample.time - self._end) if self._end is not None else 0
            if sample.is_key:
                self._group = []
            if len(self._group) <= MAX_GROUP:
                self._group.append(sample.packet)
            if sample.packet.is_corrupt:
                self.packets += 1
                suspects = suspects or 2
            in_doubt = suspects == 1 and following is not None and not following.is_key
            is_end = is_first or following is None
            is_first = False
            if in_doubt or ((suspects or is_end) and not self._is_whole(bool(suspects))):
                self.packets += suspects == 0
                suspects, self._lost = 0, True
                self._end = sample.time if self._end is None else self._end
                continue
            self._end = sample.end if self._end is None else max(self._end, sample.end)
            if suspects:
                suspects -= 1
                self._lost = not suspects
            yield sample
        if self._end is not None and end is not None:
            self.ticks += max(0, end - self._end)

    def _is_whole(self, is_suspect: bool) -> bool:
        """Is the last packet of the group whole? Of one that nothing speaks against: unless it alone is not."""
        if len(self._group) > MAX_GROUP:
            return not is_suspect
        return _decodes(self.context, self._group) or (not is_suspect and not _decodes(self.context, self._group[:-1]))


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


def bare_decoder(like: Any, **options: str) -> Any:
    """A decoder of the same codec, of one thread, that has seen nothing yet."""
    context: Any = av.CodecContext.create(like.codec.name, "r")
    context.extradata = like.extradata
    context.width, context.height = like.width, like.height
    context.options = like.options | options
    context.thread_count = 1
    return context


def _decodes(like: Any, packets: list[Any]) -> bool:
    """Do packets decode without any error? Where the decoder conceals damage, it is told not to."""
    context = bare_decoder(like, err_detect="explode")
    try:
        for packet in [*packets, None]:
            context.decode(packet)
    except av.FFmpegError:
        return False
    return True
