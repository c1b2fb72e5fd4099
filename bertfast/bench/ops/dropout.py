"""Dropout of a step's hidden states, against torch's, whose bits are its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated


def case(setup: Setup, *, dropout_p: float = 0.1) -> Case:
    """Forward and backward of (tokens, hidden); compared at a rate of 0."""
    tokens, hidden = setup.lengths.tokens, setup.config.hidden_size
    x = setup.draw(tokens, hidden)
    dout = setup.draw(tokens, hidden).detach()
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (x,), (dout,))

    def ours(p: float) -> Call:
        return run(lambda x: kernels.dropout(x, p, seed=7))

    sides.ours("dropout", ours(dropout_p), ours(0.0))
    sides.eager_and_compiled(
        "F.dropout", run, partial(F.dropout, p=dropout_p), partial(F.dropout, p=0.0)
    )
    floor = floors.dropout(x.numel(), setup.itemsize)
    sides.copies(floor)
    facts = {"tokens": tokens}
    return Case(
        "dropout",
        f"{tokens} x {hidden}",
        setup.dtype_name,
        sides,
        floor,
        facts=facts,
        missing=sides.missing,
    )
