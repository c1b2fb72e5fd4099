"""LN(dropout(x) + residual), how half a block ends, against the three ops in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated

EPS = 1e-12


def case(setup: Setup, *, dropout_p: float = 0.1, rms: bool = False, prenorm: bool = False) -> Case:
    """Forward and backward of (tokens, hidden); compared without dropout and timed with it."""
    tokens, hidden = setup.lengths.tokens, setup.config.hidden_size
    x, residual = setup.draw(tokens, hidden), setup.draw(tokens, hidden)
    weight = setup.draw(hidden, scale=0.1, shift=1.0)
    bias = None if rms else setup.draw(hidden, scale=0.1)
    douts = [setup.draw(tokens, hidden).detach() for _ in range(1 + prenorm)]
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        # PyTorch adds up a norm's gradients over the rows in their own dtype: in half precision
        # they lose digits, and are not compared.
        compared = None if setup.dtype == torch.float32 else len(douts) + 2
        return differentiated(forward, (x, residual, weight, bias), douts, compared)

    def ours(p: float) -> Call:
        def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            return kernels.add_layer_norm(
                x, residual, weight, bias, eps=EPS, dropout_p=p, seed=7, rms=rms, prenorm=prenorm
            )

        return run(forward)

    def eager(p: float) -> Callable:
        def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            summed = F.dropout(x, p) + residual
            normed = (
                F.rms_norm(summed, (hidden,), weight, EPS)
                if rms
                else F.layer_norm(summed, (hidden,), weight, bias, EPS)
            )
            return (normed, summed) if prenorm else normed

        return forward

    def liger(functional: Any) -> tuple[Call, Call]:
        def side(p: float) -> Call:
            def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
                summed = F.dropout(x, p) + residual
                normed = functional.liger_layer_norm(summed, weight, bias, EPS)
                return (normed, summed) if prenorm else normed

            return run(forward)

        return side(dropout_p), side(0.0)

    sides.ours("add_layer_norm", ours(dropout_p), ours(0.0))
    norm = "rms_norm" if rms else "layer_norm"
    sides.eager_and_compiled(f"F.dropout + add + F.{norm}", run, eager(dropout_p), eager(0.0))
    if not rms:
        sides.liger("F.dropout + add + Liger-Kernel layer_norm", liger)
    floor = floors.add_layer_norm(tokens, hidden, setup.itemsize, dropout_p > 0, prenorm)
    sides.copies(floor)
    form = "".join(
        [", RMSNorm" * rms, ", pre-norm" * prenorm, f", dropout {dropout_p}" if dropout_p else ""]
    )
    return Case(
        "add_layer_norm",
        f"{tokens} x {hidden}{form}",
        setup.dtype_name,
        sides,
        floor,
        facts={"tokens": tokens},
        missing=sides.missing,
    )
