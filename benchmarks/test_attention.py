"""Attention of 12 heads of 64, forward and backward, on packed tokens against what pads."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Case
from benchmarks.settings import current
from bertfast import kernels
from bertfast.bench.backends import our_sides
from bertfast.bench.lengths import batches
from bertfast.bench.peers import attention_sides

HEADS, HEAD_DIM = 12, 64
BATCHES = batches(current().device, current().quick)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lengths", BATCHES, ids=[batch.name for batch in BATCHES])
def test_attention(contest, settings, lengths, dtype, dropout_p) -> None:
    device = settings.device
    q, k, v, dout = torch.randn(4, lengths.tokens, HEADS, HEAD_DIM, device=device).to(dtype).unbind()
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    boundaries = lengths.cu_seqlens(device)

    def call():
        out = kernels.attention(*inputs, boundaries, lengths.longest, dropout_p=dropout_p, seed=7)
        return out.detach(), *torch.autograd.grad(out, inputs, dout)

    sides, missing = attention_sides(q, k, v, dout, lengths, dropout_p)
    # Two products forward; five backward, of which one makes the scores again.
    flops = (2 + 4) * 2 * lengths.squares * HEADS * HEAD_DIM
    dropout = ", dropout 0.1" if dropout_p else ""
    contest(
        Case(
            "attention",
            lengths.name + dropout,
            str(dtype).removeprefix("torch."),
            our_sides("attention", device, dtype, call, HEAD_DIM) + sides,
            flops=flops,
            facts={"fill": lengths.fill, "tokens": lengths.tokens},
            missing=missing,
        )
    )
