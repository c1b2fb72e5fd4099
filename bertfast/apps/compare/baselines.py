"""Rows without an encoder: what is always said, and what counting words says."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.tasks import Task
from bertfast.tasks.multiple_choice import Choices
from bertfast.tasks.question_answering import THRESHOLD, Passage
from bertfast.tasks.token_classification import Piece

NGRAMS, STRENGTHS = ((1, 1), (1, 2)), (1.0, 10.0)  # of which the best on the dev data is taken
TOKEN = r"\[MASK\]|\w+|[^\w\s]"
RARE = 0.5  # counts that every label gets beside its own, so that none has a probability of 0


class Said(NamedTuple):
    """What a baseline says of examples, in the form that the task's scorer takes."""

    task: Task
    outputs: list[Any]
    inputs: list[Any]


class Input(NamedTuple):
    """An input without tokens: its target is all that scores ask for."""

    target: Any


class Baseline(ABC):
    """What needs no encoder.

    Attributes:
        title: on the page.
    """

    title: ClassVar[str]

    @abstractmethod
    def check(self, task: Task, config: EncoderConfig, known: Sequence[Any]) -> None:
        """Refuses a task that it makes no sense for.

        Args:
            known: the labelled examples.

        Raises:
            BertfastError: it does not.
        """

    @abstractmethod
    def run(
        self,
        task: Task,
        config: EncoderConfig,
        train: Sequence[Any],
        dev: Sequence[Any],
        test: Sequence[Any],
        sources: tuple[str, str, str],
    ) -> Said:
        """What it says of ``test`` after ``train``; ``sources`` are the files, for errors."""


class MostFrequent(Baseline):
    """The most frequent label, tag, place or absence of an answer; of numbers the mean."""

    title = "most frequent"

    def check(self, task: Task, config: EncoderConfig, known: Sequence[Any]) -> None:
        if hasattr(known[0], "answers"):
            if all(example.answers for example in known):
                raise BertfastError(
                    "the baseline most-frequent has nothing to say here: every question has an "
                    "answer of its own; leave it out"
                )
        elif not (hasattr(known[0], "tags") or hasattr(known[0], "choices")):
            _check_texts(self, task, config)

    def run(
        self,
        task: Task,
        config: EncoderConfig,
        train: Sequence[Any],
        dev: Sequence[Any],
        test: Sequence[Any],
        sources: tuple[str, str, str],
    ) -> Said:
        first = train[0]
        if hasattr(first, "answers"):
            silent = [Passage([], [], number, 0, []) for number in range(len(test))]
            nothing = [np.zeros((1, 2), np.float32)] * len(test)
            return Said(task.configured(kept={THRESHOLD: 0.0}), nothing, list(silent))
        if hasattr(first, "choices"):
            places = Counter(example.label for example in train)
            scores = [
                torch.tensor([np.log(places[place] + RARE) for place in range(len(row.choices))])
                for row in test
            ]
            return Said(task, scores, [Choices([], example.label) for example in test])
        targets = task.targets(train, config, sources[0])
        if hasattr(first, "tags"):
            counts = np.bincount(np.concatenate(targets), minlength=config.num_labels)
            row = torch.tensor(np.log(counts + RARE))
            pieces = [
                Piece([], [], number, list(range(len(words))), [(0, 0)] * len(words), [])
                for number, words in enumerate(example.tags for example in test)
            ]
            return Said(task, [row.expand(len(piece.words), -1) for piece in pieces], list(pieces))
        inputs = [Input(target) for target in task.targets(test, config, sources[2])]
        return Said(task, [_prior(targets, config)] * len(test), list(inputs))


def _prior(targets: Sequence[Any], config: EncoderConfig) -> Tensor:
    """The output that is the best where nothing is known of an example."""
    values = np.array(targets, np.float64)
    if config.problem_type == "regression":
        return torch.tensor([values.mean()])
    if config.problem_type == "multi_label_classification":
        had = values.sum(0) + RARE
        return torch.tensor(np.log(had / (len(values) + 2 * RARE - had)))
    counts = np.bincount(values.astype(np.int64), minlength=config.num_labels) + RARE
    return torch.tensor(np.log(counts / counts.sum()))


