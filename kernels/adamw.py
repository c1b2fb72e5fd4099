"""AdamW over many tensors in one pass, on a GPU one launch, and the joint norm of their gradients.

For each float32 weight w with gradient g, first moment m and second moment v, all of one shape:

    g = gradient_scale g;   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
    w = (1 - lr weight_decay) w - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)

Gradients may be in lower precision than the weights. The same pass writes a bfloat16 copy of the
new weights, where one is wanted. Training in bfloat16 with float32 masters then reads each gradient
once and casts nothing. Clipping is the ``gradient_scale``, so it costs no pass either.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, pointers, reference, tuning
from .checks import check_device, check_launch, check_tensor, register_fake
from .launch import launch
from .pointers import pointer
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---


SQUARES_BLOCK, NORM_BLOCK = 4096, 4096  # elements of a program, and of its turn


@triton.jit
def _update(
    weight_ptr,
    gradient_ptr,
    mean_ptr,
    square_ptr,
    copy_ptr,
    rates_ptr,
    place,
    inside,
    beta1,
    beta2,
    eps,
    weight_decay,
    COPY: tl.constexpr,
):
    rate, correction1 = tl.load(rates_ptr), tl.load(rates_ptr + 1)
    correction2, scale = tl.load(rates_ptr + 2), tl.load(rates_ptr + 3)
    g = tl.load(gradient_ptr + place, inside).to(tl.float32) * scale
    m = tl.load(mean_ptr + place, inside) * beta1 + g * (1 - beta1)
    v = tl.load(square_ptr + place, inside) * beta2 + g * g * (1 - beta2)
    w = tl.load(weight_ptr + place, inside) * (1 - rate * weight_decay)
    w -= rate / correction1 * m / (tl.sqrt(v / correction2) + eps)
    tl.store(mean_ptr + place, m, inside)
    tl.store(square_ptr + place, v, inside)
    tl.store(weight_ptr + place, w, inside)
    if COPY:
        tl.store(copy_ptr + place, w.to(copy_ptr.dtype.element_ty), inside)


@triton.jit
def _adamw_kernel(
    table_ptr,
    programs_ptr,
    weight_ptr,
    gradient_ptr,
    copy_ptr,
    rates_ptr,
    beta1,
    beta2,
    eps,
    COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of one of the tensors in the table: weight, gradient, mean, square, copy, elements,
    first program, and the bits of the weight decay. The pointers are there for their types.
    """
    program = tl.program_id(0)
    row_ptr = table_ptr + tl.load(programs_ptr + program).to(tl.int64) * 8
    w_ptr = pointer(row_ptr, weight_ptr, ALIGNED)
    g_ptr = pointer(row_ptr + 1, gradient_ptr, ALIGNED)
    m_ptr = pointer(row_ptr + 2, weight_ptr, ALIGNED)
    v_ptr = pointer(row_ptr + 3, weight_ptr, ALIGNED)
    c_ptr = pointer(row_ptr + 4, copy_ptr, ALIGNED)
    n, first = tl.load(row_ptr + 5), tl.load(row_ptr + 6)
    decay = tl.load(row_ptr + 7).to(tl.int32).to(tl.float32, bitcast=True)
    place = (program - first) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    if (program - first + 1) * BLOCK <= n:  # without a mask four elements go at once
        _update(
            w_ptr, g_ptr, m_ptr, v_ptr, c_ptr, rates_ptr, place, None, beta1, beta2, eps, decay,
            COPY,
        )  # fmt: skip
    else:
        _update(
            w_ptr, g_ptr, m_ptr, v_ptr, c_ptr, rates_ptr, place, place < n, beta1, beta2, eps,
            decay, COPY,
        )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=("parts_ptr",))
