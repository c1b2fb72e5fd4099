"""Scores with their intervals: what tasks count, and how sure one can be of it."""

from .bootstrap import (
    LEVEL,
    RESAMPLES,
    Scorer,
    alone,
    draws,
    intervals,
    mean_of,
    scores_of,
    sums_of,
    together,
)
from .calibration import Calibration, best_temperature
from .classes import LabelTable, confusion, multi_label, single_label
from .correlation import correlations
from .paired import bootstrap_test, holm, sign_flips
from .plots import pictures

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Calibration",
    "LabelTable",
    "Scorer",
    "alone",
    "best_temperature",
    "bootstrap_test",
    "confusion",
    "correlations",
    "draws",
    "holm",
    "intervals",
    "mean_of",
    "multi_label",
    "pictures",
    "scores_of",
    "sign_flips",
    "single_label",
    "sums_of",
    "together",
]
