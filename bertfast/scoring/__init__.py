"""Scores with their intervals: what tasks count, and how sure one can be of it."""

from .bootstrap import LEVEL, RESAMPLES, Scorer, intervals, mean_of, scores_of, sums_of, together
from .calibration import Calibration, best_temperature
from .classes import LabelTable, confusion, multi_label, single_label
from .correlation import correlations
from .plots import pictures

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Calibration",
    "LabelTable",
    "Scorer",
    "best_temperature",
    "confusion",
    "correlations",
    "intervals",
    "mean_of",
    "multi_label",
    "pictures",
    "scores_of",
    "single_label",
    "sums_of",
    "together",
]
