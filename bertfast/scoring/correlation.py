"""Pearson's and Spearman's correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Array, Groups, Scorer

ROUNDING = 1e-13  # share of the squares below which their spread is rounding


def correlations(predicted: ArrayLike, targets: ArrayLike) -> Scorer:
    """``pearson``, and ``spearman``, which is that of the ranks, equal numbers sharing the mean of
    theirs; 0 where one side does not vary.

    Args:
        predicted, targets: (examples,).
    """
    sides = [np.asarray(side, np.float64) for side in (predicted, targets)]
    centred = [side - side.mean() for side in sides]
    ranked = [_Ranks(side) for side in sides]

    def score(weights: Array) -> dict[str, Array]:
        rows = [side[None] for side in centred]
        return {
            "pearson": _correlation(rows[0], rows[1], weights),
            "spearman": _correlation(ranked[0](weights), ranked[1](weights), weights),
        }

    return score


class _Ranks:
    """The ranks of numbers in draws of them."""

    def __init__(self, values: Array) -> None:
        found, self.places = np.unique(values, return_inverse=True)
        self.groups = Groups(self.places, len(found))

    def __call__(self, weights: Array) -> Array:
        """(draws, examples), from the middle rank, which is 0."""
        counts = self.groups.sum(weights)
        # The last rank of the equal ones, less half of their number.
        ranks = counts.cumsum(1) - counts / 2
        return (ranks - weights.sum(1, keepdims=True) / 2)[:, self.places]


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    """(draws,) of (draws, examples), or of (1, examples) in every draw."""
    total = weights.sum(1)

    def mean(values: Array) -> Array:
        shared = len(values) == 1 and len(weights) > 1
        return (weights @ values[0] if shared else (weights * values).sum(1)) / total

    mean_x, mean_y, square_x, square_y = mean(x), mean(y), mean(x * x), mean(y * y)
    spread_x, spread_y = square_x - mean_x**2, square_y - mean_y**2
    varies = (spread_x > ROUNDING * square_x) & (spread_y > ROUNDING * square_y)
    scale = np.sqrt(np.where(varies, spread_x * spread_y, 1))
    return np.where(varies, (mean(x * y) - mean_x * mean_y) / scale, 0.0).clip(-1, 1)
