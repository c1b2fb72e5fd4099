"""Scores of chosen labels: accuracy, F1, Matthews' correlation, a table of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import Array, Groups, Scorer, intervals, ratio, scores_of

SQUARE = 100  # labels up to which a confusion matrix is written whole
MEASURED = 1000  # labels up to which the table has intervals


class _Cells:
    """The counts of (target, predicted) pairs that occur, by draw.

    Args:
        targets, predicted: (examples,) label numbers.
    """

    def __init__(self, targets: ArrayLike, predicted: ArrayLike) -> None:
        pairs = np.stack([np.asarray(targets), np.asarray(predicted)], 1)
        self.pairs, of_example = np.unique(pairs, axis=0, return_inverse=True)
        self.labels, places = np.unique(self.pairs, return_inverse=True)
        places = places.reshape(self.pairs.shape)
        self.right = self.pairs[:, 0] == self.pairs[:, 1]
        self.cells = Groups(of_example.ravel(), len(self.pairs))
        self.of_target = Groups(places[:, 0], len(self.labels))
        self.of_chosen = Groups(places[:, 1], len(self.labels))

    def __call__(self, weights: Array) -> tuple[Array, Array, Array]:
        """Each label's rightly chosen examples, those that have it, and those that were given it,
        (draws, labels) each.
        """
        counts = self.cells.sum(weights)
        right = self.of_target.sum(counts * self.right)
        return right, self.of_target.sum(counts), self.of_chosen.sum(counts)


def single_label(targets: ArrayLike, predicted: ArrayLike) -> Scorer:
    """``accuracy``, ``macro_f1``, ``micro_f1`` (which is the accuracy, with one label a row) and
    ``mcc``, the correlation of Gorodkin, "Comparing two K-category assignments", 2004.

    A label that occurs neither in the predictions nor in the data does not enter macro F1. A
    correlation with what does not vary is 0. Both are as in scikit-learn.

    Args:
        targets, predicted: (examples,) label numbers.
    """
    cells = _Cells(targets, predicted)

    def score(weights: Array) -> dict[str, Array]:
        right, had, given = cells(weights)
        total, hits = weights.sum(1), right.sum(1)
        f1, occurs = ratio(2 * right, had + given), (had + given > 0).sum(1)
        covariance = hits * total - (had * given).sum(1)
        spread = (total**2 - (had**2).sum(1)) * (total**2 - (given**2).sum(1))
        accuracy = hits / total
        return {
            "accuracy": accuracy,
            "macro_f1": f1.sum(1) / occurs,
            "micro_f1": accuracy,
            "mcc": ratio(covariance, np.sqrt(spread)),
        }

    return score


def multi_label(given: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Scorer:
    """``micro_f1`` of all decisions together, ``macro_f1``, its mean over labels, and ``exact``,
    the share of rows with every label right.

    The F1 of a label that occurs nowhere is 0, as in scikit-learn.

    Args:
        given, wanted: (examples, labels).
    """
    both, either = (given & wanted) * 2.0, given * 1.0 + wanted
    exact = (given == wanted).all(1) * 1.0

    def score(weights: Array) -> dict[str, Array]:
        hits, occurrences = weights @ both, weights @ either
        return {
            "micro_f1": ratio(hits.sum(1), occurrences.sum(1)),
            "macro_f1": ratio(hits, occurrences).mean(1),
            "exact": weights @ exact / weights.sum(1),
        }

    return score


class LabelTable:
    """Precision, recall and F1 of each label, with their intervals, and its support.

    Args:
        names: of the labels, by number.
        targets, predicted: (examples,) label numbers, or (examples, labels) decisions.
    """

    def __init__(self, names: Sequence[str], targets: ArrayLike, predicted: ArrayLike) -> None:
        targets, predicted = np.asarray(targets), np.asarray(predicted)
        self.names, self.examples = names, len(targets)
        if targets.ndim == 1:
            self.cells = _Cells(targets, predicted)
            self.labels, self.counts = self.cells.labels, self.cells
        else:
            parts = [(targets & predicted) * 1.0, targets * 1.0, predicted * 1.0]
            self.labels = np.arange(targets.shape[1])
            self.counts = lambda weights: tuple(weights @ part for part in parts)  # type: ignore[assignment]

    @classmethod
    def of_counts(cls, names: Sequence[str], right: Array, had: Array, given: Array) -> LabelTable:
        """The table of three counts, (examples, labels) each, of things such as entities.

        Of each example and label they are how many were rightly given, how many there are, and how
        many were given.
        """
        made = cls(names, had > 0, given > 0)
        made.counts = lambda weights: tuple(weights @ part for part in (right, had, given))  # type: ignore[assignment]
        return made

    def scorer(self, weights: Array) -> dict[str, Array]:
        """Each measure, (draws, labels)."""
        right, had, given = self.counts(weights)
        return {
            "precision": ratio(right, given),
            "recall": ratio(right, had),
            "f1": ratio(2 * right, had + given),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each label that occurs: its name, measures, ``support`` and ``intervals``."""
        _, had, _ = self.counts(np.ones((1, self.examples)))
        values = scores_of(self.scorer, self.examples)
        few = len(self.labels) <= MEASURED
        ends = intervals(self.scorer, self.examples) if few else {}
        return [
            {
                "label": self.names[label],
                **{name: float(values[name][place]) for name in values},
                "support": int(had[0, place]),
                "intervals": {name: ends[name][:, place].tolist() for name in ends},
            }
            for place, label in enumerate(self.labels)
        ]


def confusion(names: Sequence[str], targets: ArrayLike, predicted: ArrayLike) -> dict[str, Any]:
    """How often each label was taken for each: ``counts``, a row for each label of the data, a
    column for each that was given.

    Of more than `SQUARE` labels there are ``cells`` alone, each (label, given label, count), the
    most frequent first.
    """
    pairs, counts = np.unique(
        np.stack([np.asarray(targets), np.asarray(predicted)], 1), axis=0, return_counts=True
    )
    if len(names) > SQUARE:
        order = np.argsort(-counts, kind="stable")
        return {"cells": [[names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])] for i in order]}
    table = np.zeros((len(names), len(names)), np.int64)
    table[pairs[:, 0], pairs[:, 1]] = counts
    return {"labels": list(names), "counts": table.tolist()}
