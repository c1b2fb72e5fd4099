"""The MLM head's loss: cross-entropy of ``logits = hidden Wᵀ + bias`` against ``labels``, logits
never whole in memory.

hidden (masked, hidden), weight (vocab, hidden), bias (vocab,), labels (masked,). For row m with
logsumexp l and smoothing s,

    loss_m = (1 - s) (l - logits[m, label]) + s (l - mean(logits[m])) + z_loss l²

On a GPU the product and the online softmax are one Triton kernel, and the backward makes the logits
again, a block of rows at a time. On a CPU a block of rows goes through torch's matrix product, then
one pass of C++ turns its logits into loss and gradient in place; when a gradient will be wanted it
is made there and then, so that the logits are computed once.

Sources: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", section 4; Szegedy
et al., "Rethinking the Inception Architecture", section 7 (smoothing); Chowdhery et al., "PaLM",
section 5 (z-loss).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch, products, reference, tuning
from .checks import (
    check_device,
    check_integers,
    check_launch,
    check_like,
    check_tensor,
    register_fake,
)
from .launch import launch
from .threads import num_threads
from .triton_compat import tl, triton
from .triton_dot import dot

REDUCTIONS = ("mean", "sum", "none")
# A block of logits on the CPU: large enough for the matrix product's full rate, small beside the
# weights.
BLOCK_BYTES = 48 << 20


# --- Triton ---


@triton.jit
def _logits_tile(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    vocab_ids,
    masked,
    vocab,
    hidden,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_V) logits in float32; entries beyond the vocabulary hold zeros."""
    total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    columns = tl.arange(0, BLOCK_K)
    h_ptrs = hidden_ptr + rows.to(tl.int64)[:, None] * hidden + columns[None, :]
    w_ptrs = weight_ptr + vocab_ids.to(tl.int64)[:, None] * hidden + columns[None, :]
    for start in range(0, hidden, BLOCK_K):
        inside = columns[None, :] < hidden - start
        h = tl.load(h_ptrs, (rows < masked)[:, None] & inside, 0.0)
        w = tl.load(w_ptrs, (vocab_ids < vocab)[:, None] & inside, 0.0)
        total = dot(h, tl.trans(w), total, PRECISION)
        h_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    if HAS_BIAS:
        total += tl.load(bias_ptr + vocab_ids, vocab_ids < vocab, 0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def _statistics_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    labels_ptr,
    max_ptr,
    sum_ptr,
    total_ptr,
    at_label_ptr,
    best_ptr,
    masked,
    vocab,
    hidden,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_TILES: tl.constexpr,
):
    """Of each row over one split of the vocabulary, SPLIT_TILES tiles: maximum, sum of
    exponentials, sum, the label's logit, the best id.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    labels = tl.load(labels_ptr + rows, rows < masked, -1)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    exponentials = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    at_label = tl.zeros((BLOCK_M,), tl.float32)
    best = tl.zeros((BLOCK_M,), tl.int32)
    for tile in range(SPLIT_TILES):
        first = (split * SPLIT_TILES + tile) * BLOCK_V
        if first < vocab:
            ids = first + tl.arange(0, BLOCK_V)
            logits = _logits_tile(
                hidden_ptr,
                weight_ptr,
                bias_ptr,
                rows,
                ids,
                masked,
                vocab,
                hidden,
                HAS_BIAS,
                PRECISION,
                BLOCK_M,
                BLOCK_V,
                BLOCK_K,
            )
            total += tl.sum(tl.where((ids < vocab)[None, :], logits, 0.0), 1)
            at_label += tl.sum(tl.where(ids[None, :] == labels[:, None], logits, 0.0), 1)
            logits = tl.where((ids < vocab)[None, :], logits, float("-inf"))
            tile_top = tl.max(logits, 1)
            # The lowest id that holds the maximum; a later tile must exceed it.
            tile_best = tl.min(tl.where(logits == tile_top[:, None], ids[None, :], 2147483647), 1)
            best = tl.where(tile_top > top, tile_best, best)
            new_top = tl.maximum(top, tile_top)
            exponentials = exponentials * tl.exp(top - new_top) + tl.sum(
                tl.exp(logits - new_top[:, None]), 1
            )
            top = new_top
    place = split.to(tl.int64) * masked + rows
    tl.store(max_ptr + place, top, rows < masked)
    tl.store(sum_ptr + place, exponentials, rows < masked)
    tl.store(total_ptr + place, total, rows < masked)
    tl.store(at_label_ptr + place, at_label, rows < masked)
    tl.store(best_ptr + place, best, rows < masked)


# The pointers go into slices of a batch's rows, wherever these begin; the last slice is shorter.
@triton.jit(
    do_not_specialize=("masked",),
    do_not_specialize_on_alignment=("labels_ptr", "lse_ptr", "scale_ptr"),
)
def _gradient_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    labels_ptr,
    lse_ptr,
    scale_ptr,
    out_ptr,
    masked,
    vocab,
    hidden,
    ignore_index,
    smoothing,
    z_loss,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of the gradient of sum(scale * loss) with respect to the logits, which are made
    again.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ids = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = _logits_tile(
        hidden_ptr,
        weight_ptr,
        bias_ptr,
        rows,
        ids,
        masked,
        vocab,
        hidden,
        HAS_BIAS,
        PRECISION,
        BLOCK_M,
        BLOCK_V,
        BLOCK_K,
    )
    labels = tl.load(labels_ptr + rows, rows < masked, ignore_index)
    lse = tl.load(lse_ptr + rows, rows < masked, 0.0)
    scale = tl.load(scale_ptr + rows, rows < masked, 0.0)
    probabilities = tl.exp(logits - lse[:, None]) * (1.0 + 2.0 * z_loss * lse)[:, None]
    target = tl.where(ids[None, :] == labels[:, None], 1.0 - smoothing, 0.0) + smoothing / vocab
    gradient = tl.where(
        (labels != ignore_index)[:, None], (probabilities - target) * scale[:, None], 0.0
    )
    place = rows.to(tl.int64)[:, None] * vocab + ids[None, :]
    inside = (rows < masked)[:, None] & (ids < vocab)[None, :]
    tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), inside)


def _tile_options(kernel: str, hidden: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """Constants and launch options of a kernel; float32 is exact unless PyTorch is told
    otherwise.
    """
    exact = hidden.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {
        "HAS_BIAS": bias is not None,
        "PRECISION": "ieee" if exact else "tf32",
        **tuning.options(f"linear_cross_entropy.{kernel}", hidden.dtype, hidden.device),
    }


def _forward_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logsumexps and correctness by row."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    tiles = _tile_options("statistics", hidden, bias)
    splits = triton.cdiv(
        triton.cdiv(vocab, tiles["BLOCK_V"]), tiles["SPLIT_TILES"]
    )  # combined by torch below
    top, exponentials, total, at_label = (
        torch.empty(splits, rows, device=hidden.device) for _ in range(4)
    )
    best = torch.empty(splits, rows, dtype=torch.int32, device=hidden.device)
    if rows:
        launch(
            _statistics_kernel, (triton.cdiv(rows, tiles["BLOCK_M"]), splits),
            hidden, weight, hidden if bias is None else bias, labels, top, exponentials, total,
            at_label, best, rows, vocab, hidden.shape[1], **tiles,
        )  # fmt: skip
    counted = labels != ignore_index
    # Of equal maxima the first split's wins, and in it the lowest id.
    largest, winner = top.max(0) if rows else (top.sum(0), best.sum(0))
    lse = torch.where(counted, largest + ((top - largest).exp() * exponentials).sum(0).log(), 0.0)
    losses = (
        (1 - label_smoothing) * (lse - at_label.sum(0))
        + label_smoothing * (lse - total.sum(0) / vocab)
        + z_loss * lse**2
    )
    correct = counted & (best.gather(0, winner[None])[0] == labels) if rows else counted
    return torch.where(counted, losses, 0.0), lse, correct.to(torch.uint8)


def _backward_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    grad_scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, a block of rows at a time: its logits are made again as gradients, then two
    matrix products.
    """
    vocab = weight.shape[0]
    tiles = _tile_options("gradient", hidden, bias)
    dhidden = torch.empty_like(hidden)
    dweight = torch.zeros(weight.shape, device=weight.device)
    dbias = torch.zeros(vocab if bias is not None else 0, device=weight.device)
    for block in row_blocks(hidden.shape[0], vocab, hidden.element_size()):
        part = hidden[block]
        rows = part.shape[0]
        dlogits = torch.empty(rows, vocab, dtype=hidden.dtype, device=hidden.device)
        grid = (triton.cdiv(rows, tiles["BLOCK_M"]), triton.cdiv(vocab, tiles["BLOCK_V"]))
        launch(
            _gradient_kernel, grid,
            part, weight, hidden if bias is None else bias, labels[block], lse[block],
            grad_scale[block], dlogits,
            rows, vocab, hidden.shape[1], ignore_index, label_smoothing, z_loss, **tiles,
        )  # fmt: skip
        torch.mm(dlogits, weight, out=dhidden[block])
        dweight += dlogits.T @ part
        if bias is not None:
            dbias += dlogits.sum(0, dtype=torch.float32)
    return dhidden, dweight.to(weight.dtype), dbias.to(hidden.dtype)


