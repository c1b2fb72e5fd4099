"""Parts of rows: every row in one of them, every label spread evenly, the same by the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.data.splitting import drawn, folds, held_out
from bertfast.errors import BertfastError

LABELS = st.lists(st.sampled_from("aaaabbc"), min_size=12, max_size=80)


@given(LABELS, st.floats(0.15, 0.6), st.integers(0, 5))
def test_a_share_is_held_out_of_every_label(labels: list[str], share: float, seed: int) -> None:
    train, dev = held_out(labels, share, seed)
    assert sorted([*train, *dev]) == list(range(len(labels)))
    assert abs(len(dev) - share * len(labels)) <= 1 + len(set(labels))
    for label, rows in Counter(labels).items():
        assert abs(sum(labels[row] == label for row in dev) - share * rows) <= 1
        assert any(labels[row] == label for row in train)
    again = held_out(labels, share, seed)
    assert all((a == b).all() for a, b in zip((train, dev), again, strict=True))


@given(LABELS, st.integers(2, 6), st.integers(0, 5))
def test_every_row_is_in_one_fold(labels: list[str], number: int, seed: int) -> None:
    parts = folds(labels, number, seed)
    assert sorted(np.concatenate([dev for _, dev in parts])) == list(range(len(labels)))
    for train, dev in parts:
        assert sorted([*train, *dev]) == list(range(len(labels)))
        assert abs(len(dev) - len(labels) / number) < 1
        for label, rows in Counter(labels).items():
            assert abs(sum(labels[row] == label for row in dev) - rows / number) <= 1


def test_another_seed_gives_other_parts() -> None:
    labels = ["a", "b"] * 50
    assert (held_out(labels, 0.2, 0)[1] != held_out(labels, 0.2, 1)[1]).any()


def test_too_few_rows_are_one_line() -> None:
    with pytest.raises(BertfastError, match="holds out none"):
        held_out(["a", "b", "c"], 0.5, 0)
    with pytest.raises(BertfastError, match="3 rows do not fill 5 folds"):
        folds(["a", "b", "c"], 5, 0)


@given(LABELS, st.floats(0.05, 1), st.integers(0, 5))
def test_a_draw_has_each_label_in_its_share(labels: list[str], share: float, seed: int) -> None:
    number = max(1, round(share * len(labels)))
    rows = drawn(labels, number, seed)
    assert len(set(rows)) == len(rows) == number
    assert (np.sort(rows) == rows).all()
    for label, found in Counter(labels).items():
        assert abs(sum(labels[row] == label for row in rows) - found * number / len(labels)) <= 1
    with pytest.raises(BertfastError, match="max-train-samples"):
        drawn(labels, len(labels) + 1, seed)
