"""A dense layer of the encoder, against PyTorch's, and against ours in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated
from ..timing import Side


def case(setup: Setup) -> Case:
    """Forward and backward of (tokens, hidden) rows through the feed-forward's first layer."""
    rows, inner, columns = (
        setup.lengths.tokens,
        setup.config.hidden_size,
        setup.config.intermediate_size,
    )
    layer = (setup.draw(rows, inner), setup.draw(columns, inner), setup.draw(columns))
    dout = setup.draw(rows, columns).detach()
    sides = Sides(setup)

    def run(dtype: torch.dtype, forward: object = kernels.linear) -> Call:
        leaves: list[Tensor] = [x.detach().to(dtype).requires_grad_() for x in layer]
        return differentiated(forward, leaves, [dout.to(dtype)])  # type: ignore[arg-type]

    ours = run(setup.dtype)
    sides.append(Side("bertfast", "ours", ours, ours))
    plain = run(setup.dtype, F.linear)
    sides.peer("F.linear", plain, plain)
    if setup.dtype != torch.float32:
        wide = run(torch.float32)
        sides.append(Side("bertfast in float32", "backend", wide, wide))
    return Case(
        "linear",
        f"{rows} x {inner} to {columns}",
        setup.dtype_name,
        sides,
        floors.linear(rows, inner, columns, setup.itemsize),
        products=True,
        facts={"tokens": rows},
        missing=sides.missing,
    )
