"""Bootstrap intervals of a share of right answers, over videos: the questions of one share its cache."""

from collections.abc import Iterable, Sequence

import numpy as np

RESAMPLES = 2000


def interval(videos: Iterable[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean over all questions. `videos`: what each answer is worth (0 to 1), by video."""
    groups = list(videos)
    right = np.array([sum(group) for group in groups], dtype=np.float64)
    asked = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    low, high = np.quantile(right[drawn].sum(axis=1) / asked[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)
