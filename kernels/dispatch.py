"""Which backend runs an op, and why another could not.

A table, not a class tree: `reasons_against` lists why a backend cannot serve a call. The first
backend of `BACKENDS` with no reason against it takes the call. ``BERTFAST_BACKEND`` or
`use_backend` forces one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bertfast import openmp

from .triton_compat import HAS_TRITON, INTERPRETED

try:
    # torch comes first: its OpenMP runtime is then the one that the extension shares.
    from bertfast import _C as _extension

    NO_EXTENSION = ""
except ImportError as error:
    _extension = None
    NO_EXTENSION = f"the C++ extension bertfast._C is not built ({error})"

_C: Any = _extension
if _C is not None and openmp.switches():
    _C.set_pressure_file(openmp.PREPARED.pressure)


def _isa_error() -> str:
    try:
        if _C is not None:
            _C.capabilities()
    except ValueError as error:
        return f"BERTFAST_CPU_ISA: {error}"
    return ""


ISA_ERROR = _isa_error()
BACKENDS = ("triton", "cpp", "reference")
OPS = (
    "adamw",
    "add_layer_norm",
    "attention",
    "bias_gelu",
    "dropout",
    "embed",
    "gather_rows",
    "linear_cross_entropy",
    "mask_tokens",
    "pack",
    "rotary",
    "unpack",
)
ANY_DTYPE = (
    "gather_rows",
    "mask_tokens",
    "pack",
    "unpack",
)  # these move values or make ids, and compute with no float
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (16, 32, 48, 64, 80, 96, 128)
MINIMUM_CAPABILITY = (8, 0)


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""


def _checked(name: str | None, source: str) -> str | None:
    if name is not None and name not in BACKENDS:
        raise BackendError(f"{source} is {name!r}; it must be one of {', '.join(BACKENDS)}")
    return name


_forced: str | None = os.environ.get("BERTFAST_BACKEND") or None
_forced_by = "BERTFAST_BACKEND"


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Every op inside the ``with`` block runs on ``name`` ("triton", "cpp" or "reference"); None
    lets each op choose.

    The choice is process-wide, not per thread. A call that the backend cannot serve raises
    `BackendError`.
    """
    global _forced, _forced_by
    before = _forced, _forced_by
    _forced, _forced_by = _checked(name, "use_backend's argument"), "use_backend"
    try:
        yield
    finally:
        _forced, _forced_by = before


def reasons_against(
    backend: str, op: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None
) -> list[str]:
    """Why ``backend`` cannot serve ``op`` for such input; an empty list when it can."""
    if backend == "reference":
        return []
    reasons = []
    if backend == "triton":
        if not HAS_TRITON:
            reasons.append(
                "triton is not installed (pip install 'bertfast[gpu]')"
                if device.type == "cuda"
                else "triton is not installed, and only a GPU needs it"
            )
        elif device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < MINIMUM_CAPABILITY:
                reasons.append(
                    f"the GPU has compute capability {capability}, it takes {MINIMUM_CAPABILITY} "
                    "or newer"
                )
        # The meta device has shapes alone: launches there are recorded, or stay in fake kernels.
        elif not INTERPRETED and device.type != "meta":
            reasons.append(
                f"the input is on {device.type}, it takes cuda (or TRITON_INTERPRET=1 set before "
                "import, for tests)"
            )
    else:
        if device.type != "cpu":
            reasons.append(f"the input is on {device.type}, it takes cpu")
        if NO_EXTENSION or ISA_ERROR:
            reasons.append(NO_EXTENSION or ISA_ERROR)
    if dtype not in DTYPES and op not in ANY_DTYPE:
        reasons.append(
            f"the dtype is {dtype_name(dtype)}, it takes {', '.join(map(dtype_name, DTYPES))}"
        )
    if op == "attention" and head_dim is not None and head_dim not in HEAD_DIMS:
        reasons.append(f"the head size is {head_dim}, it takes {', '.join(map(str, HEAD_DIMS))}")
    return reasons


def select(op: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str:
    """The backend that takes this call.

    Raises:
        BackendError: a backend, or the C++ kernels' instruction set, is forced and cannot serve the
            call.
    """
    if _forced is not None:
        _checked(_forced, _forced_by)
        reasons = reasons_against(_forced, op, device, dtype, head_dim)
        if reasons:
            raise BackendError(
                f"{_forced_by} forces {_forced!r}, which cannot run {op} here: {'; '.join(reasons)}"
            )
        return _forced
    if ISA_ERROR and device.type == "cpu":
        raise BackendError(ISA_ERROR)
    for backend in BACKENDS:
        # The interpreter runs one program at a time in Python: right for tests, never a choice.
        if backend == "triton" and device.type != "cuda":
            continue
        if not reasons_against(backend, op, device, dtype, head_dim):
            return backend
    raise AssertionError("the reference backend serves every call")


def explain(
    op: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None
) -> tuple[str, dict[str, str]]:
    """The backend that takes the call, and for each other one why it is not taken."""
    taken = select(op, device, dtype, head_dim)
    others = {}
    for backend in BACKENDS:
        if backend == taken:
            continue
        reasons = reasons_against(backend, op, device, dtype, head_dim)
        if not reasons and _forced is not None:
            reasons = [f"{_forced_by} forces {taken}"]
        elif not reasons and backend == "triton":
            reasons = ["the interpreter is for tests: it runs only when forced"]
        others[backend] = "; ".join(reasons) or f"{taken} comes before it"
    return taken, others


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32: the name that messages and the C++ extension use."""
    return str(dtype).removeprefix("torch.")
