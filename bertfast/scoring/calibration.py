"""How far probabilities are what they say, and the temperature that brings them nearer.

Guo et al., "On Calibration of Modern Neural Networks", 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Array, intervals, ratio, scores_of

BINS = 15  # as in the paper
MOST = 20.0  # the temperature, or one over it, at most
STEPS = 60  # of the bisection: far below float32's rounding


class Calibration:
    """The expected calibration error, over bins of equal width.

    It is how far the mean probability of a bin is from the share of what came true, weighted by the
    bins' sizes.

    Args:
        probabilities: (examples,) or (examples, decisions), each from 0 to 1.
        came_true: likewise, whether what they are the probabilities of is so.
    """

    def __init__(self, probabilities: ArrayLike, came_true: ArrayLike) -> None:
        said = np.asarray(probabilities, np.float64)
        said = said.reshape(len(said), -1)
        true = np.asarray(came_true, np.float64).reshape(said.shape)
        self.edges = np.linspace(0, 1, BINS + 1)
        # A bin has its upper edge and not its lower one; 0 is in the first.
        places = np.searchsorted(self.edges[1:-1], said, side="left")
        rows = np.repeat(np.arange(len(said)), said.shape[1])
        self.sums = np.zeros((3, len(said), BINS))
        for table, values in zip(self.sums, (np.ones_like(said), said, true), strict=True):
            np.add.at(table, (rows, places.ravel()), values.ravel())

    def scorer(self, weights: Array) -> dict[str, Array]:
        """``ece``, by draw."""
        counts, said, true = (weights @ table for table in self.sums)
        return {"ece": np.abs(said - true).sum(1) / counts.sum(1)}

    def report(self) -> dict[str, Any]:
        """``ece``, its ``interval``, and the ``bins``."""
        examples = self.sums.shape[1]
        return {
            "ece": float(scores_of(self.scorer, examples)["ece"]),
            "interval": intervals(self.scorer, examples)["ece"].tolist(),
            "bins": self.bins(),
        }

    def bins(self) -> list[dict[str, Any]]:
        """Each bin that has anything in it: its edges, ``count``, ``confidence``, the mean
        probability, and ``accuracy``, the share that came true.
        """
        counts, said, true = self.sums.sum(1)
        confidence, accuracy = ratio(said, counts), ratio(true, counts)
        return [
            {
                "from": float(self.edges[place]),
                "to": float(self.edges[place + 1]),
                "count": int(counts[place]),
                "confidence": float(confidence[place]),
                "accuracy": float(accuracy[place]),
            }
            for place in np.flatnonzero(counts)
        ]


def best_temperature(logits: ArrayLike, targets: ArrayLike) -> float | None:
    """The number that logits are divided by for the least negative log-likelihood.

    None where no number between 1 / `MOST` and `MOST` is the best. Then every target is the
    likeliest label by far, or the logits say nothing.

    Args:
        logits: (examples, labels).
        targets: (examples,) label numbers, of a softmax; or (examples, labels) of 0 and 1, each
            of a sigmoid.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
    one_each = targets.ndim == 1
    wanted = np.take_along_axis(logits, targets[:, None], 1)[:, 0] if one_each else logits * targets

    def slope(inverse: float) -> float:
        """Of the loss, by one over the temperature, in which it is convex."""
        scaled = logits * inverse
        if one_each:
            powers = np.exp(scaled - scaled.max(1, keepdims=True))
            expected = (powers * logits).sum(1) / powers.sum(1)
        else:
            expected = logits * (0.5 + 0.5 * np.tanh(0.5 * scaled))
        return float((expected - wanted).mean())

    low, high = 1 / MOST, MOST
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / low
