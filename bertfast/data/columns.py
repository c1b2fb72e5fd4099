"""Which columns of a table hold the texts and the label, by their usual names."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

TEXTS = ("sentence", "text")
LABELS = ("label", "labels", "gold_label", "score")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "answer"),
    ("query", "passage"),
    ("text1", "text2"),
    ("sentence_A", "sentence_B"),
)


class Columns(NamedTuple):
    """The names of a file's columns; None for the usual ones, and for no pair."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def among(self, names: Collection[str]) -> Columns:
        """These columns, and the usual ones of ``names`` for those that are not given.

        Two texts are a pair where both columns of one of `PAIRS` are there, unless there is a
        column of single texts beside them. A given text without a pair is a single one. A name that
        is nowhere stays, for the error that says so.
        """
        text, pair, label = self
        if text is None:
            partners = [first for first, second in PAIRS if second == pair and first in names]
            single = next((name for name in TEXTS if name in names), None)
            found = next((both for both in PAIRS if set(both) <= set(names)), None)
            if pair is not None:
                text = next(iter(partners), None)
            elif found is not None and single in (None, *found):
                text, pair = found
            text = text or single or TEXTS[0]
        if label is None:
            label = next((name for name in LABELS if name in names), LABELS[0])
        return Columns(text, pair, label)


NONE = Columns()
