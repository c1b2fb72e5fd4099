"""The order of training examples: every epoch has one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def shuffled_batches(
    rows: int, batch_size: int, rng: Callable[[int], np.random.Generator], start: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, rows) of batch number ``start`` and every later one, without end.

    Args:
        rows: of an epoch; its last batch has what is left of them.
        batch_size: rows of a batch.
        rng: gives the generator that an epoch's order is drawn from.
        start: the batch to begin with.
    """
    epoch, index = divmod(start, -(-rows // batch_size))
    while True:
        order = rng(epoch).permutation(rows)
        for first in range(index * batch_size, rows, batch_size):
            yield epoch, order[first : first + batch_size].tolist()
        epoch, index = epoch + 1, 0
