"""The MLM head's loss: cross-entropy of ``logits = hidden Wᵀ + bias`` against ``labels``, logits never whole in memory.

hidden (masked, hidden), weight (vocab, hidden), bias (vocab,), labels (masked,). For row m with logsumexp l and smoothing s,

    loss_m = (1 - s) (l - logits[m, label]) + s (l - mean(logits[m])) + z_loss l²

On a GPU the product and the online softmax are one Triton kernel, and the backward makes the logits again, a block of rows at a time. On
a CPU a block of rows goes through torch's matrix product, then one pass of C++ turns its logits into loss and gradient in place; when a
gradient will be wanted it is made there and then, so that the logits are computed once.

Sources: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", section 4; Szegedy et al., "Rethinking the Inception
Architecture", section 7 (smoothing); Chowdhery et al., "PaLM", section 5 (z-loss).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_device, check_integers, check_like, check_tensor

REDUCTIONS = ("mean", "sum", "none")
# A block of logits on the CPU: large enough for the matrix product's full rate, small beside the weights.
BLOCK_BYTES = 32 << 20


# --- C++ ---


def _blocks(rows: int, vocab: int, element_size: int) -> list[slice]:
    """Slices of at most BLOCK_BYTES of logits, of nearly even height."""
    count = -(-rows * vocab * element_size // BLOCK_BYTES)
    height = -(-rows // max(count, 1))
    return [slice(start, min(start + height, rows)) for start in range(0, rows, max(height, 1))]


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
    """Losses, logsumexps and correctness by row, and the gradients of sum(grad_scale * losses) when ``grad_scale`` is given."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    losses, lse = torch.empty(rows), torch.empty(rows)
    correct = torch.empty(rows, dtype=torch.uint8)
    bias_f32 = None if bias is None else bias.float().contiguous()
    wanted = grad_scale is not None
    dhidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    # Sums over blocks stay in float32; with a single block the product itself is the sum.
    blocks = _blocks(rows, vocab, hidden.element_size())
    dweight = torch.zeros(0)
    dbias = torch.zeros(vocab if wanted and bias is not None else 0)
    for number, block in enumerate(blocks):
        logits = hidden[block] @ weight.T
        dispatch._C.cross_entropy_rows(
            dispatch.dtype_name(hidden.dtype),
            logits.data_ptr(),
            0 if bias_f32 is None else bias_f32.data_ptr(),
            labels[block].data_ptr(),
            losses[block].data_ptr(),
            lse[block].data_ptr(),
            correct[block].data_ptr(),
            logits.shape[0],
            vocab,
            ignore_index,
            label_smoothing,
            z_loss,
            0 if grad_scale is None else grad_scale[block].data_ptr(),
            dbias.data_ptr() if dbias.numel() else 0,
            torch.get_num_threads(),
        )
        if not wanted:
            continue
        torch.mm(logits, weight, out=dhidden[block])
        if number == 0:
            dweight = logits.T @ hidden[block]
            dweight = dweight.float() if len(blocks) > 1 else dweight
        elif hidden.dtype == torch.float32:
            dweight.addmm_(logits.T, hidden[block])
        else:
            dweight += logits.T @ hidden[block]
    if wanted and not blocks:
        dweight = torch.zeros(weight.shape)
    return losses, lse, correct, dhidden, dweight.to(weight.dtype), dbias.to(hidden.dtype)


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
    if backend == "cpp":
        grad_scale = _grad_scale(None, labels, ignore_index, reduction) if gradients_now else None
        losses, lse, correct, dhidden, dweight, dbias = _rows_cpp(
            hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, grad_scale
        )
    else:
        losses, lse, correct = _forward_triton(hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss)
        dhidden, dweight, dbias = (hidden.new_empty(0) for _ in range(3))
    return _reduce(losses, labels, ignore_index, reduction), correct.sum(), lse, dhidden, dweight, dbias


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
    grad_scale = _grad_scale(dloss, labels, ignore_index, reduction)
    if backend == "cpp":
        return _rows_cpp(hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, grad_scale)[3:]
    return _backward_triton(hidden, weight, bias, labels, lse, grad_scale, ignore_index, label_smoothing, z_loss)


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