class TfIdf(Baseline):
    """TF-IDF of words and pairs of words, and logistic regression on it (ridge for numbers)."""

    title = "TF-IDF + logistic regression"

    def check(self, task: Task, config: EncoderConfig, known: Sequence[Any]) -> None:
        if find_spec("sklearn") is None:
            raise BertfastError(
                "scikit-learn is not installed; the baseline tfidf needs it: "
                "pip install 'bertfast[demo]'"
            )
        _check_texts(self, task, config)

    def run(
        self,
        task: Task,
        config: EncoderConfig,
        train: Sequence[Any],
        dev: Sequence[Any],
        test: Sequence[Any],
        sources: tuple[str, str, str],
    ) -> Said:
        sides = [train, dev, test]
        targets = [
            np.array(task.targets(side, config, source))
            for side, source in zip(sides, sources, strict=True)
        ]
        best: tuple[float, list[Tensor]] | None = None
        inputs = [Input(target) for target in targets[1]]
        for ngrams in NGRAMS:
            vectors = _vectors(sides, ngrams)
            if vectors is None:
                break
            for strength in STRENGTHS:
                said = _regressed(vectors[0], targets[0], vectors[1], config, strength)
                worth = task.score(said[: len(dev)], inputs, dev, config)[next(iter(task.scores))]
                if best is None or worth > best[0]:
                    best = worth, said[len(dev) :]
        found = best[1] if best else [_prior(targets[0].tolist(), config)] * len(test)
        return Said(task, found, [Input(target) for target in targets[2]])


def _check_texts(baseline: Baseline, task: Task, config: EncoderConfig) -> None:
    """Refuses what has no label or number for each text."""
    if task.head != "ForSequenceClassification" or config.problem_type is None:
        name = next(key for key, value in BASELINES.items() if value is baseline)
        raise BertfastError(
            f"the baseline {name} labels whole texts, and the task is {task.name}; leave it out"
        )


def _vectors(sides: Sequence[Sequence[Any]], ngrams: tuple[int, int]) -> list[Any] | None:
    """(examples, features) of the first side, and of all others together; None where the training
    texts have no word.

    Those of a pair's second text stand beside the first's.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    parts = []
    for name in ("text", "pair"):
        seen, *others = ([getattr(example, name) or "" for example in side] for side in sides)
        texts = [seen, [text for side in others for text in side]]
        if any(re.search(TOKEN, text) for text in texts[0]):
            vectorizer = TfidfVectorizer(ngram_range=ngrams, sublinear_tf=True, token_pattern=TOKEN)
            vectorizer.set_params(lowercase=False)
            parts.append([vectorizer.fit(texts[0]).transform(side) for side in texts])
    return [hstack(side, format="csr") for side in zip(*parts, strict=True)] or None


def _regressed(
    seen: Any, targets: Any, asked: Any, config: EncoderConfig, strength: float
) -> list[Tensor]:
    """The outputs for ``asked`` of a regression on ``seen``."""
    from sklearn.linear_model import LogisticRegression, Ridge

    def log_odds(column: Any) -> Any:
        """Of a label against all others; of its share where all examples have it, or none."""
        if len(set(column.tolist())) < 2:
            share = (column.sum() + RARE) / (len(column) + 2 * RARE)
            return np.full(asked.shape[0], np.log(share / (1 - share)))
        model = LogisticRegression(C=strength, solver="liblinear", random_state=0)
        return model.fit(seen, column).decision_function(asked)

    if config.problem_type == "regression":
        values = Ridge(alpha=1 / strength).fit(seen, targets).predict(asked)[:, None]
    elif config.problem_type == "multi_label_classification":
        values = np.stack([log_odds(column) for column in targets.T], 1)
    elif config.num_labels == 2:
        second = log_odds(targets == 1)
        values = np.stack([np.zeros_like(second), second], 1)
    else:
        odds = [log_odds(targets == label) for label in range(config.num_labels)]
        values = -np.logaddexp(0, -np.stack(odds, 1))  # the log of each probability
    return list(torch.tensor(values))


BASELINES: dict[str, Baseline] = {"most-frequent": MostFrequent(), "tfidf": TfIdf()}
"""The baselines by their names in a sheet."""
