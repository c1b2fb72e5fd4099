"""The loss over the vocabulary, against linear + cross_entropy, and against its matrix products
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated
from ..steps import masked_count
from ..timing import Side


def case(setup: Setup) -> Case:
    """Forward and backward at 15 % of the tokens."""
    masked = masked_count(setup.lengths.tokens)
    vocab, hidden = setup.config.vocab_size, setup.config.hidden_size
    states = setup.draw(masked, hidden)
    weight, bias = setup.draw(vocab, hidden, scale=0.02), setup.draw(vocab, scale=0.02)
    labels = torch.randint(vocab, (masked,), device=setup.device)
    dloss = torch.ones((), device=setup.device)
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (states, weight, bias), (dloss,))

    def eager(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(states, weight, bias).float(), labels)

    def liger(functional: Any) -> tuple[Call, Call]:
        def forward(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return functional.liger_fused_linear_cross_entropy(states, weight, labels, bias).float()

        return run(forward), run(forward)

    ours = run(
        lambda states, weight, bias: kernels.linear_cross_entropy(states, weight, bias, labels)[0]
    )
    sides.ours("linear_cross_entropy", ours, ours)
    sides.eager_and_compiled("F.linear + F.cross_entropy", run, eager)
    sides.liger("Liger-Kernel fused_linear_cross_entropy", liger)

    table, rows = weight.detach(), states.detach()
    logits = torch.empty(masked, vocab, dtype=setup.dtype, device=setup.device)
    drows, dtable = torch.empty_like(rows), torch.empty_like(table)

    def products() -> None:
        torch.mm(rows, table.T, out=logits)
        torch.mm(logits, table, out=drows)
        torch.mm(logits.T, rows, out=dtable)

    sides.append(Side("floor: the three matrix products", "floor", products))
    return Case(
        "linear_cross_entropy",
        f"{masked} x {vocab} x {hidden}",
        setup.dtype_name,
        sides,
        floors.linear_cross_entropy(masked, vocab, hidden, setup.itemsize),
        products=True,
        facts={"tokens": masked},
        missing=sides.missing,
    )
