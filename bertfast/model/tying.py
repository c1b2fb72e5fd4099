"""One gradient for a table that is both the word embeddings and the output layer.

The output layer's gradient is dense, the embeddings' one touches only the rows of the tokens that
occur. Left to itself autograd adds the two out of place, which is a pass over two more tensors of
the vocabulary's size. Here the dense one waits until the rows are there, and they are added to it
in place.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _Meeting:
    """What the two backwards of one forward share."""

    def __init__(self) -> None:
        self.dense: Tensor | None = None
        self.over = False


class _Embeddings(torch.autograd.Function):
    """The table as the embeddings read it: first in the forward, hence last in the backward."""

    @staticmethod
    def forward(ctx, table: Tensor, meeting: _Meeting) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.meeting = meeting
        return table.view_as(table)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        dense, ctx.meeting.dense, ctx.meeting.over = ctx.meeting.dense, None, True
        if dense is None:
            return gradient.to_dense() if gradient.is_sparse else gradient, None
        return dense + gradient if torch.is_grad_enabled() else dense.add_(gradient), None


class _Output(torch.autograd.Function):
    """The table as the output layer reads it."""

    @staticmethod
    def forward(ctx, table: Tensor, meeting: _Meeting) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.meeting = meeting
        return table.view_as(table)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[no-untyped-def]
        if ctx.meeting.over or ctx.meeting.dense is not None:  # a second backward through one graph
            return gradient, None
        ctx.meeting.dense = gradient
        return None, None


def tie(table: Tensor) -> tuple[Tensor, Tensor]:
    """(vocab, hidden) as the embeddings, and as the output layer, of one forward read it; the same
    values, one gradient.

    The embeddings' gradient may be sparse: the table's is dense all the same, also where the output
    layer takes no part in a backward.
    """
    meeting = _Meeting()
    return _Embeddings.apply(table, meeting), _Output.apply(table, meeting)
