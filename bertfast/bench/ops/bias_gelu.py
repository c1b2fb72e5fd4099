"""gelu(x + bias) and the gated gelu(a) * b, against the ops in a row."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated


def case(setup: Setup, *, approximate: str = "none", gated: bool = False) -> Case:
    """Forward and backward of (tokens, intermediate), the gated form's input twice as wide."""
    tokens, features = setup.lengths.tokens, setup.config.intermediate_size
    x = setup.draw(tokens, features * (1 + gated))
    bias = setup.draw(features * (1 + gated))
    dout = setup.draw(tokens, features).detach()
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (x, bias), (dout,))

    def eager(x: Tensor, bias: Tensor) -> Tensor:
        if not gated:
            return F.gelu(x + bias, approximate=approximate)
        activated, gate = (x + bias).chunk(2, -1)
        return F.gelu(activated, approximate=approximate) * gate

    ours = run(lambda x, bias: kernels.bias_gelu(x, bias, approximate=approximate, gated=gated))
    sides.ours("bias_gelu", ours, ours)
    sides.eager_and_compiled("add + F.gelu" + " + multiply" * gated, run, eager)
    floor = floors.bias_gelu(tokens, features, setup.itemsize, gated)
    sides.copies(floor)
    form = ("" if approximate == "none" else f", {approximate}") + ", gated" * gated
    return Case(
        "bias_gelu",
        f"{tokens} x {features}{form}",
        setup.dtype_name,
        sides,
        floor,
        facts={"tokens": tokens},
        missing=sides.missing,
    )
