"""The MLM head's loss: cross-entropy of ``logits = hidden Wᵀ + bias`` against ``labels``, of whose
logits no more than a block of rows stands in memory.

hidden (masked, hidden), weight (vocab, hidden), bias (vocab,), labels (masked,). For row m with
logsumexp l and smoothing s,

    loss_m = (1 - s) (l - logits[m, label]) + s (l - mean(logits[m])) + z_loss l²

A block of rows goes through the library's matrix product. One pass of Triton or C++ over its logits
then makes the loss. When a gradient will be wanted, it also turns them into their gradient in
place. From that, two more products follow. So a step has three products of the vocabulary's size,
and none in the backward. They pay for it with logits that are rounded to the dtype of hidden.

Sources: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", section 4; Hsu et
al., "Liger Kernel", section 3.2 (gradients in the forward); Szegedy et al., "Rethinking the
Inception Architecture", section 7 (smoothing); Chowdhery et al., "PaLM", section 5 (z-loss).
"""

from __future__ import annotations

from contextlib import nullcontext

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

REDUCTIONS = ("mean", "sum", "none")
# A block of logits on the CPU: large enough for the matrix product's full rate, small beside the
# weights.
BLOCK_BYTES = 48 << 20
# On a GPU, this share of its memory: 1.2 GiB of 80, which nearly every step's logits fit. The
# products then run at their largest, and the table's gradient is written once. Blocks that the
# cache holds would write it several times, which costs more than their reads save.
GPU_SHARE = 64


