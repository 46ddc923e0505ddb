"""A source's newest segments, which are kept whole beside their caches: what matters now is in the last frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vococache.errors import InputError
from vococache.pipeline.ask import MAX_NEW_TOKENS
from vococache.pipeline.live.parts import newest_first
from vococache.pipeline.live.sources import WatchSource
from vococache.storage import Store, whole
from vococache.storage.whole import WholeSegment

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel
    from vococache.pipeline.live.feed import Chunk


@dataclass(frozen=True, slots=True)
class Compressed:
    """A chunk as it is stored: its caches, and, by their place in it, the entries of the segments that are kept whole.

    `kv`: [segments, layers, 2, kv_heads, tokens, head_dim]; entries: the same of one segment, with all its tokens.
    """

    kv: npt.NDArray[Any]
    whole: dict[int, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Newest:
    """Which segments of a source are kept whole: its newest `most`, over all its parts."""

    store: Store
    most: int
    _kept: list[WholeSegment] = field(default_factory=list)  # oldest first

    @classmethod
    def of(cls, store: Store, source: WatchSource) -> "Newest":
        """As another watch of the source has left them; what is too many is removed."""
        found: list[WholeSegment] = []
        for part in newest_first(store, source.id):
            kept = whole.kept(store, part.video)
            if not kept:
                break
            found = kept + found
        newest = cls(store=store, most=source.whole, _kept=found)
        newest.add([])
        return newest

    def add(self, kept: Sequence[WholeSegment]) -> None:
        """These are there now, and can be read; the oldest, in their place, no longer. Raises `StoreError`."""
        self._kept += kept
        old = self._kept[: max(0, len(self._kept) - self.most)]
        whole.remove(self.store, old)
        del self._kept[: len(old)]


def compress_chunks(model: "VoCoModel", store: Store, chunks: "Sequence[Chunk]") -> list[Compressed]:
    """Chunks of several sources in one batch, each with its newest segments whole where its part says so.

    Raises `InputError` where the store's dtype does not hold their caches.
    """
    from vococache.model.untrained import Untrained
    from vococache.workers.caches import compress_frames, compress_keeping

    frames = np.concatenate([chunk.frames for chunk in chunks])
    ends = np.cumsum([len(chunk.segments) for chunk in chunks]).tolist()
    newest = [min(chunk.part.whole, len(chunk.segments)) for chunk in chunks]
    wanted = {place for end, count in zip(ends, newest, strict=True) for place in range(end - count, end)}
    micro_batch, dtype = store.header.micro_batch, store.header.dtype
    if not wanted:
        return [Compressed(kv) for kv in np.split(compress_frames(model, frames, micro_batch, dtype), ends[:-1])]
    assert isinstance(model, Untrained), "others are refused"
    kv, entries = compress_keeping(model, frames, micro_batch, dtype, wanted)
    starts = [0, *ends[:-1]]
    return [
        Compressed(kv[start:end], {place - start: entries[place] for place in range(start, end) if place in entries})
        for start, end in zip(starts, ends, strict=True)
    ]


def check_whole(model: "VoCoModel", source: WatchSource) -> None:
    """Refuse to keep whole what the model cannot read so. Raises `InputError`."""
    config, asked = model.config, f"source {source.id!r} is to keep {source.whole} segments whole"
    if not source.whole:
        return
    if not config.untrained:
        raise InputError(
            f"{asked}, which model {model.name!r} never learned to read: it has VoCo tokens; leave out --whole, or"
            f" compress without training (--compression cover)"
        )
    if config.full_tokens <= config.num_voco_tokens:
        raise InputError(
            f"{asked}, but this compression ({config.compression}) keeps all of them so: leave out --whole"
        )
    limit = config.max_positions - config.prefix_entries - MAX_NEW_TOKENS
    if source.whole * config.full_tokens > limit:
        raise InputError(
            f"{asked}, of {config.full_tokens} tokens each, but the model has {max(0, limit)} positions for them and a"
            f" question: at most {max(0, limit) // config.full_tokens} fit"
        )


def extra_positions(model: "VoCoModel", source: WatchSource, segments: int) -> int:
    """Positions that so many of a source's segments take beyond those of their caches, as the newest are whole."""
    config = model.config
    return min(source.whole, segments) * (config.full_tokens - config.num_voco_tokens) if source.whole else 0
