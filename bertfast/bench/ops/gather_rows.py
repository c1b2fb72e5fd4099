"""Picking the masked rows, against indexing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated
from ..steps import masked_count


def case(setup: Setup) -> Case:
    """Forward and backward of 15 % of (tokens, hidden)."""
    tokens, hidden = setup.lengths.tokens, setup.config.hidden_size
    masked = masked_count(tokens)
    x = setup.draw(tokens, hidden)
    dout = setup.draw(masked, hidden).detach()
    index = torch.randperm(tokens)[:masked].sort().values.to(setup.device)
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (x,), (dout,))

    def indexed(x: Tensor) -> Tensor:
        return x[index]

    ours, select = (
        run(lambda x: kernels.gather_rows(x, index)),
        run(lambda x: x.index_select(0, index)),
    )
    sides.ours("gather_rows", ours, ours)
    sides.peer("index_select", select, select)
    sides.eager_and_compiled("x[index]", run, indexed)
    floor = floors.gather_rows(masked, tokens, hidden, setup.itemsize)
    sides.copies(floor)
    return Case(
        "gather_rows",
        f"{masked} of {tokens} x {hidden}",
        setup.dtype_name,
        sides,
        floor,
        facts={"tokens": tokens},
        missing=sides.missing,
    )
