"""Packed pretraining batches, each a function of (seed, epoch, step) alone, so that a resume needs
no loader state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.objectives import (
    MASK_RATE,
    OBJECTIVES,
    Objective,
    Spans,
    mask_tokens,
    most_masked,
)
from bertfast.packed import Budget, PackedBatch
from bertfast.seeds import host_seed
from bertfast.tokenization import SpecialIds

from .shards import Shard, ShardedStore
from .store import TokenStore

MASKINGS = ("dynamic", "static")
MASK_UNITS = ("token", "whole-word", "span")
# What a generator is for; a purpose of its own keeps streams of the same seed and epoch apart.
_SPANS, _ORDER, _MASK, _SHARDS = range(4)


class Plan(NamedTuple):
    """The examples of an epoch, the rows of them that make each batch, their text, and the number
    of the part.

    The examples are those of one part, where an epoch has parts, whose shards are shuffled
    together.
    """

    spans: Spans
    batches: list[NDArray[np.int64]]
    store: TokenStore
    window: int


class Batches:
    """The endless run of a corpus's training batches.

    An epoch is one pass over the corpus, its examples shuffled and gathered into batches of at most
    ``batch_tokens`` tokens. No sequence is cut between batches. With dynamic masking each epoch
    cuts the corpus anew and hides other tokens. With static masking the examples and what is hidden
    in them are those of the first epoch, in another order. Tokens are hidden on ``device``, where
    the batches come out, the same ones on each: single ones, whole words or spans of words. These
    need ``continues`` (vocab,), from `words.continuations`; a sentence starts a word whatever its
    first token. Of a store of shards as many as fit `MIXED_TOKENS` are shuffled together, in an
    order that each epoch draws anew. No more than these are planned at a time.

    The sequences of each ``together`` batches in a row, those of an update, are dealt out among
    these. Ranks that compute one each then have as much to do.

    Args:
        source: its number among the sources that make a batch together; each draws of its own.
        sizes: gives the tokens of the batch with a number at most, in place of ``batch_tokens``;
            0 is a batch of none.
        grown: a number from which the batches have their last size.
        mask_rate: gives the share of tokens that are hidden in the batch with a number.
        most_rate: the highest of these.

    Raises:
        BertfastError: an option out of range, or a corpus that the objective cannot use.
    """

    def __init__(
        self,
        store: TokenStore | ShardedStore,
        special: SpecialIds,
        vocab_size: int,
        seq_len: int,
        batch_tokens: int,
        objective: str | Objective = "mlm+nsp",
        masking: str = "dynamic",
        seed: int = 0,
        device: torch.device | str = "cpu",
        mask_unit: str = "token",
        continues: NDArray[np.bool_] | None = None,
        *,
        source: int = 0,
        sizes: Callable[[int], int] | None = None,
        grown: int = 0,
        mask_rate: Callable[[int], float] | None = None,
        most_rate: float = MASK_RATE,
        together: int = 1,
    ) -> None:
        self.together = together
        self.objective = (
            objective if isinstance(objective, Objective) else OBJECTIVES.find(objective)
        )
        if masking not in MASKINGS:
            raise BertfastError(f"masking is {masking!r}; it must be one of {', '.join(MASKINGS)}")
        if mask_unit not in MASK_UNITS:
            raise BertfastError(
                f"mask-unit is {mask_unit!r}; it must be one of {', '.join(MASK_UNITS)}"
            )
        if mask_unit != "token" and continues is None:
            raise BertfastError(
                f"mask-unit is {mask_unit!r}, which needs to be told which tokens continue a word"
            )
        self.continues, self.hides_spans = (
            None if mask_unit == "token" else continues,
            mask_unit == "span",
        )
        self.shares = (self.objective.masked_share, self.objective.random_share)
        self.pairs = self.objective.pairs
        self.frame = special.pair if self.pairs else special.single
        self.added = self.frame.added
        if seq_len < self.added + 2:
            raise BertfastError(f"seq-len is {seq_len}; it must be at least {self.added + 2}")
        if batch_tokens < seq_len:
            raise BertfastError(
                f"batch-tokens is {batch_tokens} and seq-len {seq_len}; "
                "a batch must hold a whole sequence"
            )
        self.store, self.special, self.seed, self.device = (
            store,
            special,
            seed,
            torch.device(device),
        )
        self.seq_len, self.batch_tokens, self.static = seq_len, batch_tokens, masking == "static"
        self.is_special = torch.zeros(vocab_size, dtype=torch.bool)
        self.is_special[list(special.all)] = True
        self.is_special = self.is_special.to(self.device)
        self.words = (~self.is_special).nonzero().squeeze(1)
        self.source, self.grown, self.most_rate = source, grown, most_rate
        self.sizes = sizes or (lambda number: batch_tokens)
        self.mask_rate = mask_rate or (lambda number: most_rate)
        self.epochs: dict[int, int] = {}  # the first batch of each
        self.planned: tuple[tuple[int, int, int], Plan] | None = None  # the last one

    def _rng(self, purpose: int, *parts: int, window: int = 0) -> np.random.Generator:
        place = (window, self.source) if window or self.source else ()
        return np.random.Generator(np.random.Philox(host_seed(self.seed, purpose, *parts, *place)))

    @property
    def digest(self) -> str:
        """Of the text."""
        return self.store.digest

    def windows(self, epoch: int) -> list[tuple[int, list[Shard]]]:
        """The parts of an epoch in order, each with its number and its shards. Under static masking
        a number is of the same shards in each epoch.
        """
        if isinstance(self.store, TokenStore):
            return [(0, [])]
        rng, shards = self._rng(_SHARDS, epoch), len(self.store.shards)
        if not self.static:
            return list(enumerate(self.store.windows(rng.permutation(shards))))
        fixed = list(self.store.windows(range(shards)))
        return [(int(number), fixed[number]) for number in rng.permutation(len(fixed))]

    def plan(self, epoch: int = 0, part: int = 0, first: int = 0) -> Plan:
        """A part of an epoch, whose first batch is number ``first`` of all."""
        key = epoch, part, first
        if self.planned is None or self.planned[0] != key:
            self.planned = None  # before the next is made: two would take the memory of two
            self.planned = key, self._plan(*key)
        return self.planned[1]

    def _plan(self, epoch: int, part: int, first: int) -> Plan:
        windows = self.windows(epoch)
        window, shards = windows[part]
        store = self.store
        if isinstance(store, ShardedStore):
            sharded, store = store, store.load(shards)
            sharded.expect(windows[part + 1][1] if part + 1 < len(windows) else ())
        rng = self._rng(_SPANS, 0 if self.static else epoch, window=window)
        spans = self.objective.cut(store.sentences, store.documents, self.seq_len - self.added, rng)
        order = self._rng(_ORDER, epoch, window=window).permutation(len(spans))
        ends = np.cumsum(spans.tokens[order] + self.added)
        batches, start = [], 0
        for number in count(first):
            if start == len(order):
                break
            end = start
            if size := self.sizes(number):
                done = int(ends[start - 1]) if start else 0
                end = max(int(ends.searchsorted(done + size, side="right")), start + 1)
            batches.append(order[start:end])
            start = end
        return Plan(spans, batches, store, window)

    def budget(self) -> Budget:
        """Sizes to pad batches to.

        All of the first epoch's fit, or of its first part. With a sixteenth to spare the others fit
        too but for rare ones.
        """
        spans, batches, *_ = self._plan(0, 0, self.grown) if self.grown else self.plan()
        masked = most_masked(spans.tokens, self.most_rate)
        largest = (
            max(len(rows) for rows in batches),
            max(int(masked[rows].sum()) for rows in batches),
        )
        sequences, predicted = (size + max(size // 16, 8) for size in largest)
        return Budget(self.batch_tokens, sequences, predicted, self.seq_len)

    def iterate(self, start_step: int = 0, stride: int = 1) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of number ``start_step`` and every ``stride``-th after it; the same from
        wherever it starts.
        """
        number, first = start_step, 0
        for epoch in count():
            self.epochs[epoch] = first
            for part in range(len(self.windows(epoch))):
                plan = self.plan(epoch, part, first)
                while number < first + len(plan.batches):
                    yield epoch, self._batch(plan, self._rows(plan, number, first), epoch, number)
                    number += stride
                first += len(plan.batches)

    def _rows(self, plan: Plan, number: int, first: int) -> NDArray[np.int64]:
        """The examples of the batch with that number, in a plan whose batches begin with number
        ``first``, once those of its update are dealt out.
        """
        update, own = number // self.together * self.together - first, number - first
        end = min(update + self.together, len(plan.batches))
        group = [index for index in range(max(update, 0), end) if len(plan.batches[index])]
        if len(group) < 2 or own not in group:
            return plan.batches[own]
        rows = np.concatenate([plan.batches[index] for index in group])
        lengths = plan.spans.tokens[rows] + self.added
        dealt = deal(lengths, len(group))
        most = [self.sizes(first + index) for index in group]
        if any(lengths[part].sum() > size for part, size in zip(dealt, most, strict=True)):
            return plan.batches[own]
        return rows[dealt[group.index(own)]]

    def epoch_of(self, number: int) -> int:
        """The epoch of a batch that was made."""
        return max((e for e, first in list(self.epochs.items()) if first <= number), default=0)

    def _batch(self, plan: Plan, rows: NDArray[np.int64], epoch: int, number: int) -> PackedBatch:
        spans, store = plan.spans, plan.store
        # A row of the batch is as many runs as its frame has slots: special tokens, A and B.
        texts = iter(((spans.a_start, spans.a_end), (spans.b_start, spans.b_end)))
        zeros = np.zeros(len(rows), np.int64)
        slots = [
            (zeros, zeros + 1) if index >= 0 else tuple(ends[rows] for ends in next(texts))
            for index in self.frame.ids
        ]
        begins, ends = (np.stack(side, 1).ravel() for side in zip(*slots, strict=True))
        sizes = ends - begins
        runs = np.cumsum(sizes) - sizes  # where each begins
        index = np.arange(sizes.sum()) + np.repeat(begins - runs, sizes)
        ids = store.ids[index].astype(np.int64)
        where = runs.reshape(len(rows), len(slots))
        for slot, special in enumerate(self.frame.ids):
            if special >= 0:
                ids[where[:, slot]] = special
        lengths = sizes.reshape(len(rows), len(slots)).sum(1)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        position_ids = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        # A token's bits are a function of (seed, epoch, example, position), and under static
        # masking of all but the epoch.
        counters = np.repeat(rows << 32, lengths) + position_ids
        when = () if self.static else (epoch,)
        rng = self._rng(_MASK, *when, window=plan.window)
        tokens, cu_seqlens = self._tensor(ids), self._tensor(bounds).int()
        hidden, positions, labels = mask_tokens(
            tokens,
            cu_seqlens,
            self.is_special[tokens],
            self.words,
            self.special.mask,
            self._tensor(counters),
            int(rng.integers(-(2**63), 2**63 - 1)),
            self._word_starts(store, index, ids),
            self.hides_spans,
            *self.shares,
            self.mask_rate(number),
        )
        segments = np.repeat(np.tile(np.asarray(self.frame.segments, np.int64), len(rows)), sizes)
        batch = PackedBatch(
            input_ids=hidden,
            segment_ids=self._tensor(segments),
            position_ids=self._tensor(position_ids),
            cu_seqlens=cu_seqlens,
            max_seqlen=self.seq_len,
            masked_positions=positions,
            masked_labels=labels,
            pair_labels=self._tensor(spans.label[rows]) if self.pairs else None,
        )
        return self.objective.finish(batch, spans, rows) if len(rows) else batch

    def _word_starts(
        self, store: TokenStore, index: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> Tensor | None:
        """(tokens,) which tokens start a word; of special tokens it is not read."""
        if self.continues is None:
            return None
        sentence = store.sentences[np.searchsorted(store.sentences, index)]
        return torch.from_numpy(~self.continues[ids] | (sentence == index)).to(self.device)

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def deal(lengths: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Sequences in as many parts, nearly equal in tokens and in squares of lengths: the longest
    first, dealt out to and fro.

    Args:
        lengths: (sequences,).

    Returns:
        The rows of each part, in their order.
    """
    order = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(order)) % (2 * parts)
    part = np.minimum(turn, 2 * parts - 1 - turn)
    return [np.sort(order[part == number]) for number in range(parts)]