@_linear_cross_entropy.register_fake
def _(hidden, weight, bias, labels, ignore_index, label_smoothing, z_loss, reduction, gradients_now, backend):  # type: ignore[no-untyped-def]
    rows, f32 = hidden.shape[0], torch.float32
    loss = hidden.new_empty(rows if reduction == "none" else (), dtype=f32)
    correct, lse = hidden.new_empty((), dtype=torch.int64), hidden.new_empty(rows, dtype=f32)
    if not gradients_now:
        return loss, correct, lse, hidden.new_empty(0), hidden.new_empty(0), hidden.new_empty(0)
    dbias = hidden.new_empty(0 if bias is None else weight.shape[0])
    return loss, correct, lse, hidden.new_empty(hidden.shape), hidden.new_empty(weight.shape), dbias


@_linear_cross_entropy_backward.register_fake
def _(dloss, hidden, weight, bias, labels, lse, ignore_index, label_smoothing, z_loss, reduction, backend):  # type: ignore[no-untyped-def]
    dbias = hidden.new_empty(0 if bias is None else weight.shape[0])
    return hidden.new_empty(hidden.shape), hidden.new_empty(weight.shape), dbias


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, weight, bias, labels, *options, ctx.gradients_now, backend = inputs
    _, correct, lse, *gradients = output
    ctx.options = (*options, backend)
    ctx.mark_non_differentiable(correct, lse, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, labels, lse, *gradients)


def _backward(ctx, dloss, *_):  # type: ignore[no-untyped-def]
    if dloss is None:
        return (None,) * 10
    *inputs, dhidden, dweight, dbias = ctx.saved_tensors
    if not ctx.gradients_now:
        dhidden, dweight, dbias = _linear_cross_entropy_backward(dloss, *inputs, *ctx.options)
    elif (
        type(dloss) is Tensor and dloss.device.type == "cpu" and dloss.item() == 1.0
    ):  # a real tensor, not a traced one
        # The usual case: hand the gradients over with no pass over a vocabulary-sized tensor. The caller may now write
        # into them, so that a second backward through a retained graph makes its own.
        ctx.gradients_now = False
    else:
        dhidden, dweight, dbias = (gradient * dloss.to(gradient.dtype) for gradient in (dhidden, dweight, dbias))
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
    """Cross-entropy of ``hidden @ weight.T + bias`` against ``labels``, and how many rows it predicts correctly.

    Args:
        hidden: (masked, hidden), floating point.
        weight: (vocab, hidden), hidden's dtype; BERT ties it to the word embeddings.
        bias: (vocab,) of hidden's dtype, or None.
        labels: (masked,) int64, each in [0, vocab) or ``ignore_index``.
        ignore_index: the label of rows that count for nothing.
        label_smoothing: in [0, 1], as in `torch.nn.functional.cross_entropy`.
        z_loss: at least 0, the weight of the squared logsumexp.
        reduction: "mean" over the rows that count (0 if there are none), "sum", or "none" for the loss of each row.

    Returns:
        The loss, float32 (float64 for float64 input), () or (masked,); and the count of rows whose largest logit is the label's, int64 ().

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or option that does not fit; on the CPU a label out of range (on a GPU values are not read).
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("hidden", hidden, ("masked", "hidden"))
    check_tensor("weight", weight, ("vocab", "hidden"))
    check_like("weight", weight, "hidden", hidden)
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} columns and hidden {hidden.shape[1]}; they must be the same")
    if weight.shape[0] == 0:
        raise ValueError("weight has no rows; the vocabulary must have at least one entry")
    if bias is not None:
        check_tensor("bias", bias, ("vocab",))
        check_like("bias", bias, "hidden", hidden)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(
                f"bias has {bias.shape[0]} entries and weight {weight.shape[0]} rows; they must be the same"
            )
    check_integers("labels", labels, ("masked",), torch.int64)
    check_device("labels", labels, "hidden", hidden)
    if labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"there are {labels.shape[0]} labels and {hidden.shape[0]} rows of hidden; they must be the same"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss is {z_loss}; it must be at least 0 and finite")
    if not torch.compiler.is_compiling() and labels.device.type == "cpu":
        _check_labels(labels, weight.shape[0], ignore_index)
    backend = dispatch.select("linear_cross_entropy", hidden.device, hidden.dtype)
    options = (ignore_index, label_smoothing, z_loss, reduction)
    if backend == "reference":
        return reference.linear_cross_entropy(hidden, weight, bias, labels, *options)
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    gradients_now = backend == "cpp" and differentiated and reduction != "none"
    return _linear_cross_entropy(hidden, weight, bias, labels, *options, gradients_now, backend)[:2]


def _check_labels(labels: Tensor, vocab: int, ignore_index: int) -> None:
    wrong = ((labels < 0) | (labels >= vocab)) & (labels != ignore_index)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels[{row}] is {int(labels[row])}; it must be from 0 to {vocab - 1}, or {ignore_index} to be ignored"
        )
