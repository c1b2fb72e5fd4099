"""Between the padded and the packed form: ``packed[t] = padded.flatten(0, 1)[rows[t]]``, and back
with zeros at the padding.

padded (sequences, positions, ...), rows (tokens,) int64, packed (tokens, ...), of any dtype. Each
is the other's backward, and both are the gather and the scatter of `gather_rows.py`. No two tokens
share a place, so neither adds and neither needs atomics.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_device, check_integers
from .gather_rows import _gather_rows, _scatter_rows, check_rows


def pack(padded: Tensor, rows: Tensor) -> Tensor:
    """The tokens of a padded batch, one after another.

    Args:
        padded: (sequences, positions, ...), any dtype and strides; floating point has a gradient.
        rows: (tokens,) int64, where each token stands in the flattened (sequences * positions)
            batch, no two alike. A batch is filled up to a fixed size with -1, which is slack
            (zeros, no gradient).

    Returns:
        (tokens, ...), of padded's dtype.

    Raises:
        TypeError: padded is no tensor, or rows not int64.
        ValueError: wrong shapes or devices; on the CPU a row out of range or used twice (on a GPU
            values are not read).
    """
    _check("padded", padded, ("sequences", "positions"), rows)
    backend = dispatch.select("pack", padded.device, padded.dtype)
    flat = padded.reshape(padded.shape[0] * padded.shape[1], prod(padded.shape[2:]))
    check_rows("rows", rows, "the padded batch", flat.shape[0], backend)
    out = (
        reference.gather_rows(flat, rows)
        if backend == "reference"
        else _gather_rows(flat, rows, backend)
    )
    return out.view(rows.shape[0], *padded.shape[2:])


def unpack(packed: Tensor, rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """A padded batch of the packed tokens, zeros where there is none.

    Args:
        packed: (tokens, ...), any dtype and strides; floating point has a gradient.
        rows: (tokens,) int64, as `pack` takes them.
        shape: (sequences, positions).

    Returns:
        (sequences, positions, ...), of packed's dtype.

    Raises:
        TypeError: packed is no tensor, or rows not int64.
        ValueError: wrong shapes or devices; on the CPU a row out of range or used twice (on a GPU
            values are not read).
    """
    _check("packed", packed, ("tokens",), rows)
    if packed.shape[0] != rows.shape[0]:
        raise ValueError(
            f"packed has {packed.shape[0]} tokens and rows {rows.shape[0]}; they must be the same"
        )
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"shape is {tuple(shape)}; it must be (sequences, positions)")
    backend = dispatch.select("unpack", packed.device, packed.dtype)
    count = shape[0] * shape[1]
    check_rows("rows", rows, "the padded batch", count, backend)
    flat = packed.reshape(packed.shape[0], prod(packed.shape[1:]))
    if backend == "reference":
        out = reference.scatter_rows(flat, rows, count)
    else:
        out = _scatter_rows(flat, rows, count, backend)
    return out.view(*shape, *packed.shape[1:])


def _check(name: str, x: Tensor, dims: tuple[str, ...], rows: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.dim() < len(dims):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be ({', '.join(dims)}, ...)")
    check_integers("rows", rows, ("tokens",), torch.int64)
    check_device("rows", rows, name, x)
