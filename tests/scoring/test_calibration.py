"""The calibration error is that of the paper's formula, and the temperature the best one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bertfast.scoring import Calibration, best_temperature, scores_of


def reference(confidences: torch.Tensor, right: torch.Tensor, bins: int = 15) -> float:
    """The formula of Guo et al., a bin at a time."""
    error = torch.zeros((), dtype=torch.float64)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    for low, high in itertools.pairwise(edges):
        inside = confidences.gt(low) & confidences.le(high)
        if inside.any():
            gap = confidences[inside].mean() - right[inside].double().mean()
            error += gap.abs() * inside.double().mean()
    return float(error)


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(2, 6))
@settings(deadline=None)
def test_the_error_is_that_of_the_formula(seed: int, rows: int, labels: int) -> None:
    torch.manual_seed(seed)
    said = (3 * torch.randn(rows, labels, dtype=torch.float64)).softmax(-1).amax(-1)
    right = torch.rand(rows) < 0.6
    found = Calibration(said, right)
    assert scores_of(found.scorer, rows)["ece"] == pytest.approx(reference(said, right), abs=1e-12)
    times = torch.randint(0, 3, (rows,))
    times[0] = 1
    drawn = [part.repeat_interleave(times) for part in (said, right)]
    ours = found.scorer(times[None].double().numpy())["ece"][0]
    assert ours == pytest.approx(reference(*drawn), abs=1e-12)
    bins = found.bins()
    assert sum(row["count"] for row in bins) == rows
    assert all(row["from"] - 1e-12 <= row["confidence"] <= row["to"] + 1e-12 for row in bins)


def test_every_decision_of_a_row_counts() -> None:
    torch.manual_seed(0)
    said, true = torch.rand(40, 3, dtype=torch.float64), torch.rand(40, 3) < 0.5
    found = Calibration(said, true).report()
    assert found["ece"] == pytest.approx(reference(said.ravel(), true.ravel()))
    low, high = found["interval"]
    assert low < high


def test_probabilities_that_say_the_truth_have_a_small_error() -> None:
    said = np.random.default_rng(0).random(100_000)
    found = Calibration(said, np.random.default_rng(1).random(100_000) < said)
    assert scores_of(found.scorer, 100_000)["ece"] < 0.01


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_one_that_made_the_labels(
    kind: str, true_temperature: float
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20_000, 3, dtype=torch.float64) * 2
    if kind == "softmax":
        targets = torch.multinomial((logits / true_temperature).softmax(-1), 1)[:, 0]
    else:
        targets = (torch.rand(logits.shape) < (logits / true_temperature).sigmoid()).double()
    found = best_temperature(logits, targets)
    assert found == pytest.approx(true_temperature, rel=0.1)
    loss = F.cross_entropy if kind == "softmax" else F.binary_cross_entropy_with_logits
    best, *others = (float(loss(logits / (found * near), targets)) for near in (1, 0.98, 1.02))
    assert best < min(others)


def test_where_no_temperature_is_the_best_there_is_none() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert best_temperature(logits, [0, 1]) is None
    assert best_temperature(logits, [1, 0]) is None
    assert best_temperature(np.zeros((2, 2)), [0, 1]) is None
