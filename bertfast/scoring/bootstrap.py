"""Bootstrap intervals: scores as functions of how often each example counts.

A score is a function of weights. Weights of 1 for every example give its value, and the counts of a
draw with replacement give its value on that draw. Efron and Tibshirani, "An Introduction to the
Bootstrap", chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# (draws, examples) counts to each score's values, (draws,) or (draws, ...).
Scorer = Callable[[Array], dict[str, Array]]

LEVEL = 0.95
RESAMPLES = 1000
CHUNK = 1 << 17  # weights that stand in memory at once


def scores_of(scorer: Scorer, examples: int) -> dict[str, Array]:
    """Each score's value, with every example counted once."""
    return {name: values[0] for name, values in scorer(np.ones((1, examples))).items()}


def intervals(
    scorer: Scorer,
    examples: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Array]:
    """The percentile interval of each score, (2, ...): its lower and its upper end.

    Args:
        scorer: see `Scorer`.
        examples: how many there are; each draw has as many.
        resamples: how many draws.
        level: share of the draws inside the interval.
        seed: of the draws.
    """
    found = draws(scorer, examples, resamples=resamples, seed=seed)
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile(values, ends, 0) for name, values in found.items()}


def draws(
    scorer: Scorer, examples: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Array]:
    """Each score's value in each draw, (draws, ...). The same seed and number of examples give the
    same draws, so that the scores of two models are paired; arguments as of `intervals`.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {}
    at_once = max(1, CHUNK // max(examples, 1))
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        for name, values in scorer(_weights(rng, number, examples)).items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def alone(scorer: Scorer, examples: int) -> dict[str, Array]:
    """Each score of each example by itself, (examples, ...)."""
    found: dict[str, list[Array]] = {}
    at_once = max(1, CHUNK // max(examples, 1))
    for start in range(0, examples, at_once):
        rows = np.arange(start, min(start + at_once, examples))
        one = np.zeros((len(rows), examples))
        one[np.arange(len(rows)), rows] = 1
        for name, values in scorer(one).items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _weights(rng: np.random.Generator, draws: int, examples: int) -> Array:
    """(draws, examples): how often each draw of ``examples`` examples has each of them. A column's
    numbers lie together, since what is summed is columns.
    """
    chosen = rng.integers(0, examples, (draws, examples))
    chosen *= draws
    chosen += np.arange(draws)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=draws * examples)
    return counts.astype(np.float64).reshape(examples, draws).T


def sums_of(counts: Array, scores: Callable[[Array], dict[str, Array]]) -> Scorer:
    """A scorer of what each example adds to sums, as the numbers of entities that were found.

    Args:
        counts: (examples, sums).
        scores: the sums, (draws, sums), to each score's values, (draws,).
    """
    counts = np.asarray(counts, np.float64)
    return lambda weights: scores(weights @ counts)


def mean_of(values: Mapping[str, Array]) -> Scorer:
    """A scorer whose scores are means over examples.

    Args:
        values: each score's value of each example, (examples,).
    """
    columns = np.stack([np.asarray(row, np.float64) for row in values.values()], 1)

    def means(sums: Array) -> dict[str, Array]:
        return dict(zip(values, sums.T / len(columns), strict=True))

    return sums_of(columns, means)


def together(*scorers: Scorer) -> Scorer:
    """A scorer of the scores of several."""
    return lambda weights: {
        name: values for scorer in scorers for name, values in scorer(weights).items()
    }


class Groups:
    """Sums of columns by group.

    Args:
        groups: (columns,) whole numbers from 0.
        number: how many groups there are.
    """

    def __init__(self, groups: NDArray[np.integer], number: int) -> None:
        self.number = number
        self.order = np.argsort(groups, kind="stable")
        self.found, self.starts = np.unique(groups[self.order], return_index=True)

    def sum(self, values: Array) -> Array:
        """(rows, columns) to (rows, number)."""
        sums = np.zeros((self.number, len(values)))
        sums[self.found] = np.add.reduceat(values.T[self.order], self.starts, axis=0)
        return sums.T


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, np.float64), where=whole > 0)
