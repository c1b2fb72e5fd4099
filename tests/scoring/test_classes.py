"""Scores of labels, in the data and in draws of it, are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.scoring import LabelTable, confusion, multi_label, scores_of, single_label

metrics = pytest.importorskip("sklearn.metrics")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn.*")
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40
)


@given(ROWS)
@settings(deadline=None)
def test_the_scores_of_a_draw_are_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    targets, chosen, times = (np.array(row) for row in zip(*rows, strict=True))
    for counts in (np.ones_like(times), times):
        if counts.sum():
            ours = single_label(targets, chosen)(counts[None] * 1.0)
            drawn = np.repeat(targets, counts), np.repeat(chosen, counts)
            theirs = {
                "accuracy": metrics.accuracy_score(*drawn),
                "macro_f1": metrics.f1_score(*drawn, average="macro", zero_division=0),
                "micro_f1": metrics.f1_score(*drawn, average="micro", zero_division=0),
                "mcc": metrics.matthews_corrcoef(*drawn),
            }
            assert {name: value[0] for name, value in ours.items()} == pytest.approx(theirs)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 5))
@settings(deadline=None)
def test_the_scores_of_lists_of_labels_are_scikit_learns(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    given_, wanted = rng.random((2, rows, labels)) < rng.random((2, 1, 1))
    times = rng.integers(0, 3, rows)
    times[0] = 1
    drawn = np.repeat(wanted, times, 0), np.repeat(given_, times, 0)
    ours = multi_label(given_, wanted)(times[None] * 1.0)
    assert ours["exact"][0] == pytest.approx(metrics.accuracy_score(*drawn))
    for name in ("micro", "macro"):
        theirs = metrics.f1_score(*drawn, average=name, zero_division=0)
        assert ours[f"{name}_f1"][0] == pytest.approx(theirs)


@pytest.mark.parametrize("lists", [False, True])
def test_the_table_is_scikit_learns_with_intervals_around_it(lists: bool) -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    if lists:
        targets, chosen = rng.random((2, 60, 4)) < 0.4
    else:
        targets = rng.integers(0, 3, 60)
        chosen = np.where(rng.random(60) < 0.7, targets, 3)
    theirs = metrics.precision_recall_fscore_support(
        targets, chosen, labels=[0, 1, 2, 3], zero_division=0
    )
    rows = LabelTable(names, targets, chosen).rows()
    assert [row["label"] for row in rows] == names
    for row, expected in zip(rows, zip(*theirs, strict=True), strict=True):
        values = [row[name] for name in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx(list(expected))
        for name, (low, high) in row["intervals"].items():
            assert low <= row[name] <= high


def test_a_label_that_occurs_nowhere_is_in_no_table() -> None:
    rows = LabelTable(["a", "b", "c"], [0, 2], [2, 2]).rows()
    assert [row["label"] for row in rows] == ["a", "c"]


def test_the_confusion_matrix_is_scikit_learns() -> None:
    targets, chosen = np.random.default_rng(0).integers(0, 4, (2, 50))
    found = confusion("abcd", targets, chosen)
    assert found["counts"] == metrics.confusion_matrix(targets, chosen).tolist()
    assert found["labels"] == ["a", "b", "c", "d"]


def test_of_a_hundred_thousand_labels_nothing_is_a_square() -> None:
    names = [f"label {number}" for number in range(100_000)]
    targets = np.arange(100_000) % 500
    chosen = np.where(np.arange(100_000) % 4, targets, 99_999)
    found = confusion(names, targets, chosen)
    assert found.keys() == {"cells"}
    assert sum(count for *_, count in found["cells"]) == 100_000
    assert scores_of(single_label(targets, chosen), 100_000)["accuracy"] == 0.75
    assert len(LabelTable(names, targets[:9000], chosen[:9000]).rows()) == 501
