"""Pearson's and Spearman's correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import Array, Groups, Scorer

ROUNDING = 1e-13  # share of the squares below which their spread is rounding


def correlations(predicted: ArrayLike, targets: ArrayLike) -> Scorer:
    """``pearson``, and ``spearman``, which is that of the ranks, equal numbers sharing the mean of
    theirs; 0 where one side does not vary.

    Args:
        predicted, targets: (examples,).
    """
    x, y = (np.asarray(side, np.float64) for side in (predicted, targets))
    centred = [side - side.mean() for side in (x, y)]
    a, b = centred
    moments = np.stack([a, b, a * a, b * b, a * b], 1)
    ranked = [_Ranks(side) for side in (x, y)]

    def score(weights: Array) -> dict[str, Array]:
        mean = (weights @ moments / weights.sum(1, keepdims=True)).T
        spread, other = mean[2] - mean[0] ** 2, mean[3] - mean[1] ** 2
        varies = (spread > ROUNDING * mean[2]) & (other > ROUNDING * mean[3])
        found = {"pearson": _share(mean[4] - mean[0] * mean[1], spread, other, varies)}
        (ranks, spread), (others, other) = (side(weights) for side in ranked)
        joint = np.einsum("ed,ed,ed->d", weights.T, ranks, others)
        varies = (spread > 0) & (other > 0)
        return found | {"spearman": _share(joint, spread, other, varies)}

    return score


class _Ranks:
    """The ranks of numbers in draws of them."""

    def __init__(self, values: Array) -> None:
        found, self.places = np.unique(values, return_inverse=True)
        self.groups = Groups(self.places, len(found))

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """(examples, draws), from the middle rank, which is 0, and the sum of the draw's squares,
        (draws,).
        """
        counts = self.groups.sum(weights).T
        # The last rank of the equal ones, less half of their number.
        ranks = counts.cumsum(0)
        ranks -= counts / 2
        ranks -= ranks[-1] / 2 + counts[-1] / 4
        return ranks[self.places], np.einsum("gd,gd,gd->d", counts, ranks, ranks)


def _share(joint: Array, spread: Array, other: Array, varies: NDArray[np.bool_]) -> Array:
    """A correlation, which is 0 where a side does not vary."""
    scale = np.sqrt(np.where(varies, spread * other, 1))
    return np.where(varies, joint / scale, 0.0).clip(-1, 1)
