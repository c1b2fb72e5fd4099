"""Argument checks that the ops share: each error says what came, what is wanted, and what to do."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .dispatch import BackendError
from .philox import LANE_RANGE


def check_tensor(name: str, x: object, dims: tuple[str, ...] | None = None) -> None:
    """Raises TypeError unless ``x`` is a floating-point tensor, ValueError unless it has the
    dimensions ``dims``, if given.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}; it must be a floating-point tensor")
    if dims is not None:
        check_dims(name, x, dims)


def check_dims(name: str, x: Tensor, dims: tuple[str, ...]) -> None:
    """Raises ValueError unless ``x`` has the dimensions ``dims``."""
    if x.dim() != len(dims):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be ({', '.join(dims)})")


def check_integers(name: str, x: object, dims: tuple[str, ...], dtype: torch.dtype) -> None:
    """Raises TypeError unless ``x`` is a tensor of ``dtype``, ValueError unless it has the
    dimensions ``dims``.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.dtype != dtype:
        raise TypeError(f"{name} is {x.dtype}; it must be {dtype} (use .to({dtype}))")
    check_dims(name, x, dims)


def as_int(name: str, value: Any) -> int:
    """``value`` as an int; numpy's integers and a traced size are ints too.

    Raises:
        TypeError: it is a bool, a float, or no number.
    """
    if isinstance(value, torch.SymInt):
        # Its index would be a constant of the graph.
        return value  # type: ignore[return-value]
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} is a {type(value).__name__}; it must be an int")


Wanted = tuple[Tensor | None, torch.dtype, tuple[int, ...]]


def check_launch(op: str, backend: str, x: Tensor, **others: Wanted) -> None:
    """Raises unless a Triton kernel, which checks nothing itself, may follow these pointers: a call
    of a private op can bring anything. The C++ extension makes its own checks.

    Args:
        op: as in `dispatch.OPS`.
        backend: as the private op was given it.
        x: the op's first tensor, whose dtype and device Triton must serve.
        others: by name, a tensor (None: absent), the dtype and the shape that it must have.

    Raises:
        BackendError: Triton cannot serve the call, or ``backend`` is another one.
        TypeError: a dtype that does not fit.
        ValueError: a shape or device that does not fit.
    """
    if backend != "triton":
        raise BackendError(f"backend is {backend!r}; {op} takes 'cpp' or 'triton' here")
    head_dim = x.shape[2] if op == "attention" else None
    if reasons := dispatch.reasons_against("triton", op, x.device, x.dtype, head_dim):
        raise BackendError(f"triton cannot run {op} here: {'; '.join(reasons)}")
    for name, (tensor, dtype, shape) in others.items():
        if tensor is None:
            continue
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {x.device}")


def register_fake(op: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that makes a function the fake kernel of a custom op.

    A call with any tensor on the meta device goes to the fake kernel, which makes memory that
    nothing fills. So the fake kernel raises ValueError unless all tensors of such a call are on one
    device.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fake)
        def checked(*arguments: Any, **options: Any) -> Any:
            values = [*arguments, *options.values()]
            lists = [value if isinstance(value, (list, tuple)) else [value] for value in values]
            devices = {str(x.device) for one in lists for x in one if isinstance(x, Tensor)}
            if len(devices) > 1:
                raise ValueError(
                    f"the tensors are on {' and '.join(sorted(devices))}; move them to one device"
                )
            return fake(*arguments, **options)

        op.register_fake(checked)
        return fake

    return register


def check_dropout(threshold: int, seed: Tensor, x: Tensor, lane_range: int = LANE_RANGE) -> None:
    """Raises TypeError or ValueError unless a kernel can load ``seed`` beside ``x``, and the
    threshold is one of lanes of that range.
    """
    if not 0 <= threshold < lane_range:
        raise ValueError(f"threshold is {threshold}; it must be from 0 to {lane_range - 1}")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(
            f"seed is a {seed.dtype} tensor of shape {tuple(seed.shape)}; "
            "it must be int64 with one element"
        )
    check_device("seed", seed, "the input", x)


def check_range(name: str, x: Tensor, low: int, high: int) -> None:
    """Raises ValueError unless every value is from ``low`` to ``high``; values on a GPU are not
    read.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() == 0:
        return
    least, most = (int(value) for value in x.aminmax())
    if least < low or most > high:
        raise ValueError(
            f"{name} holds {least if least < low else most}; it must be from {low} to {high}"
        )


def check_ids(name: str, ids: Tensor, owner: str, rows: int) -> None:
    """Raises ValueError unless every value is one of the ``rows`` rows of ``owner``; values on a
    GPU are not read.
    """
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= rows:
        raise ValueError(
            f"{name} holds {low if low < 0 else high}; {owner} has {rows} rows, "
            f"so it must be from 0 to {rows - 1}"
        )


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless ``x`` has the dtype (TypeError) and the device (ValueError) of ``other``."""
    if x.dtype != other.dtype:
        raise TypeError(
            f"{name} is {x.dtype} and {other_name} {other.dtype}; cast one to the other"
        )
    check_device(name, x, other_name, other)


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless ``x`` is on the device of ``other``."""
    if x.device != other.device:
        raise ValueError(
            f"{name} is on {x.device} and {other_name} on {other.device}; move one to the other"
        )


def check_boundaries(cu_seqlens: Tensor, rows: Tensor) -> None:
    """Raises TypeError or ValueError unless a kernel can cut the ``rows`` at ``cu_seqlens``; values
    on a GPU are not read.
    """
    check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
    check_device("cu_seqlens", cu_seqlens, "the tokens", rows)
    check_cu_seqlens(cu_seqlens, rows.shape[0], rows.shape[0])


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
    """Raises ValueError unless the boundaries start at 0, never fall, stay within ``tokens``, and
    fit ``max_seqlen``.

    Only values on the CPU are read: on a GPU that would stall the queue, and the caller's
    boundaries are trusted.
    """
    if cu_seqlens.shape[0] < 1:
        raise ValueError("cu_seqlens is empty; it must hold 0 and then the end of each sequence")
    if torch.compiler.is_compiling() or cu_seqlens.device.type != "cpu":
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens starts with {bounds[0]}; it must start with 0")
    for start, end in pairwise(bounds):
        if end < start:
            raise ValueError(f"cu_seqlens falls from {start} to {end}; it must never fall")
        if end - start > max_seqlen:
            raise ValueError(
                f"a sequence has {end - start} tokens and max_seqlen is {max_seqlen}; "
                "raise max_seqlen"
            )
    if bounds[-1] > tokens:
        raise ValueError(
            f"cu_seqlens ends at {bounds[-1]} and there are {tokens} tokens; "
            "it must not go beyond them"
        )


def check_norm(weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
    """Raises TypeError or ValueError unless a norm's parameters fit the rows of x."""
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        check_tensor(name, parameter, ("hidden",))
        check_device(name, parameter, "x", x)
        if parameter.shape[0] != x.shape[-1]:
            raise ValueError(
                f"{name} has {parameter.shape[0]} entries and x {x.shape[-1]} columns; "
                "they must be the same"
            )
    if bias is not None:
        check_like("bias", bias, "weight", weight)
