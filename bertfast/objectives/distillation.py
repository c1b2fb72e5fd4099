"""Distillation's losses. Sanh et al., "DistilBERT", section 3, and the released ``distiller.py``.

The student learns from the teacher's softened distribution at the masked positions, and from the
masked words themselves. It also learns from the direction of the teacher's last hidden states. The
masked positions are ``--restrict_ce_to_mask`` in the released code, whose default takes every
token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.kernels import products
from bertfast.kernels.linear import linear
from bertfast.kernels.linear_cross_entropy import row_blocks
from bertfast.packed import PackedBatch

# The released training command's.
TEMPERATURE = 2.0
SOFT_WEIGHT, MLM_WEIGHT, COSINE_WEIGHT = 5.0, 2.0, 1.0


def distillation_loss(
    rows: Tensor,
    table: Tensor,
    bias: Tensor | None,
    teacher_rows: Tensor,
    teacher_table: Tensor,
    teacher_bias: Tensor | None,
    counted: Tensor,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """T² KL(softmax(teacher's logits / T) ‖ softmax(student's logits / T)), the mean over the rows
    that count.

    Logits are rows tableᵀ + bias, made a block of rows at a time, so that neither side's stand in
    memory whole. Gradients go to the student's three tensors; they are made on the way, while a
    block's logits are at hand.

    Args:
        rows: (masked, hidden) of the student, floating point.
        table: (vocab, hidden) of the same dtype.
        bias: (vocab,) of the same dtype, or None.
        teacher_rows, teacher_table, teacher_bias: the teacher's, which may have another width and
            dtype.
        counted: (masked,) bool, false for slack.
        temperature: T, above 0.

    Returns:
        () float32, float64 for float64 input.

    Raises:
        BertfastError: the two vocabularies differ in size.
    """
    if len(teacher_table) != len(table):
        raise BertfastError(
            f"the teacher's vocabulary has {len(teacher_table)} entries and the student's "
            f"{len(table)}; both must have the same"
        )
    teacher = (
        teacher_rows.detach(),
        teacher_table.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
    )
    needs_gradients = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (rows, table, bias)
    )
    loss: Tensor = _SoftTargets.apply(
        rows, table, bias, teacher, counted, temperature, needs_gradients
    )
    return loss


class _SoftTargets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        table: Tensor,
        bias: Tensor | None,
        teacher: tuple[Tensor, Tensor, Tensor | None],
        counted: Tensor,
        temperature: float,
        needs_gradients: bool,
    ) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        scale = counted.to(wide) * temperature**2 / counted.sum().clamp(min=1)
        loss = torch.zeros((), dtype=wide, device=rows.device)
        drows = torch.empty_like(rows)
        dtable, dbias = (
            torch.zeros(x.shape, dtype=wide, device=x.device) for x in (table, table[:, 0])
        )
        with torch.autocast(rows.device.type, enabled=False):
            for block in row_blocks(rows, table.shape[0], 2 * wide.itemsize):
                targets = (
                    linear(teacher[0][block], *teacher[1:])
                    .to(wide)
                    .div_(temperature)
                    .log_softmax(1)
                )
                logs = linear(rows[block], table, bias).to(wide).div_(temperature).log_softmax(1)
                shares = targets.exp()
                loss += targets.sub_(logs).mul_(shares).sum(1) @ scale[block]
                if needs_gradients:
                    dlogits = logs.exp_().sub_(shares).mul_(scale[block, None] / temperature)
                    dbias += dlogits.sum(0)
                    dlogits = dlogits.to(rows.dtype)
                    products.mm(dlogits, table, out=drows[block])
                    dtable += products.mm(dlogits.T, rows[block])
        if needs_gradients:
            ctx.save_for_backward(
                drows, dtable.to(table.dtype), None if bias is None else dbias.to(bias.dtype)
            )
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if x is None else x * dloss.to(x.dtype) for x in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


def cosine_loss(hidden: Tensor, teacher_hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The mean of 1 - cos(student's, teacher's) over the last hidden states (tokens, hidden) of all
    tokens that are not slack.

    Raises:
        BertfastError: the two have other widths.
    """
    if hidden.shape != teacher_hidden.shape:
        raise BertfastError(
            f"the teacher's hidden states are {teacher_hidden.shape[1]} wide and the student's "
            f"{hidden.shape[1]}; the cosine loss needs the same"
        )
    wide = torch.promote_types(hidden.dtype, torch.float32)
    real = torch.arange(batch.num_tokens, device=hidden.device) < batch.cu_seqlens[-1]
    losses = F.cosine_embedding_loss(
        hidden.to(wide), teacher_hidden.to(wide), real.to(wide), reduction="none"
    )
    return torch.where(real, losses, 0.0).sum() / real.sum().clamp(min=1)


def teacher_layers(student: int, teacher: int) -> list[int]:
    """Which of the teacher's layers each of the student's starts from, evenly spread from the first
    to the last.

    For 6 of 12 it is 0, 2, 4, 7, 9, 11, as in the released ``extract_distilbert.py``.

    Raises:
        BertfastError: the student has more layers than the teacher.
    """
    if student > teacher:
        raise BertfastError(
            f"the student has {student} layers and the teacher {teacher}; it must not have more"
        )
    steps = max(student - 1, 1)
    return [(2 * layer * (teacher - 1) + steps) // (2 * steps) for layer in range(student)]
