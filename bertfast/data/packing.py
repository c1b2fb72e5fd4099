"""Packed pretraining batches, each a function of (seed, epoch, step) alone, so that a resume needs
no loader state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.objectives import OBJECTIVES, Objective, Spans, mask_tokens, most_masked
from bertfast.packed import Budget, PackedBatch, runs_of_tokens
from bertfast.seeds import host_seed
from bertfast.tokenization import SpecialIds

from .store import TokenStore

MASKINGS = ("dynamic", "static")
MASK_UNITS = ("token", "whole-word", "span")
Plan = tuple[Spans, list[NDArray[np.int64]]]  # examples, and the rows of them that make each batch
# What a generator is for; a purpose of its own keeps streams of the same seed and epoch apart.
_SPANS, _ORDER, _MASK = range(3)


class Batches:
    """The endless run of a corpus's training batches.

    An epoch is one pass over the corpus, its examples shuffled and gathered into batches of at most
    ``batch_tokens`` tokens. No sequence is cut between batches. With dynamic masking each epoch
    cuts the corpus anew and hides other tokens. With static masking the examples and what is hidden
    in them are those of the first epoch, in another order. Tokens are hidden on ``device``, where
    the batches come out, the same ones on each: single ones, whole words or spans of words. These
    need ``continues`` (vocab,), from `words.continuations`; a sentence starts a word whatever its
    first token.

    Raises:
        BertfastError: an option out of range, or a corpus that the objective cannot use.
    """

    def __init__(
        self,
        store: TokenStore,
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
    ) -> None:
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
        self.planned: tuple[int, Plan] | None = None  # the last plan and its epoch

    def _rng(self, purpose: int, *parts: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(host_seed(self.seed, purpose, *parts)))

    def plan(self, epoch: int) -> Plan:
        """An epoch's examples, and the rows of them that make each of its batches."""
        if self.planned is None or self.planned[0] != epoch:
            self.planned = epoch, self._plan(epoch)
        return self.planned[1]

    def _plan(self, epoch: int) -> Plan:
        rng = self._rng(_SPANS, 0 if self.static else epoch)
        spans = self.objective.cut(
            self.store.sentences, self.store.documents, self.seq_len - self.added, rng
        )
        order = self._rng(_ORDER, epoch).permutation(len(spans))
        lengths = spans.tokens[order] + self.added
        runs = runs_of_tokens(lengths.tolist(), self.batch_tokens)
        return spans, [order[run] for run in runs]

    def budget(self) -> Budget:
        """Sizes to pad batches to: all of the first epoch's fit, and with a sixteenth to spare
        other epochs' too but for rare ones.
        """
        spans, batches = self.plan(0)
        masked = most_masked(spans.tokens)
        largest = (
            max(len(rows) for rows in batches),
            max(int(masked[rows].sum()) for rows in batches),
        )
        sequences, predicted = (size + max(size // 16, 8) for size in largest)
        return Budget(self.batch_tokens, sequences, predicted, self.seq_len)

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of step ``start_step`` and every later one; the same from wherever it
        starts.
        """
        epoch, skip = 0, start_step
        while True:
            spans, batches = self.plan(epoch)
            for number in range(min(skip, len(batches)), len(batches)):
                yield epoch, self._batch(spans, batches[number], epoch)
            skip = max(0, skip - len(batches))
            epoch += 1

    def _batch(self, spans: Spans, rows: NDArray[np.int64], epoch: int) -> PackedBatch:
        ids = self.store.ids
        pieces: list[Any] = []
        starts: list[Any] = []  # of words; a special token's is not read
        segments: list[NDArray[np.int64]] = []
        lengths = []
        for a0, a1, b0, b1 in zip(
            *(
                column[rows].tolist()
                for column in (spans.a_start, spans.a_end, spans.b_start, spans.b_end)
            ),
            strict=True,
        ):
            pieces += self.frame.around(ids[a0:a1], ids[b0:b1])
            starts += self.frame.around(
                self._word_starts(a0, a1), self._word_starts(b0, b1), special=[True]
            )
            segments.append(self.frame.segment_ids(a1 - a0, b1 - b0))
            lengths.append(a1 - a0 + b1 - b0 + self.added)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        position_ids = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        # A token's bits are a function of (seed, epoch, example, position), and under static
        # masking of all but the epoch.
        counters = np.repeat(rows << 32, lengths) + position_ids
        seed = int(
            self._rng(_MASK, *(() if self.static else (epoch,))).integers(-(2**63), 2**63 - 1)
        )
        tokens, cu_seqlens = self._tensor(np.concatenate(pieces)), self._tensor(bounds).int()
        hidden, positions, labels = mask_tokens(
            tokens,
            cu_seqlens,
            self.is_special[tokens],
            self.words,
            self.special.mask,
            self._tensor(counters),
            seed,
            self._tensor(np.concatenate(starts)).bool(),
            self.hides_spans,
            *self.shares,
        )
        batch = PackedBatch(
            input_ids=hidden,
            segment_ids=self._tensor(np.concatenate(segments)),
            position_ids=self._tensor(position_ids),
            cu_seqlens=cu_seqlens,
            max_seqlen=self.seq_len,
            masked_positions=positions,
            masked_labels=labels,
            pair_labels=self._tensor(spans.label[rows]) if self.pairs else None,
        )
        return self.objective.finish(batch, spans, rows)

    def _word_starts(self, start: int, end: int) -> NDArray[np.bool_]:
        """Which tokens of the store from ``start`` to ``end`` start a word."""
        if self.continues is None:
            return np.ones(end - start, np.bool_)
        found = ~self.continues[self.store.ids[start:end]]
        first, last = np.searchsorted(self.store.sentences, (start, end))
        found[self.store.sentences[first:last] - start] = True
        return found

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device)
