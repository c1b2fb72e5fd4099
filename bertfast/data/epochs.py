"""The order of training examples: every epoch has one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from bertfast.packed import runs_of_tokens

GROUP = 50  # batches whose rows are sorted among themselves, as the Trainer of transformers has it


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


def epoch_batches(
    lengths: NDArray[np.int64],
    rng: np.random.Generator,
    batch_size: int,
    batch_tokens: int | None = None,
    alike: bool = False,
) -> list[list[int]]:
    """The rows of an epoch's batches, each row once, in an order that is drawn.

    Args:
        lengths: (rows,) tokens of each.
        rng: draws the order.
        batch_size: rows of a batch.
        batch_tokens: in its place, tokens of a batch at most; one row at least.
        alike: put rows of like length together; the batches are shuffled then.
    """
    order = rng.permutation(len(lengths))
    if alike:
        usual = batch_tokens and max(1, round(batch_tokens / lengths.mean()))
        chunks = range(0, len(order), GROUP * (usual or batch_size))
        order = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in np.split(order, list(chunks)[1:])
            ]
        )
    if batch_tokens is None:
        firsts = range(0, len(order), batch_size)
        batches = [order[first : first + batch_size].tolist() for first in firsts]
    else:
        runs = runs_of_tokens(lengths[order].tolist(), batch_tokens)
        batches = [order[run].tolist() for run in runs]
    return [batches[place] for place in rng.permutation(len(batches))] if alike else batches


def in_batches(batches: list[list[int]], count: int) -> list[list[int]]:
    """The same rows in ``count`` batches, no fewer than there are: the largest are halved."""
    made = list(batches)
    while len(made) < count:
        place = max(range(len(made)), key=lambda number: len(made[number]))
        rows = made[place]
        made[place : place + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return made
