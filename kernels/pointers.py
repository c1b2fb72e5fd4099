"""Addresses of many tensors in one table on their device, so that one launch works on them all.

A table is made again only when an address changes, and sent from pinned memory, for which the host
does not wait. While a CUDA graph is captured no memory may be taken. What its table needs was laid
by earlier, when the same tensors, or others of their sizes, were worked on. It is kept for good,
since every replay reads it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .triton_compat import tl, triton

KEPT = 16  # tables, the last used


class Table(NamedTuple):
    """What `of` makes.

    Attributes:
        rows: (tensors, columns + 2 + values) int64: an address each, the number of elements, the
            first program, and the caller's values.
        programs: (programs,) int32, the row that each program works on.
        aligned: whether all addresses are multiples of 16.
    """

    rows: Tensor
    programs: Tensor
    aligned: bool


_tables: OrderedDict[Any, Table] = OrderedDict()
_programs: OrderedDict[Any, Tensor] = OrderedDict()
# Pinned memory and memory of a device, by it and their number of integers.
_laid_by: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}
_captured: list[tuple[Tensor, ...]] = []


@triton.jit
def pointer(place_ptr, like_ptr, ALIGNED: tl.constexpr):
    """The address that stands in a table, as a pointer of the type of another."""
    address = tl.load(place_ptr).to(like_ptr.dtype)
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


def of(columns: Sequence[Sequence[Tensor]], block: int, values: Sequence[int] = ()) -> Table:
    """The table of contiguous tensors on one device.

    Args:
        columns: lists of tensors; those at one place of each list have as many elements.
        block: elements that a program works on.
        values: an integer more for each row; empty for none.

    Raises:
        RuntimeError: a CUDA graph is being captured, and no call before had tensors of these sizes.
    """
    first, device = columns[0], columns[0][0].device
    sizes = tuple(x.numel() for x in first)
    addresses = [[x.data_ptr() for x in column] for column in columns]
    counts = [-(-size // block) for size in sizes]
    starts = [0, *accumulate(counts)][:-1]
    each = zip(*addresses, sizes, starts, *([values] if values else []), strict=True)
    numbers = array("q", [number for row in each for number in row])
    key = (device, numbers.tobytes())
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    place = (device, block, sizes)
    if place not in _programs:
        if capturing:
            _refuse()
        rows_of = array("i", [row for row, count in enumerate(counts) for _ in range(count)])
        programs = _pinned(_tensor(rows_of, torch.int32), device)
        _programs[place] = programs.to(device, non_blocking=True)
    host = _tensor(numbers, torch.int64)
    if capturing:
        if (device, len(numbers)) not in _laid_by:
            _refuse()
        pinned, sent = _laid_by.pop((device, len(numbers)))
        sent.copy_(pinned.copy_(host), non_blocking=True)
        _captured.append((pinned, sent, _programs[place]))
    else:
        pinned = _pinned(host, device)
        sent = pinned.to(device, non_blocking=True)
        if device.type == "cuda" and (device, len(numbers)) not in _laid_by:
            _laid_by[device, len(numbers)] = torch.empty_like(pinned).pin_memory(), sent.clone()
    aligned = all(address % 16 == 0 for column in addresses for address in column)
    _tables[key] = Table(sent.view(len(sizes), -1), _programs[place], aligned)
    for kept in (_tables, _programs):
        if len(kept) > KEPT:
            kept.popitem(last=False)
    return _tables[key]


def _tensor(numbers: array[int], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _pinned(host: Tensor, device: torch.device) -> Tensor:
    return host.pin_memory() if device.type == "cuda" else host


def _refuse() -> None:
    raise RuntimeError(
        "a CUDA graph is being captured, and no update of tensors of these sizes came before; "
        "make one update first"
    )
