"""Tests of two rows of a table on the same examples, and their correction where there are many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Array


def sign_flips(differences: ArrayLike) -> float:
    """The p-value, of two sides, that whole numbers of a mean of 0 have such a sum.

    It is the exact share of all ways to choose their signs whose sum is as far from 0.

    Of 1, 0 and -1 (right or wrong, of two models) it is McNemar's exact test. Of sums over seeds it
    is the permutation test of paired examples.

    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions",
    1947; Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        differences: (examples,) whole numbers.
    """
    values = np.abs(np.asarray(differences, np.int64))
    seen = abs(int(np.asarray(differences, np.int64).sum()))
    # The distribution of the sum, a product of one polynomial for each size of a difference.
    shares = np.ones(1)
    for size, count in enumerate(np.bincount(values)):
        if size and count:
            terms = np.zeros(2 * size * count + 1)
            terms[:: 2 * size] = _binomial(count)
            shares = np.convolve(shares, terms)
    sums = np.arange(len(shares)) - (len(shares) - 1) // 2
    return float(min(1.0, shares[np.abs(sums) >= seen].sum()))


def _binomial(count: int) -> Array:
    """The chance of each number of heads in so many tosses of a fair coin."""
    logs = np.concatenate([[0.0], np.log(np.arange(1, count + 1)).cumsum()])
    return np.exp(logs[-1] - logs - logs[::-1] - count * np.log(2))


def bootstrap_test(draws: ArrayLike) -> float:
    """The p-value, of two sides, that a score's difference is 0.

    It is twice the share of draws on the lesser side of 0, each side given one draw more. Efron and
    Tibshirani, "An Introduction to the Bootstrap", section 15.4.

    Args:
        draws: (draws,) the difference in each.
    """
    values = np.asarray(draws, np.float64)
    least = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (len(values) + 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order. Holm, "A simple sequentially rejective
    multiple test procedure", 1979.
    """
    p = np.asarray(values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected.tolist()
