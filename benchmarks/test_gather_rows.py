"""Picking the masked 15 % of the rows, forward and backward, against indexing and against copying alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Case
from bertfast import kernels
from bertfast.bench.backends import our_sides
from bertfast.bench.peers import gather_sides

HIDDEN = 768
TOKENS = {"cpu": 4096, "cuda": 65536}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gather_rows(contest, settings, dtype) -> None:
    tokens = 64 if settings.quick else TOKENS[settings.device]
    x = torch.randn(tokens, HIDDEN, device=settings.device).to(dtype).requires_grad_()
    masked = round(0.15 * tokens)
    index = torch.randperm(tokens)[:masked].sort().values.to(settings.device)
    dout = torch.randn(masked, HIDDEN, device=settings.device).to(dtype)

    def call():
        out = kernels.gather_rows(x, index)
        return out.detach(), *torch.autograd.grad(out, x, dout)

    sides = our_sides("gather_rows", settings.device, dtype, call) + gather_sides(x, index, dout)
    name = str(dtype).removeprefix("torch.")
    contest(Case("gather_rows", f"{masked} of {tokens} x {HIDDEN}", name, sides, facts={"tokens": tokens}))
