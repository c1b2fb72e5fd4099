"""Scores of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data import tasks


@dataclass(frozen=True)
class Scores:
    """Accuracy, and the mean over labels of the harmonic mean of precision and recall."""

    accuracy: float
    macro_f1: float
    examples: int


def score(predicted: Sequence[int], labels: Sequence[int], num_labels: int) -> Scores:
    """Scores of predictions; a label that occurs neither in them nor in the data does not enter
    macro F1, as in scikit-learn.
    """
    confusion = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(confusion, (np.asarray(labels), np.asarray(predicted)), 1)
    right = np.diag(confusion)
    occurrences = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * right[occurrences > 0] / occurrences[occurrences > 0]
    return Scores(float(right.sum() / len(labels)), float(f1.mean()), len(labels))


def evaluate(
    folder: str | Path,
    data: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Scores the classifier in ``folder`` on a labelled file.

    Returns:
        accuracy, macro_f1, examples, truncated (how many inputs were cut), max_length (at how many
        tokens).

    Raises:
        BertfastError: no classifier there, a file that cannot be used, or a label that training did
            not see.
    """
    from .predict import Classifier

    classifier = Classifier(folder)
    examples = tasks.read_task(
        data, text_column, pair_column or classifier.pair_column, label_column
    )
    label2id = classifier.model.config.label2id
    labels = tasks.encode_labels(examples, label2id, data)
    predictions = classifier.predict(
        [example.text for example in examples], [example.pair for example in examples]
    )
    scores = score(
        [label2id[item.label] for item in predictions], labels, classifier.model.config.num_labels
    )
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "examples": scores.examples,
        "truncated": sum(item.truncated for item in predictions),
        "max_length": classifier.max_length,
    }
