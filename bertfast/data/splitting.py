"""Parts of labelled rows, with each label in about the same share in every part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from bertfast.errors import BertfastError

Rows = NDArray[np.int64]


def held_out(strata: Sequence[Hashable], share: float, seed: int) -> tuple[Rows, Rows]:
    """The rows to train on and the rows held out, each in their order. Every stratum gives its
    share to within a row, and one row at least stays in training.

    Args:
        strata: what of each row is to be spread evenly, as its label.
        share: of the rows to hold out, above 0 and below 1.
        seed: of the choice.

    Raises:
        BertfastError: there are too few rows for two parts.
    """
    order = _by_stratum(strata, seed)
    # As a line is drawn on a grid: a row is held out where the share's multiples pass a whole one.
    steps = np.floor(np.arange(len(order) + 1) * share + 1e-9)
    out = np.diff(steps) > 0
    last = {strata[row]: place for place, row in enumerate(order)}
    kept = {strata[row] for row in order[~out]}
    for stratum, place in last.items():
        if stratum not in kept:
            out[place] = False
    if not out.any():
        raise BertfastError(
            f"a share of {share:g} of {len(order)} rows, each label kept in training, holds out "
            "none; give more rows or a larger share"
        )
    return np.sort(order[~out]), np.sort(order[out])


def folds(strata: Sequence[Hashable], number: int, seed: int) -> list[tuple[Rows, Rows]]:
    """For each fold the rows to train on and those of the fold, which each row is in once.

    Args:
        strata: see `held_out`; each is spread over the folds to within a row.
        number: of folds, 2 at least.
        seed: of the choice.

    Raises:
        BertfastError: there are fewer rows than folds.
    """
    if len(strata) < number:
        raise BertfastError(f"{len(strata)} rows do not fill {number} folds")
    order = _by_stratum(strata, seed)
    fold_of = np.empty(len(order), np.int64)
    fold_of[order] = np.arange(len(order)) % number
    return [
        (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(number)
    ]


def drawn(strata: Sequence[Hashable], number: int, seed: int) -> Rows:
    """So many rows in their order, drawn without replacement. Every stratum gives its share to
    within a row.

    Args:
        strata: see `held_out`.
        number: of rows.
        seed: of the choice.

    Raises:
        BertfastError: there are fewer rows.
    """
    if number > len(strata):
        raise BertfastError(
            f"max-train-samples is {number}, and there are {len(strata)} examples to train on"
        )
    order = _by_stratum(strata, seed)
    # The middles of as many equal parts.
    return np.sort(order[(2 * np.arange(number) + 1) * len(order) // (2 * number)])


def _by_stratum(strata: Sequence[Hashable], seed: int) -> Rows:
    """The rows, those of a stratum together, in an order of their own."""
    first: dict[Hashable, int] = {}
    groups = np.array([first.setdefault(stratum, len(first)) for stratum in strata], np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    return shuffled[np.argsort(groups[shuffled], kind="stable")]
