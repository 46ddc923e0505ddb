"""Reading what is too long: the windows that matter in full, of the rest a thin skeleton, in time order."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vococache.errors import ContextLimitError, StoreError
from vococache.model.cache import VoCoCache
from vococache.workers.finding import (
    Scores,
    Window,
    as_question,
    best_windows,
    read_windows,
    readable_segments,
    score_segments,
)
from vococache.workers.reason import Context, ReasonStage
from vococache.workers.spans import Piece, SegmentSpan, Skeleton

MOST_SKELETON = 512  # segments: each that is read costs its chunk, however long the video
READ = 50  # windows that are read before the best are chosen, where it is told what to find


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked about: of each video, in order, segments [start, stop). `spans`: with their times, where known."""

    bounds: Mapping[str, tuple[int, int]]
    spans: Sequence[SegmentSpan] = ()

    @classmethod
    def of(cls, spans: Iterable[SegmentSpan]) -> "Scope":
        """The scope of these spans; of several of one video, the last."""
        kept = {span.video: span for span in spans}
        return cls({video: (span.start, span.stop) for video, span in kept.items()}, [*kept.values()])

    @property
    def segments(self) -> int:
        """Segments of all videos."""
        return sum(stop - start for start, stop in self.bounds.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Focus:
    """What of a scope is read for a question: `spans` with all `tokens`, the rest as the skeleton says; all `pieces`.

    `seconds`: that it took to find.
    """

    spans: list[SegmentSpan]
    tokens: int
    pieces: list[Piece]
    skeleton: Skeleton
    seconds: float


def focus(
    stage: ReasonStage,
    scope: Scope,
    question: str,
    *,
    tokens: int | None = None,
    room: int = 0,
    find: str | None = None,
) -> Focus:
    """The parts of a scope that matter to a question, as many as fit the model's context.

    Windows come first by the index: by the question itself, or, better, by what it tells to `find`, which the best
    `READ` windows then are read for. They take half of the room, and no more segments than the model was taught to
    look at together; the skeleton takes the rest. `tokens`, `room`: as `ReasonStage.load`.

    Raises `StoreError` where the store has no index, `ContextLimitError` where not one segment fits.
    """
    started = time.perf_counter()
    k = stage.check_tokens(tokens)
    config = stage.model.config
    positions = stage.limit - room
    if positions < k:
        raise ContextLimitError(
            f"a text of {room} tokens leaves {max(0, positions)} of {stage.limit} positions, a segment needs {k}:"
            " shorten the question"
        )
    if "segments" in config.search:
        positions = min(positions, int(config.search["segments"]) * k)
    wanted = as_question(stage.model, find) if find is not None else question
    length = min(readable_segments(stage, wanted), positions // k)
    scores = score_segments(stage, wanted, videos=list(scope.bounds))
    inside = Scores(videos={video: scores.videos[video][slice(*scope.bounds[video])] for video in scores.videos})
    most = max(1, positions // 2 // (length * k))
    windows = best_windows(inside, length, max(most, READ) if find is not None else most)
    if not windows:
        url = stage.store.url
        raise StoreError(f"no video that is asked about has an index in {url}: `voco upgrade {url}` makes one")
    windows = [_moved(window, scope.bounds[window.video][0]) for window in windows]
    if find is not None:
        windows = sorted(read_windows(stage, windows, wanted), key=lambda window: -window.score)[:most]
    pieces, skeleton = plan(scope, windows, k, positions, elastic=config.elastic and not config.untrained)
    spans = named(stage, windows)
    return Focus(spans=spans, tokens=k, pieces=pieces, skeleton=skeleton, seconds=time.perf_counter() - started)


def load_focus(stage: ReasonStage, focus: Focus) -> Context:
    """What was chosen, placed for reading."""
    started = time.perf_counter()
    placed = stage.model.place(VoCoCache.join([_entries(stage, piece) for piece in focus.pieces]))
    return Context(
        spans=focus.spans, tokens=focus.tokens, placed=placed, load_seconds=time.perf_counter() - started,
        pieces=focus.pieces, skeleton=focus.skeleton, find_seconds=focus.seconds,
    )  # fmt: skip


def _moved(window: Window, by: int) -> Window:
    return Window(window.video, window.start + by, window.stop + by, window.score)


def plan(
    scope: Scope, windows: Sequence[Window], k: int, positions: int, *, elastic: bool
) -> tuple[list[Piece], Skeleton]:
    """What is read of a scope within so many positions: the windows with `k` tokens a segment, and of the others some.

    Where the model is `elastic`, the others are read with fewer tokens each; where that does not do, every n-th is.
    """
    full = {video: np.zeros(stop - start, bool) for video, (start, stop) in scope.bounds.items()}
    for window in windows:
        start = scope.bounds[window.video][0]
        full[window.video][window.start - start : window.stop - start] = True
    others = scope.segments - sum(int(whole.sum()) for whole in full.values())
    left = positions - (scope.segments - others) * k
    thin = k
    if elastic:
        thin = 1
        while 2 * thin < k and 2 * thin * others <= left:
            thin *= 2
    fitting = min(left // thin, MOST_SKELETON)
    every = -(-others // fitting) if fitting > 0 else 0
    pieces: list[Piece] = []
    count = passed = 0
    for video, whole in full.items():
        rest = np.flatnonzero(~whole)
        thinly = rest[(-passed) % every :: every] if every else rest[:0]
        passed += len(rest)
        count += len(thinly)
        numbers = np.sort(np.concatenate((np.flatnonzero(whole), thinly)))
        changes = np.flatnonzero(np.diff(whole[numbers])) + 1
        pieces += [
            Piece(video, tuple((part + scope.bounds[video][0]).tolist()), k if whole[part[0]] else thin)
            for part in np.split(numbers, changes)
            if len(part)
        ]
    return pieces, Skeleton(every=every, tokens=thin if count else 0, segments=count)


def named(stage: ReasonStage, windows: Sequence[Window]) -> list[SegmentSpan]:
    """Windows in time order, with their seconds; videos in the order of their best."""
    order = list(dict.fromkeys(window.video for window in windows))
    in_order = sorted(windows, key=lambda window: (order.index(window.video), window.start))
    return [stage.span(window.video, window.start, window.stop) for window in in_order]


def _entries(stage: ReasonStage, piece: Piece) -> VoCoCache:
    """A piece entry by entry, as segments of one token: pieces of different K can stand one behind the other."""
    numbers = np.asarray(piece.numbers)
    # What lies in the same chunk, roughly, is read at once.
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers // stage.store.header.chunk_segments)) + 1)
    read = [stage.store.read(piece.video, int(part[0]), int(part[-1]) + 1)[part - part[0]] for part in parts]
    cache = torch.from_numpy(np.concatenate(read))[:, :, :, :, : piece.tokens]  # [S, layers, 2, G, K, D]
    return VoCoCache(cache).as_entries()
