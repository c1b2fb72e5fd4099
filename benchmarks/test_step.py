"""A whole training step of a BERT, forward, backward and optimizer, against transformers."""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.conftest import Case
from benchmarks.settings import current
from bertfast.bench.lengths import batches
from bertfast.bench.steps import make_batch, our_side, peer_sides, useful_flops
from bertfast.config import BertConfig

SETTINGS = current()
BATCHES = batches(SETTINGS.device, SETTINGS.quick)
# bfloat16 rounds at every layer, and sides round at different places.
TOLERANCE = {"float32": 1e-3, "bfloat16": 8e-2}


def _config() -> BertConfig:
    if SETTINGS.quick:
        return BertConfig.preset("bert-tiny", vocab_size=512)
    # The reference point's four layers keep a CPU's run short; the vocabulary weighs three times as much as in twelve.
    return BertConfig.preset("bert-base", **({} if SETTINGS.device == "cuda" else {"num_hidden_layers": 4}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lengths", BATCHES, ids=[batch.name for batch in BATCHES])
def test_step(contest, settings, lengths, dtype) -> None:
    config, device = _config(), settings.device
    batch = make_batch(lengths, config.vocab_size, device)
    masked = len(batch.packed.masked_labels)
    torch._dynamo.reset()
    gc.collect()
    ours = our_side(config, batch, dtype, device)
    peers, missing = peer_sides(config, batch, dtype, device, compiled=not settings.quick)
    name = str(dtype).removeprefix("torch.")
    contest(
        Case(
            "step",
            lengths.name,
            name,
            [ours, *peers],
            flops=useful_flops(config, lengths, masked),
            tolerance=TOLERANCE[name],
            facts={
                "fill": lengths.fill,
                "tokens": lengths.tokens,
                "masked": masked,
                "model": f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size:,}",
            },
            missing=missing,
        )
    )
