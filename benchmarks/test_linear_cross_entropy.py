"""The loss over BERT's vocabulary, forward and backward, against linear + cross_entropy and against its matrix products alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Case
from bertfast import kernels
from bertfast.bench.backends import our_sides
from bertfast.bench.peers import cross_entropy_sides

VOCAB, HIDDEN = 30522, 768
MASKED = {"cpu": (115, 512), "cuda": (2458, 16384)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [0, 1], ids=["small", "large"])
def test_linear_cross_entropy(contest, settings, size, dtype) -> None:
    masked = (8, 16)[size] if settings.quick else MASKED[settings.device][size]
    vocab = 512 if settings.quick else VOCAB
    hidden = torch.randn(masked, HIDDEN, device=settings.device).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, HIDDEN, device=settings.device) * 0.02).to(dtype).requires_grad_()
    bias = (torch.randn(vocab, device=settings.device) * 0.02).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (masked,), device=settings.device)
    inputs = (hidden, weight, bias)

    def call():
        loss, _ = kernels.linear_cross_entropy(*inputs, labels)
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    sides = our_sides("linear_cross_entropy", settings.device, dtype, call)
    contest(
        Case(
            "linear_cross_entropy",
            f"{masked} x {vocab} x {HIDDEN}",
            str(dtype).removeprefix("torch."),
            sides + cross_entropy_sides(*inputs, labels),
            flops=3 * 2 * masked * vocab * HIDDEN,
            facts={"tokens": masked},
        )
    )
