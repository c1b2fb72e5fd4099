"""dropout(LN(word + position + segment)), against the ops in a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated

EPS = 1e-12


def case(setup: Setup, *, dropout_p: float = 0.1) -> Case:
    """Forward and backward, into dense gradients of the tables; compared without dropout and timed
    with it.
    """
    config, tokens, hidden = setup.config, setup.lengths.tokens, setup.config.hidden_size
    sizes = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
    tables = [setup.draw(rows, hidden) for rows in sizes]
    weight, bias = setup.draw(hidden, scale=0.1, shift=1.0), setup.draw(hidden, scale=0.1)
    dout = setup.draw(tokens, hidden).detach()
    positions = torch.cat([torch.arange(length) for length in setup.lengths.values])
    longest = max(setup.lengths.longest, 2)
    ids = [
        torch.randint(config.vocab_size, (tokens,)).to(setup.device),
        positions.to(setup.device),
        (positions >= longest // 2).long().clamp(max=config.type_vocab_size - 1).to(setup.device),
    ]
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        # PyTorch adds up gradients in their own dtype: in half precision a row that thousands of
        # tokens share loses its digits, as do the norm's. The output and the word table's gradient
        # are compared.
        compared = None if setup.dtype == torch.float32 else 2
        return differentiated(forward, (*tables, weight, bias), (dout,), compared)

    def ours(p: float) -> Call:
        def forward(
            word: Tensor, position: Tensor, segment: Tensor, weight: Tensor, bias: Tensor
        ) -> Tensor:
            return kernels.embed(
                ids[0],
                ids[1],
                ids[2],
                word,
                position,
                segment,
                weight,
                bias,
                eps=EPS,
                dropout_p=p,
                seed=7,
            )

        return run(forward)

    def eager(p: float) -> Callable:
        def forward(
            word: Tensor, position: Tensor, segment: Tensor, weight: Tensor, bias: Tensor
        ) -> Tensor:
            word, position, segment = map(F.embedding, ids, (word, position, segment))
            return F.dropout(
                F.layer_norm(word + position + segment, (hidden,), weight, bias, EPS), p
            )

        return forward

    sides.ours("embed", ours(dropout_p), ours(0.0))
    sides.eager_and_compiled(
        "F.embedding + F.layer_norm + F.dropout", run, eager(dropout_p), eager(0.0)
    )
    floor = floors.embed(tokens, sum(sizes), hidden, setup.itemsize)
    sides.copies(floor)
    return Case(
        "embed",
        f"{tokens} x {hidden}, vocabulary {config.vocab_size}"
        + (f", dropout {dropout_p}" if dropout_p else ""),
        setup.dtype_name,
        sides,
        floor,
        tolerance=None
        if setup.dtype == torch.float32
        else 5e-2,  # the sums of three roundings, and of many positions
        facts={"tokens": tokens},
        missing=sides.missing,
    )
