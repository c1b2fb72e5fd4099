"""Rotary position embedding of queries and keys, slices of one projection, against transformers'
way in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated

THETA = 10000.0


def case(setup: Setup) -> Case:
    """Forward and backward of q and k, (tokens, heads, head_dim) each."""
    lengths, heads, head_dim = (
        setup.lengths,
        setup.config.num_attention_heads,
        setup.config.head_dim,
    )
    tokens = lengths.tokens
    q, k, _ = setup.draw(tokens, 3, heads, head_dim).detach().unbind(1)
    q, k = q.requires_grad_(), k.requires_grad_()
    douts = [setup.draw(tokens, heads, head_dim).detach() for _ in range(2)]
    ids = torch.cat([torch.arange(length) for length in lengths.values]).to(setup.device)
    cos, sin = kernels.rotary_tables(lengths.longest, head_dim, THETA, setup.device)
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (q, k), douts)

    def ours(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.rotary(q, k, ids, cos, sin)

    def eager(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        whole_cos, whole_sin = (torch.cat([table[ids]] * 2, -1)[:, None] for table in (cos, sin))

        def rotated(x: Tensor) -> Tensor:
            first, second = x.float().chunk(2, -1)
            return (x.float() * whole_cos + torch.cat([-second, first], -1) * whole_sin).to(x.dtype)

        return rotated(q), rotated(k)

    sides.ours("rotary", run(ours), run(ours))
    sides.eager_and_compiled("x cos + rotate_half(x) sin", run, eager)
    floor = floors.rotary(tokens, heads * head_dim, setup.itemsize)
    sides.copies(floor)
    return Case(
        "rotary",
        f"{tokens} x {heads} x {head_dim}",
        setup.dtype_name,
        sides,
        floor,
        facts={"tokens": tokens},
        missing=sides.missing,
    )
