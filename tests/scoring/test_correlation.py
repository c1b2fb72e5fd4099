"""Correlations, in the data and in draws of it, are SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.scoring import correlations, scores_of

ROWS = st.lists(
    st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 3)), min_size=3, max_size=30
)


@given(ROWS, st.sampled_from([0.0, 1e3]))
@settings(deadline=None)
def test_the_correlations_of_a_draw_are_scipys(
    rows: list[tuple[int, int, int]], offset: float
) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y, times = (np.array(row) for row in zip(*rows, strict=True))
    x, y = x + offset, y * 1e-3
    draws = np.stack([np.ones_like(times), times, np.ones_like(times)])
    if not times.sum():
        draws = draws[::2]
    ours = correlations(x, y)(draws * 1.0)
    for place, counts in enumerate(draws):
        a, b = np.repeat(x, counts), np.repeat(y, counts)
        if len(set(a)) < 2 or len(set(b)) < 2:
            expected = [0.0, 0.0]
        else:
            expected = [stats.pearsonr(a, b).statistic, stats.spearmanr(a, b).statistic]
        found = [ours[name][place] for name in ("pearson", "spearman")]
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_whole_is_the_draw_of_each_once() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    stats = pytest.importorskip("scipy.stats")
    found = scores_of(correlations(x, y), 30)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