def row_blocks(hidden: Tensor, vocab: int, element_size: int) -> list[slice]:
    """Slices of hidden's rows, of nearly even height, whose logits are a block at most:
    `BLOCK_BYTES`, or on a GPU a `GPU_SHARE`-th of its memory. The meta device has none to spare:
    all is one block.
    """
    rows, most = hidden.shape[0], BLOCK_BYTES
    if hidden.device.type == "meta":
        most = max(1, rows * vocab * element_size)
    elif hidden.device.type == "cuda":
        most = torch.cuda.get_device_properties(hidden.device).total_memory // GPU_SHARE
    count = -(-rows * vocab * element_size // most)
    height = -(-rows // max(count, 1))
    return [slice(start, min(start + height, rows)) for start in range(0, rows, max(height, 1))]


# --- Triton ---

# Elements that rows of logits begin at multiples of. Without it neither the kernel nor the products
# could load 16 bytes at once (NVIDIA, "cuBLAS", tensor core usage).
ROW_ALIGNMENT = 64
SCALE_BLOCK = 2048  # elements of a program


@triton.jit
def _logits_tile(row_ptr, bias_ptr, start, vocab, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK,) ids and logits of a row in float32; -inf beyond the vocabulary."""
    ids = start + tl.arange(0, BLOCK)  # (BLOCK,)
    if start + BLOCK <= vocab:  # without a mask a thread loads 16 bytes at once
        x = tl.load(row_ptr + ids).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_ptr + ids).to(tl.float32)
    else:
        x = tl.load(row_ptr + ids, ids < vocab, float("-inf")).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_ptr + ids, ids < vocab, 0.0).to(tl.float32)
    return ids, x


@triton.jit
def _store(x_ptr, start, n, x, BLOCK: tl.constexpr):
    """x (BLOCK,) from ``start`` on, as far as there are n."""
    place = start + tl.arange(0, BLOCK)  # (BLOCK,)
    if start + BLOCK <= n:
        tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty))
    else:
        tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), place < n)


# The pointers go into slices of a batch's rows, wherever these begin.
@triton.jit(
    do_not_specialize_on_alignment=("labels_ptr", "scale_ptr", "loss_ptr", "correct_ptr"),
)
def _rows_kernel(
    logits_ptr,
    bias_ptr,
    labels_ptr,
    scale_ptr,
    loss_ptr,
    correct_ptr,
    vocab,
    stride,
    ignore_index,
    smoothing,
    z_loss,
    HAS_BIAS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SCALE_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row of logits becomes its loss, whether its label's is the largest, and with GRADIENT, in
    place, the gradient of scale * loss. The second reading is from the cache.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    label = tl.load(labels_ptr + row)
    counts = label != ignore_index
    known = counts & (label >= 0) & (label < vocab)
    at_label = tl.load(row_ptr + label, known, 0.0).to(tl.float32)
    if HAS_BIAS:
        at_label += tl.load(bias_ptr + label, known, 0.0).to(tl.float32)
    top = tl.full((), float("-inf"), tl.float32)
    exponentials = tl.full((), 0.0, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    beaten = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids, x = _logits_tile(row_ptr, bias_ptr, start, vocab, HAS_BIAS, BLOCK)
        new_top = tl.maximum(top, tl.max(x, 0))
        exponentials = exponentials * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
        total += tl.sum(tl.where(ids < vocab, x, 0.0), 0)
        # Of equal maxima the lowest id is the prediction.
        before = (x > at_label) | ((x == at_label) & (ids < label))
        beaten = tl.maximum(beaten, tl.max(before.to(tl.int32), 0))
    lse = top + tl.log(exponentials)
    loss = (1.0 - smoothing) * (lse - at_label) + smoothing * (lse - total / vocab)
    loss += z_loss * lse * lse
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0))
    tl.store(correct_ptr + row, (known & (beaten == 0) & (lse == lse)).to(tl.uint8))
    if GRADIENT:
        scale = tl.load(scale_ptr + (row if SCALE_BY_ROW else 0))
        slope = 1.0 + 2.0 * z_loss * lse
        for start in range(0, vocab, BLOCK):
            ids, x = _logits_tile(row_ptr, bias_ptr, start, vocab, HAS_BIAS, BLOCK)
            target = tl.where(ids == label, 1.0 - smoothing, 0.0) + smoothing / vocab
            gradient = tl.where(counts, (tl.exp(x - lse) * slope - target) * scale, 0.0)
            _store(row_ptr, start, vocab, gradient, BLOCK)


@triton.jit
def _scale_part(x_ptr, factor, n, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = start + tl.arange(0, BLOCK)  # (BLOCK,)
    if start + BLOCK <= n:
        x = tl.load(x_ptr + place)
    else:
        x = tl.load(x_ptr + place, place < n, 0.0)
    _store(x_ptr, start, n, x.to(tl.float32) * factor, BLOCK)


@triton.jit(do_not_specialize=("hidden_n", "weight_n", "bias_n"))
def _scale_kernel(
    factor_ptr,
    dhidden_ptr,
    dweight_ptr,
    dbias_ptr,
    hidden_n,
    weight_n,
    bias_n,
    BLOCK: tl.constexpr,
):
    """All three gradients times the factor, in place; where it is 1 nothing else is read."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        _scale_part(dhidden_ptr, factor, hidden_n, BLOCK)
        _scale_part(dweight_ptr, factor, weight_n, BLOCK)
        _scale_part(dbias_ptr, factor, bias_n, BLOCK)


def _scale_in_place(factor: Tensor, gradients: tuple[Tensor, Tensor, Tensor]) -> None:
    """The host does not know the factor: it is read on the device."""
    sizes = [x.numel() for x in gradients]
    if max(sizes):
        grid = (triton.cdiv(max(sizes), SCALE_BLOCK),)
        launch(_scale_kernel, grid, factor, *gradients, *sizes, BLOCK=SCALE_BLOCK, num_warps=8)


# --- both backends ---


def _rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    grad_scale: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses and correctness by row, and the gradients of sum(grad_scale * losses) when
    ``grad_scale``, () or (masked,) float32, is given.
    """
    rows, vocab = hidden.shape[0], weight.shape[0]
    # A block of rows takes its own labels alone, so that no kernel sees a surplus of them.
    if labels.shape != (rows,):
        raise ValueError(
            f"there are {labels.numel()} labels and {rows} rows of hidden; they must be the same"
        )
    options = (ignore_index, label_smoothing, z_loss)
    losses = hidden.new_empty(rows, dtype=torch.float32)
    correct = hidden.new_empty(rows, dtype=torch.uint8)
    wanted = grad_scale is not None
    dhidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    # Where the products are widened, the logits stay in float32: they are never rounded.
    wide = torch.float32 if products.widens(hidden) else hidden.dtype
    alignment = 1 if backend == "cpp" else ROW_ALIGNMENT
    stride = -(-vocab // alignment) * alignment
    blocks = row_blocks(hidden, stride, hidden.element_size())
    buffer = hidden.new_empty(blocks[0].stop if blocks else 0, stride, dtype=wide)[:, :vocab]
    # The product adds to what the blocks before gave. In bfloat16 that is rounded once a block, for
    # a second tensor of the table's size in float32 would be larger than all else here.
    dweight = weight.new_empty(0)
    if wanted and len(blocks) != 1:
        dweight = weight.new_zeros(weight.shape)
    dbias = hidden.new_empty(0, dtype=torch.float32)
    if wanted and bias is not None and (backend == "cpp" or not blocks):
        dbias = hidden.new_zeros(vocab, dtype=torch.float32)
    added = None if bias is None or backend != "cpp" else bias.float()
    for block in blocks:
        logits = products.mm(hidden[block], weight.T, scratch=buffer[: block.stop - block.start])
        scale = grad_scale[block] if grad_scale is not None and grad_scale.dim() else grad_scale
        rest = (labels[block], scale, losses[block], correct[block], *options)
        if backend == "cpp":
            _rows_cpp(logits, added, *rest, dbias)
        else:
            _rows_triton(logits, bias, *rest)
        if not wanted:
            continue
        if backend == "triton" and bias is not None:
            part = logits.sum(0, dtype=torch.float32)
            dbias = part if block.start == 0 else dbias + part
        products.mm(logits, weight, out=dhidden[block])
        if len(blocks) == 1:
            dweight = products.mm(logits.T, hidden[block])
        else:
            products.mm(logits.T, hidden[block], out=dweight, accumulate=True)
    return losses, correct, dhidden, dweight, dbias.to(hidden.dtype)


def _rows_triton(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    grad_scale: Tensor | None,
    losses: Tensor,
    correct: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    rows, vocab = logits.shape
    tuned = tuning.options("linear_cross_entropy.rows", logits.dtype, logits.device)
    launch(
        _rows_kernel, (rows,),
        logits, logits if bias is None else bias, labels,
        losses if grad_scale is None else grad_scale, losses, correct, vocab, logits.stride(0),
        ignore_index, label_smoothing, z_loss, HAS_BIAS=bias is not None,
        GRADIENT=grad_scale is not None,
        SCALE_BY_ROW=grad_scale is not None and grad_scale.dim() == 1, **tuned,
    )  # fmt: skip


def _rows_cpp(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    grad_scale: Tensor | None,
    losses: Tensor,
    correct: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    dbias: Tensor,
) -> None:
    """bias is float32; dbias, if it is not empty, gets the gradients' sums by column added."""
    dispatch._C.cross_entropy_rows(
        logits=logits,
        bias=bias,
        labels=labels,
        loss=losses,
        correct=correct,
        grad_scale=None if grad_scale is None else grad_scale.expand(labels.shape).contiguous(),
        dbias=dbias if dbias.numel() else None,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        threads=num_threads(),
    )


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, the count of right predictions, and with ``gradients_now`` the gradients of the
    loss; without, they are empty.
    """
    count = _count(labels, ignore_index) if reduction == "mean" else None
    one = torch.ones((), device=labels.device) if count is None else count.reciprocal()
    scale = one if gradients_now else None
    losses, correct, dhidden, dweight, dbias = _called(
        hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, scale, backend
    )
    if reduction != "none":
        losses = losses.sum() if count is None else losses.sum() / count
    return losses, correct.sum(), dhidden, dweight, dbias


@torch.library.custom_op("bertfast::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    dloss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = labels.shape if reduction == "none" else ()
    if dloss.shape != wanted:
        raise ValueError(f"dloss has shape {tuple(dloss.shape)}; it must be {tuple(wanted)}")
    check_device("dloss", dloss, "hidden", hidden)
    scale = dloss.float().contiguous()
    if reduction == "mean":
        scale = scale / _count(labels, ignore_index)
    return _called(
        hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, scale, backend
    )[2:]


def _called(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    scale: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`_rows` of arguments that no one has checked, in memory as it wants them."""
    if backend != "cpp":
        check_launch("linear_cross_entropy", backend, hidden)
        _check_tensors(hidden, weight, bias, labels, ignore_index)
    hidden, weight, labels = hidden.contiguous(), weight.contiguous(), labels.contiguous()
    bias = None if bias is None else bias.contiguous()
    # The products are of the dtype of hidden, whatever surrounds the call; the meta device knows no
    # autocast.
    kind = hidden.device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        return _rows(
            hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, scale, backend
        )


def _count(labels: Tensor, ignore_index: int) -> Tensor:
    """() int64, of the rows that count; 1 if there are none."""
    return (labels != ignore_index).sum().clamp(min=1)


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
    shape = hidden.shape[:1] if reduction == "none" else ()
    loss = hidden.new_empty(shape, dtype=torch.float32)
    correct = hidden.new_empty((), dtype=torch.int64)
    if not gradients_now:
        return loss, correct, hidden.new_empty(0), hidden.new_empty(0), hidden.new_empty(0)
    dbias = hidden.new_empty(0 if bias is None else weight.shape[0])
    return loss, correct, hidden.new_empty(hidden.shape), hidden.new_empty(weight.shape), dbias


@register_fake(_linear_cross_entropy_backward)
def _(
    dloss,
    hidden,
    weight,
    bias,
    labels,
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
    _, correct, *gradients = output
    ctx.options = (*options, backend)
    ctx.mark_non_differentiable(correct, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, labels, *gradients)


def _backward(ctx, dloss, *_):
    if dloss is None:
        return (None,) * 10
    *inputs, dhidden, dweight, dbias = ctx.saved_tensors
    backend = ctx.options[-1]
    # A real tensor, not a traced one. The host does not read a GPU's. On the meta device, where a
    # GPU's launches are recorded, there is nothing to read.
    real = type(dloss) is Tensor and (backend == "triton" or not dloss.is_meta)
    if not ctx.gradients_now:
        dhidden, dweight, dbias = _linear_cross_entropy_backward(dloss, *inputs, *ctx.options)
    elif real and (backend == "triton" or dloss.item() == 1.0):
        # The usual case is a gradient of one: hand the gradients over with no pass over a
        # vocabulary-sized tensor. The caller may now write into them, so that a second backward
        # through a retained graph makes its own; `data`, so that autograd lets it.
        ctx.gradients_now = False
        dhidden, dweight, dbias = dhidden.data, dweight.data, dbias.data
        if backend == "triton":
            _scale_in_place(dloss, (dhidden, dweight, dbias))
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
    gradients_now = differentiated and reduction != "none"
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
