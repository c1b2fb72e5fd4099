"""Replaced-token detection. Clark et al., "ELECTRA", section 2 and appendix A, and the released
``pretrain_helpers.py``.

A small generator is trained as a masked language model, and each masked token is replaced by one
that is sampled from it. The discriminator learns to tell of every token whether it is the original
one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.kernels.linear import linear
from bertfast.kernels.linear_cross_entropy import row_blocks
from bertfast.kernels.philox import LOW_32, as_seed, philox_4x32
from bertfast.packed import IGNORE_INDEX, PackedBatch

DISCRIMINATOR_WEIGHT = (
    50.0  # of its loss beside the generator's: the paper's lambda, section 2 and appendix A
)
# Of the tokens that the generator is to predict; the released code leaves the rest as they are.
MASKED_SHARE, RANDOM_SHARE = 0.85, 0.0


@torch.no_grad()
def sample_tokens(
    rows: Tensor, table: Tensor, bias: Tensor | None, seed: int | Tensor, counters: Tensor
) -> Tensor:
    """Ids drawn from softmax(rows tableᵀ + bias), a block of rows at a time, so that the logits
    never stand in memory whole.

    One uniform number a row finds the id where the running sum of the probabilities first reaches
    it. The released code's Gumbel noise on every logit gives the same distribution. The noise takes
    a random number for each word of the vocabulary, and this takes one.

    Args:
        rows: (masked, hidden), floating point.
        table: (vocab, hidden) of the same dtype.
        bias: (vocab,) of the same dtype, or None.
        seed: an int of 64 bits, or an int64 tensor of one element.
        counters: (masked,) int64, a row's number; with the seed it decides the row's random bits.

    Returns:
        (masked,) int64.
    """
    low, high = counters & LOW_32, counters >> 32 & LOW_32
    # Words under the counter 2, which neither dropout (0) nor masking (1) takes under the same
    # seed.
    word = philox_4x32(
        as_seed(seed, rows.device), low, high, torch.zeros_like(low), torch.full_like(low, 2)
    )[0]
    share = (
        (word >> 8) + 1
    ) * 2.0**-24  # in (0, 1], exact in float32: never before the first id that has any probability
    sampled = torch.empty_like(counters)
    with torch.autocast(rows.device.type, enabled=False):
        for block in row_blocks(rows, table.shape[0], max(rows.element_size(), 4)):
            logits = linear(rows[block], table, bias)
            running = logits.to(torch.promote_types(logits.dtype, torch.float32))
            running.sub_(running.amax(1, keepdim=True)).exp_().cumsum_(1)
            reached = share[block, None].to(running.dtype) * running[:, -1:]
            # The bound is for logits that are not numbers: the step will be refused for its loss,
            # but first the id is looked up.
            sampled[block] = (
                torch.searchsorted(running, reached).squeeze(1).clamp(max=table.shape[0] - 1)
            )
    return sampled


def discriminator_inputs(batch: PackedBatch, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """The ids that the discriminator reads, and what it is to say of each.

    Args:
        batch: whose masked positions were predicted; it may be padded to a budget.
        sampled: (masked,) int64 ids for these positions.

    Returns:
        Ids (tokens,) int64, the original ones but for the sampled, and labels (tokens,) int64. A
        label is 1 where the id is not the original one, and 0 where it is, sampled or not. It is
        -100 for slack.
    """
    assert batch.masked_positions is not None
    assert batch.masked_labels is not None
    tokens = batch.num_tokens
    # Slack positions, -1, write to a place past the tokens.
    places = torch.where(batch.masked_positions < 0, tokens, batch.masked_positions)
    ids = F.pad(batch.input_ids, (0, 1)).index_copy(0, places, sampled)[:tokens]
    replaced = torch.zeros_like(F.pad(ids, (0, 1))).index_copy(
        0, places, (sampled != batch.masked_labels).long()
    )
    real = torch.arange(tokens, device=ids.device) < batch.cu_seqlens[-1]
    return ids, torch.where(real, replaced[:tokens], IGNORE_INDEX)
