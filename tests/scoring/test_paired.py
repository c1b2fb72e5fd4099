"""Paired tests: exact where they say so, right about nothing as often as they say, corrected."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.scoring import alone, bootstrap_test, draws, holm, mean_of, sign_flips, single_label


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flips_is_the_share_of_all_signs(differences: list[int]) -> None:
    signs = np.array(list(product((-1, 1), repeat=len(differences)))).reshape(-1, len(differences))
    sums = np.abs(signs @ np.array(differences, np.int64))
    expected = (sums >= abs(sum(differences))).mean()
    assert sign_flips(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (9, 2), (40, 41), (300, 210), (3, 0)])
def test_right_and_wrong_is_mcnemars_exact_test(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    differences = [1] * gained + [-1] * lost + [0] * 50
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_flips(differences) == pytest.approx(expected, rel=1e-9)


def test_equal_models_are_told_apart_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        a, b = rng.random((2, 100)) < 0.8
        own, other = (
            draws(mean_of({"x": side}), 100, resamples=400)["x"] for side in (a * 1.0, b * 1.0)
        )
        found.append(bootstrap_test(own - other))
    assert 0.01 <= (np.array(found) <= 0.05).mean() <= 0.1


def test_holm_is_the_step_down_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_example_alone_is_right_or_wrong() -> None:
    scorer = single_label([0, 1, 1, 2], [0, 1, 2, 0])
    assert alone(scorer, 4)["accuracy"].tolist() == [1, 1, 0, 0]
