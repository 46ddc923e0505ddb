"""The seconds that an answer rests on, among those that were read: where stored keys fit the question.

Measured against the attention of the answer's tokens, and against leaving segments out (docs/design/0010-finding.md).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from vococache.model.finding import index_queries, join_queries, key_scores
from vococache.workers.reason import ReasonStage, question_ids
from vococache.workers.spans import Evidence, Piece

MOST = 3  # spans of an answer
STANDS_OUT = 0.5  # of the way from the worst segment to the best
SMOOTHED = 3  # segments


def evidence(
    stage: ReasonStage, pieces: Sequence[Piece], question: str, history: Sequence[tuple[str, str]] = ()
) -> list[Evidence]:
    """Up to `MOST` spans of what was read that an answer to a question rests on, best first.

    None where the store has no index of keys.

    Raises `CorruptionError` where the index's bytes changed.
    """
    index = stage.store.header.index
    if not pieces or index is None or index["kind"] != "keys":
        return []
    scores = by_keys(stage, pieces, question_ids(stage.model, question, history))
    low, high = float(scores.min()), float(scores.max())
    scores = (scores - low) / (high - low) if high > low else np.ones_like(scores)
    found, first = [], 0
    for piece in pieces:
        own = scores[first : first + len(piece.numbers)]
        first += len(piece.numbers)
        found += _spans(stage, piece, own)
    return sorted(found, key=lambda span: -span.score)[:MOST]


def by_keys(stage: ReasonStage, pieces: Sequence[Piece], ids: torch.Tensor) -> npt.NDArray[np.float32]:
    """How well each segment's keys in the index fit a text."""
    index = stage.store.header.index
    assert index is not None, "the caller looked"
    vectors = []
    for piece in pieces:
        first, last = piece.numbers[0], piece.numbers[-1]
        vectors.append(stage.store.vectors(piece.video, first, last + 1)[np.asarray(piece.numbers) - first])
    keys = np.concatenate(vectors)  # [S, K, G, D]
    flat = torch.from_numpy(keys.reshape(-1, *keys.shape[2:]))
    if len(flat) < 2:
        return np.ones(len(keys), np.float32)
    query = join_queries(index_queries(stage.model, ids, index["layer"], index.get("heads")), flat)
    return np.asarray(key_scores(query, keys).numpy(), np.float32)


def _spans(stage: ReasonStage, piece: Piece, scores: npt.NDArray[np.float32]) -> list[Evidence]:
    """Runs of segments that stand out, in seconds."""
    if not (scores >= STANDS_OUT).any():
        return []
    width = min(SMOOTHED, len(scores))
    smooth = np.convolve(scores, np.ones(width) / width, "same")
    marked = np.flatnonzero((scores >= STANDS_OUT) | (smooth >= STANDS_OUT))
    times, numbers = stage.store.timestamps(piece.video), np.asarray(piece.numbers)
    spans = []
    # Segments of a skeleton are neighbours only in their piece: between them nothing was read.
    for run in np.split(marked, np.flatnonzero((np.diff(marked) > 1) | (np.diff(numbers[marked]) > 1)) + 1):
        start, stop = int(numbers[run[0]]), int(numbers[run[-1]]) + 1
        end = float(times[stop, 0]) if stop < len(times) else segment_end(stage, piece.video, times)
        spans.append(
            Evidence(video=piece.video, start=float(times[start, 0]), end=end, score=round(float(scores[run].max()), 4))
        )
    return spans


def segment_end(stage: ReasonStage, video: str, times: npt.NDArray[np.float64]) -> float:
    """Where a video's last segment ends, in seconds."""
    return max(stage.store.info(video).duration or 0.0, float(times[-1, -1]))