# --- C++ ---


def row_blocks(rows: int, vocab: int, element_size: int) -> list[slice]:
    """Slices of at most BLOCK_BYTES of logits, of nearly even height."""
    count = -(-rows * vocab * element_size // BLOCK_BYTES)
    height = -(-rows // max(count, 1))
    return [slice(start, min(start + height, rows)) for start in range(0, rows, max(height, 1))]


# Autocast off: the C++ pass reads the logits in the dtype of hidden, whatever surrounds the call.
@torch.autocast("cpu", enabled=False)
def _rows_cpp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    grad_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, logsumexps and correctness by row, and the gradients of sum(grad_scale * losses) when
    ``grad_scale`` is given.
    """
    rows, vocab = hidden.shape[0], weight.shape[0]
    # A block of rows takes its own labels alone, so that the extension sees no surplus of them.
    if labels.shape != (rows,):
        raise ValueError(
            f"there are {labels.numel()} labels and {rows} rows of hidden; they must be the same"
        )
    losses, lse = torch.empty(rows), torch.empty(rows)
    correct = torch.empty(rows, dtype=torch.uint8)
    bias_f32 = None if bias is None else bias.float()
    wanted = grad_scale is not None
    dhidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    blocks = row_blocks(rows, vocab, hidden.element_size())
    # Where the products are widened, the logits stay in float32: they are never rounded.
    wide = torch.float32 if products.widens(hidden) else hidden.dtype
    buffer = hidden.new_empty(blocks[0].stop if blocks else 0, vocab, dtype=wide)
    # The product adds to what the blocks before gave: in bfloat16 that is rounded once a block, for
    # a second tensor of the table's size in float32 would be larger than all else here.
    dweight = weight.new_zeros(weight.shape if wanted and len(blocks) != 1 else 0)
    dbias = torch.zeros(vocab if wanted and bias is not None else 0)
    for block in blocks:
        logits = products.mm(hidden[block], weight.T, scratch=buffer[: block.stop - block.start])
        dispatch._C.cross_entropy_rows(
            logits=logits,
            bias=bias_f32,
            labels=labels[block],
            loss=losses[block],
            lse=lse[block],
            correct=correct[block],
            grad_scale=None if grad_scale is None else grad_scale[block],
            dbias=dbias if dbias.numel() else None,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            threads=num_threads(),
        )
        if not wanted:
            continue
        products.mm(logits, weight, out=dhidden[block])
        if len(blocks) == 1:
            dweight = products.mm(logits.T, hidden[block])
        else:
            products.mm(logits.T, hidden[block], out=dweight, accumulate=True)
    return losses, lse, correct, dhidden, dweight, dbias.to(hidden.dtype)


# --- torch.library ---


@torch.library.custom_op("bertfast::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    gradients_now: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, labels = hidden.contiguous(), weight.contiguous(), labels.contiguous()
    bias = None if bias is None else bias.contiguous()
    if backend == "cpp":
        grad_scale = _grad_scale(None, labels, ignore_index, reduction) if gradients_now else None
        losses, lse, correct, dhidden, dweight, dbias = _rows_cpp(
            hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, grad_scale
        )
    else:
        _check_launch(backend, hidden, weight, bias, labels, ignore_index)
        losses, lse, correct = _forward_triton(
            hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss
        )
        dhidden, dweight, dbias = (hidden.new_empty(0) for _ in range(3))
    return (
        _reduce(losses, labels, ignore_index, reduction),
        correct.sum(),
        lse,
        dhidden,
        dweight,
        dbias,
    )


@torch.library.custom_op("bertfast::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    dloss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, labels = hidden.contiguous(), weight.contiguous(), labels.contiguous()
    bias = None if bias is None else bias.contiguous()
    grad_scale = _grad_scale(dloss, labels, ignore_index, reduction)
    if backend == "cpp":
        return _rows_cpp(
            hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, grad_scale
        )[3:]
    _check_launch(backend, hidden, weight, bias, labels, ignore_index)
    lse = lse.contiguous()
    check_launch("linear_cross_entropy", backend, hidden, lse=(lse, torch.float32, labels.shape))
    return _backward_triton(
        hidden, weight, bias, labels, lse, grad_scale, ignore_index, label_smoothing, z_loss
    )


def _check_launch(
    backend: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
) -> None:
    check_launch("linear_cross_entropy", backend, hidden)
    _check_tensors(hidden, weight, bias, labels, ignore_index)


def _counted(labels: Tensor, ignore_index: int) -> Tensor:
    return (labels != ignore_index).sum().clamp(min=1)


def _reduce(losses: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / _counted(labels, ignore_index) if reduction == "mean" else total


def _grad_scale(dloss: Tensor | None, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """(masked,) float32: the gradient of each row's loss; ``dloss`` None is a gradient of one."""
    scale = torch.ones((), device=labels.device) if dloss is None else dloss.float()
    if reduction == "mean":
        scale = scale / _counted(labels, ignore_index)
    return scale.expand(labels.shape).contiguous()


@register_fake(_linear_cross_entropy)
def _(
    hidden,
    weight,
    bias,
    labels,
    ignore_index,
    label_smoothing,
    z_loss,
    reduction,
    gradients_now,
    backend,
):
    rows, f32 = hidden.shape[0], torch.float32
    loss = hidden.new_empty(rows if reduction == "none" else (), dtype=f32)
    correct, lse = hidden.new_empty((), dtype=torch.int64), hidden.new_empty(rows, dtype=f32)
    if not gradients_now:
        return loss, correct, lse, hidden.new_empty(0), hidden.new_empty(0), hidden.new_empty(0)
    dbias = hidden.new_empty(0 if bias is None else weight.shape[0])
    return loss, correct, lse, hidden.new_empty(hidden.shape), hidden.new_empty(weight.shape), dbias


@register_fake(_linear_cross_entropy_backward)
def _(
    dloss,
    hidden,
    weight,
    bias,
    labels,
    lse,
    ignore_index,
    label_smoothing,
    z_loss,
    reduction,
    backend,
):
    dbias = hidden.new_empty(0 if bias is None else weight.shape[0])
    return hidden.new_empty(hidden.shape), hidden.new_empty(weight.shape), dbias


def _setup(ctx, inputs, output) -> None:
    hidden, weight, bias, labels, *options, ctx.gradients_now, backend = inputs
    _, correct, lse, *gradients = output
    ctx.options = (*options, backend)
    ctx.mark_non_differentiable(correct, lse, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, labels, lse, *gradients)


def _backward(ctx, dloss, *_):
    if dloss is None:
        return (None,) * 10
    *inputs, dhidden, dweight, dbias = ctx.saved_tensors
    if not ctx.gradients_now:
        dhidden, dweight, dbias = _linear_cross_entropy_backward(dloss, *inputs, *ctx.options)
    elif (
        type(dloss) is Tensor and dloss.device.type == "cpu" and dloss.item() == 1.0
    ):  # a real tensor, not a traced one
        # The usual case: hand the gradients over with no pass over a vocabulary-sized tensor. The
        # caller may now write into them, so that a second backward through a retained graph makes
        # its own; `data`, so that autograd lets it.
        ctx.gradients_now = False
        dhidden, dweight, dbias = dhidden.data, dweight.data, dbias.data
    else:
        dhidden, dweight, dbias = (
            gradient * dloss.to(gradient.dtype) for gradient in (dhidden, dweight, dbias)
        )
    return dhidden, dweight, dbias if inputs[2] is not None else None, *(None,) * 7


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``hidden @ weight.T + bias`` against ``labels``, and how many rows it
    predicts correctly.

    Args:
        hidden: (masked, hidden), floating point.
        weight: (vocab, hidden), hidden's dtype; BERT ties it to the word embeddings.
        bias: (vocab,) of hidden's dtype, or None.
        labels: (masked,) int64, each in [0, vocab) or ``ignore_index``.
        ignore_index: the label of rows that count for nothing.
        label_smoothing: in [0, 1], as in `torch.nn.functional.cross_entropy`.
        z_loss: at least 0, the weight of the squared logsumexp.
        reduction: "mean" over the rows that count (0 if there are none), "sum", or "none" for the
            loss of each row.

    Returns:
        The loss, float32 (float64 for float64 input), () or (masked,); and the count of rows whose
        largest logit is the label's, int64 ().

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or option that does not fit; on the CPU a label out of range (on
            a GPU values are not read).
        BackendError: the forced backend cannot serve the call.
    """
    _check_tensors(hidden, weight, bias, labels, ignore_index)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss is {z_loss}; it must be at least 0 and finite")
    backend = dispatch.select("linear_cross_entropy", hidden.device, hidden.dtype)
    options = (ignore_index, label_smoothing, z_loss, reduction)
    if backend == "reference":
        return reference.linear_cross_entropy(hidden, weight, bias, labels, *options)
    differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (hidden, weight, bias)
    )
    gradients_now = backend == "cpp" and differentiated and reduction != "none"
    return _linear_cross_entropy(hidden, weight, bias, labels, *options, gradients_now, backend)[:2]


def _check_tensors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
) -> None:
    check_tensor("hidden", hidden, ("masked", "hidden"))
    check_tensor("weight", weight, ("vocab", "hidden"))
    check_like("weight", weight, "hidden", hidden)
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight has {weight.shape[1]} columns and hidden {hidden.shape[1]}; "
            "they must be the same"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight has no rows; the vocabulary must have at least one entry")
    if bias is not None:
        check_tensor("bias", bias, ("vocab",))
        check_like("bias", bias, "hidden", hidden)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(
                f"bias has {bias.shape[0]} entries and weight {weight.shape[0]} rows; "
                "they must be the same"
            )
    check_integers("labels", labels, ("masked",), torch.int64)
    check_device("labels", labels, "hidden", hidden)
    if labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"there are {labels.shape[0]} labels and {hidden.shape[0]} rows of hidden; "
            "they must be the same"
        )
    if not torch.compiler.is_compiling() and labels.device.type == "cpu":
        _check_labels(labels, weight.shape[0], ignore_index)


def _check_labels(labels: Tensor, vocab: int, ignore_index: int) -> None:
    wrong = ((labels < 0) | (labels >= vocab)) & (labels != ignore_index)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels[{row}] is {int(labels[row])}; it must be from 0 to {vocab - 1}, "
            f"or {ignore_index} to be ignored"
        )
