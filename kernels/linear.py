"""Dense layers, x Wᵀ + b, and several layers of one input as one product.

On a CPU they go to the library and the dtype that are the fastest there.

`products` says which; the rest (other devices and dtypes, small products) is left to
`torch.nn.functional.linear`. `torch.compile` is given plain PyTorch to trace, widened in plain
sight where `products` would widen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import products


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str | None = None
) -> Tensor:
    """x (..., in) and weight (out, in) to x weightᵀ + bias (..., out).

    Args:
        x: the input.
        weight: of the layer.
        bias: (out,), or None.
        gelu: "none" (exact) or "tanh", a GELU of the result; `can_fuse_gelu` says when it may be
            asked for.
    """
    if gelu is not None:
        return _dense(x, weight, bias, gelu)
    if x.is_cpu and torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        if products.NATIVE.get(lower, True) or torch.float64 in (x.dtype, weight.dtype):
            return F.linear(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return linear(x.to(lower), weight.to(lower), None if bias is None else bias.to(lower))
    widens = products.widens(x) and weight.dtype == x.dtype
    if torch.compiler.is_compiling() or (widens and not products.is_plain(x, weight, bias)):
        if not widens:
            return F.linear(x, weight, bias)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(
            x.dtype
        )
    if not widens and not _goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _differentiable(x, weight, bias)


def can_fuse_gelu(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` of these does a GELU on its way: without gradients, which want what the GELU
    had, where oneDNN serves.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _goes_to_onednn(x, weight)
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def _goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    return products.by_onednn(x, weight, x.numel() * weight.shape[0])


# The parameters' packed forms, by where a parameter lies, within `constant_weights`.
_packed: ContextVar[dict[int, Tensor] | None] = ContextVar("packed", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within it no parameter changes, so that `linear` brings each once, and not at every call,
    into the form that oneDNN multiplies by.

    For inference over some ten thousand rows, which it takes to be worth it; the packed copies are
    as large as the parameters.
    """
    token = _packed.set({})
    try:
        yield
    finally:
        _packed.reset(token)


# Functions of PyTorch that multiply, but for `F.linear`, which is `linear`.
_MULTIPLY = {
    torch.addmm, torch.baddbmm, torch.bmm, torch.einsum, torch.matmul, torch.mm, Tensor.__matmul__,
    Tensor.__rmatmul__, Tensor.addmm, Tensor.baddbmm, Tensor.bmm, Tensor.matmul, Tensor.mm,
    F.conv1d,
}  # fmt: skip
# Whether they are routed already.
_routed: ContextVar[bool] = ContextVar("routed", default=False)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _Routes(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and args:
            return linear(*args, **kwargs)
        if function in _MULTIPLY and "out" not in kwargs:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if products.widens(*given):
                wide = [x.float() if isinstance(x, Tensor) else x for x in args]
                named = {
                    name: x.float() if isinstance(x, Tensor) else x for name, x in kwargs.items()
                }
                return function(*wide, **named).to(given[0].dtype)
        return function(*args, **kwargs)


@contextmanager
def widened_products(like: Tensor | None) -> Iterator[None]:
    """Widens PyTorch's own products too, where this CPU does not multiply their dtype. Those are of
    layers that are not ours, of a head or an adapter.

    Args:
        like: an input or a parameter of such layers, None where there is none. Nothing changes on
            another device, or for a dtype that the CPU multiplies.
    """
    if _is_traced() or like is None or not like.is_cpu or _routed.get():
        yield
        return
    autocast = torch.is_autocast_enabled("cpu")
    if products.NATIVE.get(torch.get_autocast_dtype("cpu") if autocast else like.dtype, True):
        yield
        return
    token = _routed.set(True)
    try:
        with _Routes():
            yield
    finally:
        _routed.reset(token)


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _dense(x, weight, bias)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """Without gradients, by oneDNN or widened."""
    if products.widens(x):
        if x.dim() == 2:
            return products.mm(x, weight.t(), bias)
        rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
        return products.mm(rows, weight.t(), bias).view(*x.shape[:-1], weight.shape[0])
    packed = _packed.get()
    if packed is not None and isinstance(weight, nn.Parameter):
        place = weight.data_ptr()
        if place not in packed:
            packed[place] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        weight = packed[place]
    kind = "none" if gelu is None else "gelu"
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], gelu or "")
    return result


