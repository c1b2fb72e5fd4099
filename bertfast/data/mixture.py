"""Several corpora in one run: each batch has sequences of every one, by weight."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.packed import EXTRAS, Budget, PackedBatch

from .corpus import is_address
from .packing import Batches
from .shards import ShardedStore, is_store


class Growth:
    """Tokens of each batch at most: from ``first`` up to ``last``, evenly over the first
    ``batches``.
    """

    def __init__(self, last: int, first: int | None = None, batches: int = 0) -> None:
        self.last, self.batches = last, batches if first is not None else 0
        steps = np.linspace(first or last, last, self.batches + 1)[:-1]
        self.growing = np.round(steps).astype(np.int64)

    def tokens(self, number: int) -> int:
        """Of the batch with that number."""
        return int(self.growing[number]) if number < self.batches else self.last

    def slots(self, seq_len: int) -> Callable[[int], int]:
        """A function that counts the sequences of full length that all batches before a number
        hold.
        """
        grown = np.concatenate([[0], np.cumsum(self.growing // seq_len)])

        def before(number: int) -> int:
            whole = max(number - self.batches, 0)
            return int(grown[min(number, self.batches)]) + whole * (self.last // seq_len)

        return before


class Mixture:
    """Batches that take their sequences from several sources by weight, to within a sequence.

    A batch is of ``batch_tokens // seq_len`` sequences of full length. The sources take turns at
    these, so that after any number of batches each has had its share to within one. What a source
    gives is a function of (seed, number), so that a run goes on anywhere.

    Args:
        names: of the sources, in logged numbers.
        weights: of the sources; their sum is all.
        make: makes the batches of a source, by its number and the function of `Batches`' ``sizes``.
        growth: tokens of each batch.
        seq_len: tokens of a sequence at most.
        first: the number, of all batches, of the first one here.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        make: Callable[[int, Callable[[int], int]], Batches],
        growth: Growth,
        seq_len: int,
        first: int = 0,
    ) -> None:
        total = math.fsum(weights)
        bounds = [0.0, *(math.fsum(weights[: n + 1]) / total for n in range(len(weights)))]
        bounds[-1] = 1.0
        before = growth.slots(seq_len)

        def sizes_of(source: int) -> Callable[[int], int]:
            def given(number: int) -> int:
                """Sequences that the source has had before a batch."""
                slots = before(first + number)
                return int(slots * bounds[source + 1]) - int(slots * bounds[source])

            return lambda number: (given(number + 1) - given(number)) * seq_len

        self.names = unlike(names)
        self.sources = [make(n, sizes_of(n)) for n in range(len(weights))]
        self.digest = hashlib.sha256(
            json.dumps([[*map(float, weights)], [b.digest for b in self.sources]]).encode()
        ).hexdigest()

    def plan(self) -> None:
        """Plans the first part of each source, and says so what cannot serve."""
        for source in self.sources:
            source.plan()

    def budget(self) -> Budget:
        """As `Batches.budget`."""
        budgets = [source.budget() for source in self.sources]
        return Budget(
            budgets[0].tokens,
            sum(budget.sequences for budget in budgets),
            sum(budget.masked for budget in budgets),
            max(budget.max_seqlen for budget in budgets),
        )

    def iterate(self, start_step: int = 0, stride: int = 1) -> Iterator[tuple[int, PackedBatch]]:
        """(epochs that every source has had, batch) as `Batches.iterate`."""
        runs = [source.iterate(start_step, stride) for source in self.sources]
        for parts in zip(*runs, strict=True):
            batches = [batch for _, batch in parts if batch.num_sequences]
            yield min(epoch for epoch, _ in parts), one_batch(batches)

    def logged(self, number: int) -> dict[str, int]:
        """The epoch of each source, of a batch that was made."""
        return {
            f"epoch_{name}": source.epoch_of(number)
            for name, source in zip(self.names, self.sources, strict=True)
        }