def _squares_kernel(
    table_ptr, programs_ptr, gradient_ptr, parts_ptr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """The sum of squares of a block of one of the tensors in the table: gradient, elements, first
    program.
    """
    program = tl.program_id(0)
    row_ptr = table_ptr + tl.load(programs_ptr + program).to(tl.int64) * 3
    g_ptr = pointer(row_ptr, gradient_ptr, ALIGNED)
    n, first = tl.load(row_ptr + 1), tl.load(row_ptr + 2)
    place = (program - first) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    if (program - first + 1) * BLOCK <= n:
        g = tl.load(g_ptr + place).to(tl.float32)
        tl.store(parts_ptr + program, tl.sum(g * g, 0))
    else:
        g = tl.load(g_ptr + place, place < n, 0.0).to(tl.float32)
        tl.store(parts_ptr + program, tl.sum(g * g, 0))


@triton.jit(do_not_specialize=("count",))
def _norm_kernel(parts_ptr, norm_ptr, count, BLOCK: tl.constexpr):
    """The root of the sum of the parts, in one program and one order."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)  # (BLOCK,)
        total += tl.load(parts_ptr + place, place < count, 0.0).to(tl.float64)
    tl.store(norm_ptr, tl.sqrt(tl.sum(total, 0)).to(tl.float32))


# --- torch.library ---


# PyTorch 2.6 infers no schema from list[Tensor].
@torch.library.custom_op(
    "bertfast::adamw",
    mutates_args=("weights", "means", "squares", "copies"),
    schema=(
        "(Tensor(a0!)[] weights, Tensor[] gradients, Tensor(a2!)[] means, Tensor(a3!)[] squares, "
        "Tensor(a4!)[] copies, Tensor rates, float beta1, float beta2, float eps, "
        "float[] weight_decay, str backend) -> ()"
    ),
)
def _adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    copies: list[Tensor],
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: list[float],
    backend: str,
) -> None:
    """``rates`` (4,) float32: lr, 1 - beta1^step, 1 - beta2^step, gradient_scale; ``weight_decay``
    of each weight.
    """
    if len(weight_decay) != len(weights):
        raise ValueError(
            f"there are {len(weights)} weights and {len(weight_decay)} values of weight_decay; "
            "there must be as many"
        )
    gradients, rates = [g.contiguous() for g in gradients], rates.contiguous()
    if backend == "cpp":
        lr, correction1, correction2, gradient_scale = rates.tolist()
        lists = (weights, gradients, means, squares, copies)
        for decay in dict.fromkeys(weight_decay):
            own = [number for number, other in enumerate(weight_decay) if other == decay]
            w, g, m, v, c = ([one[i] for i in own] if one else one for one in lists)
            dispatch._C.adamw(
                weights=w,
                gradients=g,
                means=m,
                squares=v,
                copies=c,
                lr=lr,
                correction1=correction1,
                correction2=correction2,
                gradient_scale=gradient_scale,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=decay,
                threads=num_threads(),
            )
        return
    if not weights:
        return
    _check_launches(backend, weights, gradients, means, squares, copies, rates)
    tuned = tuning.options("adamw.update", gradients[0].dtype, gradients[0].device)
    bits = [int.from_bytes(struct.pack("<f", decay), "little") for decay in weight_decay]
    columns = (weights, gradients, means, squares, copies or weights)
    table = pointers.of(columns, tuned["BLOCK"], bits)
    if table.programs.numel():
        launch(
            _adamw_kernel, (table.programs.numel(),),
            table.rows, table.programs, weights[0], gradients[0], (copies or weights)[0], rates,
            beta1, beta2, eps, COPY=bool(copies), ALIGNED=table.aligned, **tuned,
        )  # fmt: skip


def _check_launches(
    backend: str,
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    copies: list[Tensor],
    rates: Tensor,
) -> None:
    check_launch("adamw", backend, weights[0], rates=(rates, torch.float32, (4,)))
    # The gradients come contiguous.
    updated = [weights, means, squares, *([copies] if copies else [])]
    for tensors in (*updated, gradients):
        if len(tensors) != len(weights):
            raise ValueError(
                f"there are {len(weights)} weights and {len(tensors)} of another list; "
                "there must be as many"
            )
        for x, w in zip(tensors, weights, strict=True):
            if x.numel() != w.numel() or x.device != weights[0].device:
                raise ValueError(
                    f"a tensor of {x.numel()} elements on {x.device} goes with a weight of "
                    f"{w.numel()} on {w.device}; they must be the same"
                )
    if not all(x.is_contiguous() for tensors in updated for x in tensors):
        raise ValueError("what is updated in place must be contiguous")
    if any(x.dtype != torch.float32 for tensors in updated[:3] for x in tensors):
        raise TypeError("weights, means and squares must be torch.float32")
    if any(len({x.dtype for x in tensors}) > 1 for tensors in (gradients, copies)):
        raise TypeError("gradients must be of one dtype, and copies too")


@register_fake(_adamw)
def _(weights, gradients, means, squares, copies, rates, beta1, beta2, eps, weight_decay, backend):
    return None


@torch.library.custom_op(
    "bertfast::gradient_norm", mutates_args=(), schema="(Tensor[] gradients, str backend) -> Tensor"
)
def _gradient_norm(gradients: list[Tensor], backend: str) -> Tensor:
    if not gradients:
        raise ValueError("there are no gradients; there must be one at least")
    gradients = [gradient.contiguous() for gradient in gradients]
    if backend == "cpp":
        total = dispatch._C.sum_of_squares(gradients=gradients, threads=num_threads())
        return torch.full((), total, dtype=torch.float64).sqrt().float()
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        check_tensor("a gradient", gradient)
        check_launch("adamw", backend, gradient)
        check_device("a gradient", gradient, "the first", gradients[0])
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    tables = [pointers.of((same,), SQUARES_BLOCK) for same in by_dtype.values()]
    count = sum(table.programs.numel() for table in tables)
    parts = gradients[0].new_empty(count, dtype=torch.float32)
    rest = parts
    for same, table in zip(by_dtype.values(), tables, strict=True):
        if programs := table.programs.numel():
            launch(
                _squares_kernel, (programs,),
                table.rows, table.programs, same[0], rest, ALIGNED=table.aligned,
                BLOCK=SQUARES_BLOCK, num_warps=8,
            )  # fmt: skip
            rest = rest[programs:]
    norm = parts.new_empty(())
    launch(_norm_kernel, (1,), parts, norm, count, BLOCK=NORM_BLOCK, num_warps=16)
    return norm


@register_fake(_gradient_norm)
def _(gradients, backend):
    return gradients[0].new_empty((), dtype=torch.float32)


def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    copies: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float | Sequence[float] = 0.0,
    gradient_scale: float | Tensor = 1.0,
) -> None:
    """One AdamW step, in place on ``weights``, ``means`` and ``squares``; ``copies`` get the new
    weights.

    Args:
        weights, means, squares: float32, contiguous, of one shape each by each.
        gradients: of the weights' shapes and of one dtype, float32 or lower.
        copies: contiguous, of the weights' shapes and of one lower dtype; empty for none.
        lr: the learning rate.
        step: how many steps this makes, from 1. A tensor on the weights' device is not read by the
            host, and neither are lr and gradient_scale as tensors. A CUDA graph can then replay the
            call.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled; of all weights, or of each.
        gradient_scale: what the gradients are multiplied by first, as for clipping.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: shapes, devices or options that do not fit.
        BackendError: the forced backend cannot serve the call.
    """
    _check_lists(weights, gradients, means, squares, copies)
    if not (0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0):
        raise ValueError(f"betas are {betas}; each must be at least 0 and below 1")
    if isinstance(weight_decay, Sequence):
        decays = list(weight_decay)
    else:
        decays = [weight_decay] * len(weights)
    if len(decays) != len(weights):
        raise ValueError(
            f"weight_decay has {len(decays)} values and there are {len(weights)} weights; "
            "there must be as many, or one for all"
        )
    if not eps >= 0 or not all(decay >= 0 for decay in decays):
        raise ValueError(f"eps is {eps} and weight_decay {weight_decay}; both must be at least 0")
    if not isinstance(step, Tensor) and step < 1:
        raise ValueError(f"step is {step}; the first is 1")
    if not weights:
        return
    device = weights[0].device
    age = (
        step.double() if isinstance(step, Tensor) else step
    )  # the powers are near 1: in float32 little of 1 less one would be left
    rates = [lr, 1 - betas[0] ** age, 1 - betas[1] ** age, gradient_scale]
    # No number is copied from the host, which a GPU's queue would wait for and a CUDA graph cannot
    # hold.
    packed = torch.stack(
        [
            x.float().reshape(())
            if isinstance(x, Tensor)
            else torch.full((), x, dtype=torch.float32, device=device)
            for x in rates
        ]
    )
    backend = dispatch.select("adamw", device, gradients[0].dtype)
    lists = [list(tensors) for tensors in (weights, gradients, means, squares, copies)]
    with torch.no_grad():
        if backend == "reference":
            reference.adamw(*lists, rates=packed, betas=betas, eps=eps, weight_decay=decays)
        else:
            _adamw(*lists, packed, *betas, eps, decays, backend)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The joint Euclidean norm of floating tensors on one device, () float32; its sums are kept
    wide, and it is the same each time.
    """
    for number, gradient in enumerate(gradients):
        check_tensor(f"gradients[{number}]", gradient)
    if not gradients:
        return torch.zeros(())
    gradients = [gradient.detach() for gradient in gradients]
    device, dtype = gradients[0].device, gradients[0].dtype
    backend = dispatch.select("adamw", device, dtype)
    mixed = any(gradient.dtype != dtype for gradient in gradients)
    if backend == "triton" or (backend == "cpp" and not mixed):
        norm: Tensor = _gradient_norm(gradients, backend)
        return norm
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(list(norms)).norm()


def _check_lists(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    copies: Sequence[Tensor],
) -> None:
    lists = {
        "weights": weights,
        "gradients": gradients,
        "means": means,
        "squares": squares,
        "copies": copies,
    }
    for name, tensors in lists.items():
        if len(tensors) != len(weights) and not (name == "copies" and not tensors):
            raise ValueError(
                f"there are {len(tensors)} {name} and {len(weights)} weights; there must be as many"
            )
        for number, tensor in enumerate(tensors):
            label = f"{name}[{number}]"
            check_tensor(label, tensor)
            check_device(label, tensor, "weights[0]", weights[0])
            if tensor.shape != weights[number].shape:
                raise ValueError(
                    f"{label} has shape {tuple(tensor.shape)} and weights[{number}] "
                    f"{tuple(weights[number].shape)}; they must be the same"
                )
            wanted = tensors[0].dtype if name in ("gradients", "copies") else torch.float32
            if tensor.dtype != wanted:
                raise TypeError(f"{label} is {tensor.dtype}; it must be {wanted}")
            if name == "copies" and tensor.dtype != torch.bfloat16:
                raise TypeError(f"{label} is {tensor.dtype}; it must be torch.bfloat16")
            if name != "gradients" and not tensor.is_contiguous():
                raise ValueError(
                    f"{label} is not contiguous; it is updated in place, so it must be"
                )