@torch.no_grad()
def lay_together(parameters: Sequence[nn.Parameter]) -> None:
    """Moves parameters of one dtype, device and width into one buffer, one after another along
    their first dimension, for `together`. Each stays a contiguous tensor of its own shape;
    whatever gives it other memory (``to``, a copy) ends the arrangement, and nothing else.
    """
    parts = torch.cat([parameter.detach() for parameter in parameters]).split(
        [len(parameter) for parameter in parameters]
    )
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part


def together(parameters: Sequence[Tensor]) -> Tensor | None:
    """Parameters that `lay_together` put into one buffer as the one tensor that they are, with
    gradients; None for others.
    """
    if torch.compiler.is_compiling() or not products.is_plain(*parameters):
        return None
    first = parameters[0]
    storage, place = first.untyped_storage(), first.storage_offset()
    if storage.nbytes() == first.nbytes:
        return None
    for x in parameters:
        if x.storage_offset() != place or x.untyped_storage()._cdata != storage._cdata:
            return None
        if x.shape[1:] != first.shape[1:] or not x.is_contiguous():
            return None
        place += x.numel()
    whole: Tensor = _Together.apply(*parameters)
    return whole


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.sizes, first = [len(x) for x in parameters], parameters[0]
        shape = (sum(ctx.sizes), *first.shape[1:])
        place = (first.untyped_storage(), first.storage_offset(), shape, first.stride())
        return first.new_empty(0).set_(*place)

    @staticmethod
    def backward(ctx: Any, dwhole: Tensor) -> tuple[Tensor, ...]:
        return dwhole.split(ctx.sizes)


class _Unbind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind(1)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> Tensor:
        first = douts[0]
        storage, step = first.untyped_storage()._cdata, first[0].numel() if len(first) else 0
        for number, dout in enumerate(douts):
            apart = (
                dout.untyped_storage()._cdata != storage
                or dout.storage_offset() != first.storage_offset() + number * step
                or dout.stride() != (len(douts) * step, *first.stride()[1:])
                or not dout[:1].is_contiguous()
            )
            if apart:
                return torch.stack(douts, 1)
        shape = (len(first), len(douts), *first.shape[1:])
        return first.as_strided(shape, (len(douts) * step, step, *first.stride()[1:]))


def unbind(x: Tensor) -> tuple[Tensor, ...]:
    """``x.unbind(1)`` of x (tokens, parts, ...). The gradients of the parts are taken without a
    copy where they are the parts of one tensor of x's shape already.
    """
    parts: tuple[Tensor, ...]
    if torch.compiler.is_compiling() or not products.is_plain(x):
        parts = x.unbind(1)
    else:
        parts = _Unbind.apply(x)
    return parts


def linear_beside(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`linear` of x, and x for a residual beside it, whose gradient the product's backward is then
    added to: no pass adds the two.

    The gradient of that residual is written into. So it must be no one else's: the caller sees to
    it that what follows is a norm of ours, with nothing hooked to it.
    """
    alone = (
        x.is_cpu
        or torch.compiler.is_compiling()
        or (not x.is_meta and torch.is_autocast_enabled(x.device.type))
        or not products.is_plain(x, weight, bias)
        or not (torch.is_grad_enabled() and x.requires_grad)
    )
    if alone:
        return linear(x, weight, bias), x
    y, kept = _Beside.apply(x, weight, bias)
    return y, kept


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return F.linear(x, weight, bias), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if dy is None:
            return dkept, None, None
        _, dweight, dbias = ctx.needs_input_grad
        if dkept is None:
            dx = dy @ weight
        elif torch.is_grad_enabled() or not dkept.is_contiguous():  # a second derivative is wanted
            dx = torch.addmm(dkept, dy, weight)
        else:
            dx = dkept.addmm_(dy, weight)
        return dx, dy.t() @ x if dweight else None, dy.sum(0) if dbias else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _dense(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweight, dbias = ctx.needs_input_grad
        rows, inputs = (t.flatten(0, -2) if t.dim() > 1 else t[None] for t in (dout, x))
        return (
            _differentiable(dout, weight.t()) if dx else None,
            _differentiable(rows.t(), inputs.t()) if dweight else None,
            rows.sum(0) if dbias else None,
        )