class Stages:
    """Batches of one kind after batches of another, as of longer sequences after shorter ones.

    Args:
        stages: (number of its first batch, its batches) of each.
    """

    def __init__(self, stages: Sequence[tuple[int, Batches | Mixture]]) -> None:
        self.stages = stages
        self.digest = stages[0][1].digest

    def plan(self) -> None:
        """As `Mixture.plan`."""
        for _, batches in self.stages:
            batches.plan()

    def budget(self) -> Budget:
        """What holds every stage's."""
        budgets = [batches.budget() for _, batches in self.stages]
        return Budget(*(max(sizes) for sizes in zip(*budgets, strict=True)))

    def iterate(self, start_step: int = 0, stride: int = 1) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch of the stage, batch) as `Batches.iterate`."""
        ends = [*(first for first, _ in self.stages[1:]), math.inf]
        number = start_step
        for (first, batches), end in zip(self.stages, ends, strict=True):
            if number < end:
                for item in batches.iterate(number - first, stride):
                    yield item
                    number += stride
                    if number >= end:
                        break

    def logged(self, number: int) -> dict[str, int]:
        """What the stage of a batch says of it."""
        first, batches = max(
            (stage for stage in self.stages if stage[0] <= number), key=lambda stage: stage[0]
        )
        return batches.logged(number - first) if isinstance(batches, Mixture) else {}


class Chain:
    """One pass over the batches of several sources, one after another."""

    def __init__(self, sources: Sequence[Batches]) -> None:
        self.sources = sources
        digests = "".join(source.digest for source in sources)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()

    def plan(self) -> None:
        """As `Mixture.plan`."""
        for source in self.sources:
            source.plan()

    def iterate(self) -> Iterator[tuple[int, PackedBatch]]:
        """(0, batch) of each."""
        for source in self.sources:
            for epoch, batch in source.iterate():
                if epoch:
                    break
                yield epoch, batch


def unlike(names: Sequence[str]) -> list[str]:
    """The names, with a number where one comes again."""
    return [
        f"{name}_{names[:n].count(name) + 1}" if name in names[:n] else name
        for n, name in enumerate(names)
    ]


def one_batch(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Several batches of one objective as one, their sequences in order."""
    if len(batches) == 1:
        return batches[0]
    tokens = np.cumsum([0, *(batch.num_tokens for batch in batches)]).tolist()
    every = [batch.tensors() for batch in batches]

    def joined(name: str) -> Tensor:
        parts = [tensors[name] for tensors in every]
        if name == "cu_seqlens":
            parts = [part[n > 0 :] + tokens[n] for n, part in enumerate(parts)]
        elif name == "masked_positions":
            parts = [part + tokens[n] for n, part in enumerate(parts)]
        return torch.cat(parts)

    assert all(tensors.keys() == every[0].keys() for tensors in every), EXTRAS
    return batches[0].with_tensors({name: joined(name) for name in every[0]})


def sources_of(
    data: Sequence[str], cache: Path, cache_bytes: int
) -> list[tuple[ShardedStore, float]]:
    """The prepared stores that are named, ``STORE`` or ``STORE:WEIGHT``, with their weights; empty
    where files of text are.

    Raises:
        BertfastError: a store or a weight cannot be used, or stores stand beside text.
    """
    found: list[tuple[ShardedStore, float]] = []
    others: list[str] = []
    for name in data:
        location, weight = name, 1.0
        if not is_store(name):
            location, _, number = name.rpartition(":")
            if not location or not is_store(location):
                others.append(name)
                continue
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not 0 <= weight < math.inf:
                raise BertfastError(
                    f"{name}: the weight is {number!r}; it must be a number of at least 0"
                )
        found.append((ShardedStore(location, cache, cache_bytes), weight))
    for name in others:
        if is_address(name) or Path(name).is_dir() or found:
            kind = "an address" if is_address(name) else "a folder"
            what = "text" if found and Path(name).is_file() else kind
            raise BertfastError(
                f"{name}: is {what} and no prepared store; bertfast prepare makes one of it"
            )
    if found and not any(weight for _, weight in found):
        raise BertfastError("the weights of data sum to nothing; one must be above 0")
    return [(store, weight) for store, weight in found if weight]
