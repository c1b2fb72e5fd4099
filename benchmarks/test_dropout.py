"""Dropout of a step's hidden states, forward and backward, against torch's and against copying alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Case
from bertfast import kernels
from bertfast.bench.backends import our_sides
from bertfast.bench.peers import dropout_sides

HIDDEN = 768
TOKENS = {"cpu": (1024, 16384), "cuda": (65536,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [0, 1], ids=["small", "large"])
def test_dropout(contest, settings, size, dtype) -> None:
    sizes = (64,) if settings.quick else TOKENS[settings.device]
    if size >= len(sizes):
        pytest.skip("one size serves on this device")
    tokens = sizes[size]
    x = torch.randn(tokens, HIDDEN, device=settings.device).to(dtype).requires_grad_()
    dout = torch.randn_like(x)

    def call():
        out = kernels.dropout(x, 0.1, seed=7)
        return out.detach(), *torch.autograd.grad(out, x, dout)

    sides = our_sides("dropout", settings.device, dtype, call) + dropout_sides(x, dout, 0.1)
    contest(Case("dropout", f"{tokens} x {HIDDEN}", str(dtype).removeprefix("torch."), sides, facts={"tokens": tokens}))
