"""The seconds that an answer rests on, among those that were read: where stored keys fit the question.

Measured against the attention of the answer's tokens, and against leaving segments out (docs/design/0010-finding.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vococache.model.finding import key_covariance, key_scores, queries_of_texts, weigh_queries
from vococache.workers.reason import ReasonStage
from vococache.workers.spans import Evidence, Piece

MOST = 3  # spans of an answer
STANDS_OUT = 0.5  # of the way from the worst segment to the best
SMOOTHED = 3  # segments


@dataclass(frozen=True, slots=True)
class Grounds:
    """What was read, as evidence is looked for in it: of each piece its keys in the index, and when its segments are.

    `keys`: [S, K, G, D] of all pieces' segments. `starts`, `ends`: seconds, an array for each piece.
    """

    pieces: tuple[Piece, ...]
    keys: npt.NDArray[np.float16]
    covariance: torch.Tensor
    starts: tuple[npt.NDArray[np.float64], ...]
    ends: tuple[npt.NDArray[np.float64], ...]

    @property
    def bytes(self) -> int:
        """Bytes that it holds."""
        return self.keys.nbytes + sum(times.nbytes for times in (*self.starts, *self.ends))


def grounds(stage: ReasonStage, pieces: Sequence[Piece]) -> Grounds | None:
    """Read what evidence is looked for in; None where there is nothing. Raises `CorruptionError`."""
    store = stage.store
    index = store.header.index
    if not pieces or index is None or index["kind"] != "keys":
        return None
    keys, starts, ends = [], [], []
    for piece in pieces:
        first, numbers = piece.numbers[0], np.asarray(piece.numbers)
        keys.append(store.vectors(piece.video, first, piece.numbers[-1] + 1)[numbers - first])
        times = store.timestamps(piece.video)
        starts.append(times[numbers, 0])
        until = times[1:, 0]
        if piece.numbers[-1] == len(until):  # else nobody need know where the video ends
            until = np.append(until, segment_end(stage, piece.video, times))
        ends.append(until[numbers])
    joined = np.concatenate(keys)
    flat = torch.from_numpy(joined.reshape(-1, *joined.shape[2:]))
    covariance = key_covariance(flat) if len(flat) > 1 else torch.zeros(0)
    return Grounds(tuple(pieces), joined, covariance, tuple(starts), tuple(ends))


def evidence_of(
    stage: ReasonStage, read: Sequence[Grounds | None], texts: Sequence[torch.Tensor]
) -> list[list[Evidence]]:
    """Up to `MOST` spans of what was read that the answer to each of several texts rests on, best first.

    All go through the model in one pass. None where there is nothing to look for it in.
    """
    index = stage.store.header.index
    found: list[list[Evidence]] = [[] for _ in texts]
    able = [place for place, each in enumerate(read) if each is not None]
    if not able or index is None:
        return found
    queries = queries_of_texts(stage.model, [texts[place] for place in able], index["layer"], index.get("heads"))
    for place, query_TGRD in zip(able, queries, strict=True):
        own = read[place]
        assert own is not None, "chosen above"
        scores = np.ones(len(own.keys), np.float32)
        if len(own.covariance):
            scores = key_scores(weigh_queries(query_TGRD, own.covariance), own.keys).numpy()
        found[place] = _best(own, scores)
    return found


def _best(read: Grounds, scores: npt.NDArray[np.float32]) -> list[Evidence]:
    """The spans of segments that stand out, best first."""
    low, high = float(scores.min()), float(scores.max())
    scores = (scores - low) / (high - low) if high > low else np.ones_like(scores)
    cuts = np.cumsum([len(piece.numbers) for piece in read.pieces])[:-1]
    found = [
        span
        for piece, starts, ends, own in zip(read.pieces, read.starts, read.ends, np.split(scores, cuts), strict=True)
        for span in _spans(piece, starts, ends, own)
    ]
    return sorted(found, key=lambda span: -span.score)[:MOST]


def _spans(
    piece: Piece, starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], scores: npt.NDArray[np.float32]
) -> list[Evidence]:
    """Runs of segments that stand out, in seconds."""
    if not (scores >= STANDS_OUT).any():
        return []
    width = min(SMOOTHED, len(scores))
    smooth = np.convolve(scores, np.ones(width) / width, "same")
    marked, numbers = np.flatnonzero((scores >= STANDS_OUT) | (smooth >= STANDS_OUT)), np.asarray(piece.numbers)
    # Segments of a skeleton are neighbours only in their piece: between them nothing was read.
    runs = np.split(marked, np.flatnonzero((np.diff(marked) > 1) | (np.diff(numbers[marked]) > 1)) + 1)
    return [
        Evidence(
            video=piece.video, start=float(starts[run[0]]), end=float(ends[run[-1]]),
            score=round(float(scores[run].max()), 4),
        )
        for run in runs
    ]  # fmt: skip


def segment_end(stage: ReasonStage, video: str, times: npt.NDArray[np.float64]) -> float:
    """Where a video's last segment ends, in seconds."""
    return max(stage.store.info(video).duration or 0.0, float(times[-1, -1]))
