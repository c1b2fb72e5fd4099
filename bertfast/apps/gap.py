"""Which word stood in a gap: token classification at the gap alone, on the public `Trainer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from bertfast.apps.corpus import Gap
from bertfast.data.epochs import shuffled_batches
from bertfast.model import load_config, member_class
from bertfast.model.models import ForTokenClassification
from bertfast.packed import IGNORE_INDEX, PackedBatch
from bertfast.tokenization import SpecialIds
from bertfast.training.optimizer import linear_schedule
from bertfast.training.trainer import Trainer

SCORED = 256  # gaps of a batch without gradients


class Gaps:
    """Encoded gaps and the numbers of their words."""

    def __init__(self, gaps: Sequence[Gap], tokenizer: Tokenizer, words: Sequence[str]) -> None:
        self.mask = SpecialIds(tokenizer).mask
        self.ids = [item.ids for item in tokenizer.encode_batch_fast([gap.text for gap in gaps])]
        self.targets = [words.index(gap.word) for gap in gaps]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These gaps, packed; the tokens around a gap have no label."""
        batch = PackedBatch.from_sequences([self.ids[row] for row in rows])
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        labels[batch.input_ids == self.mask] = torch.tensor([self.targets[row] for row in rows])
        return replace(batch, token_labels=labels)


class Epochs:
    """The training batches: every epoch has the gaps in an order of its own."""

    def __init__(self, gaps: Gaps, batch_size: int, seed: int) -> None:
        self.gaps, self.batch_size, self.seed = gaps, batch_size, seed

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of number ``start`` and every later one."""
        for epoch, rows in shuffled_batches(
            len(self.gaps),
            self.batch_size,
            lambda epoch: np.random.default_rng([self.seed, epoch]),
            start,
        ):
            yield epoch, self.gaps.batch(rows)


def new_model(
    pretrained: Path, words: Sequence[str], seed: int, *, from_scratch: bool
) -> ForTokenClassification:
    """A classifier of tokens with a new last layer.

    Args:
        pretrained: folder of the encoder.
        words: the classes.
        seed: of the weights that are drawn.
        from_scratch: keep the encoder's shape and none of its weights.
    """
    config = load_config(pretrained).with_labels(list(words))
    kind = member_class(config, "ForTokenClassification")
    torch.manual_seed(seed)
    model = (
        kind(config)
        if from_scratch
        else kind.from_pretrained(pretrained, config=config, new_head_ok=True)
    )
    assert isinstance(model, ForTokenClassification)
    return model


def train(
    model: ForTokenClassification,
    gaps: Gaps,
    out: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> ForTokenClassification:
    """Trains on the gaps, at a rate that rises over a tenth of the steps and then falls to zero.

    Args:
        model: trained in place.
        gaps: with their words.
        out: folder of the run's log and checkpoint.
        steps, batch_size, lr: of the updates.
        seed: of the order and the dropout.

    Returns:
        The model.
    """
    Trainer(
        model,
        Epochs(gaps, batch_size, seed),
        out=out,
        steps=steps,
        lr=lr,
        schedule=partial(linear_schedule, warmup=max(1, steps // 10), total=steps),
        seed=seed,
        checkpoint_every=steps,
        log_every=steps,
        label="labels",
    ).train()
    return model


@torch.no_grad()
def predict(model: ForTokenClassification, gaps: Gaps) -> list[int]:
    """The number of the likeliest word of each gap."""
    model.eval()
    device = next(model.parameters()).device
    chosen: list[int] = []
    for start in range(0, len(gaps), SCORED):
        rows = range(start, min(start + SCORED, len(gaps)))
        batch = gaps.batch(rows).to(device)
        assert batch.token_labels is not None
        at_gap = (batch.token_labels != IGNORE_INDEX).nonzero().squeeze(1)
        chosen += model(batch).logits[at_gap].argmax(-1).tolist()
    return chosen
