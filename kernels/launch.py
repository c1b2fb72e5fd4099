"""The one place that every Triton kernel is launched from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What `launch` was called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


_record: Callable[[Launch], None] | None = None


@contextmanager
def recording(record: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, every launch is handed to ``record`` and not made, so that tensors may be on the meta
    device.
    """
    global _record
    before, _record = _record, record
    try:
        yield
    finally:
        _record = before


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """``kernel[grid](*arguments, **constants)`` on the device that its tensors are on, and on the
    stream that is current there: Triton itself takes those of the current device.

    Args:
        kernel: a function of `triton.jit`.
        grid: programs along each axis; the first may have 2**31 - 1, the others 65,535.
        arguments: the tensors may stand in tuples.
        constants: of the kernel, and launch options.
    """
    if _record is not None:
        _record(Launch(kernel, grid, arguments, constants))
        return
    device = next(_tensors(arguments)).device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants)


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)
