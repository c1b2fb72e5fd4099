"""Vectors in a byte or a bit a number, as sentence-transformers makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast.errors import BertfastError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: str) -> None:
    """Raises BertfastError for none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise BertfastError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )


def ranges_of(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """(2, width): the least and the greatest of each column.

    Raises:
        BertfastError: fewer than two vectors.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise BertfastError(
            f"vectors have shape {vectors.shape}; ranges are of two vectors at least"
        )
    return np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32)


def quantize(
    vectors: NDArray[Any], precision: str, ranges: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Vectors in another precision.

    int8 and uint8 cut each column's range into 256 steps; binary and ubinary keep whether a number
    is above 0, eight to a byte.

    Args:
        vectors: (rows, width) of real numbers.
        precision: of `PRECISIONS`.
        ranges: (2, width), of int8 and uint8; None is `ranges_of` the vectors.

    Raises:
        BertfastError: an unknown precision, ranges of another shape, or none for a single vector.
    """
    check_precision(precision)
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if not len(vectors):
        return vectors.astype(np.int8 if precision == "int8" else np.uint8)
    low, steps = _steps(ranges_of(vectors) if ranges is None else ranges, vectors.shape[-1])
    numbers = np.floor((vectors - low) / steps).clip(0, 255)
    if precision == "uint8":
        return numbers.astype(np.uint8)
    return (numbers - 128).astype(np.int8)


def dequantize(
    vectors: NDArray[Any], precision: str, width: int, ranges: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """About the numbers that were quantised: a step's start, or -1 and 1 for bits.

    Args:
        vectors: what `quantize` gave.
        precision: in which.
        width: numbers of a vector before.
        ranges: that `quantize` had, of int8 and uint8.
    """
    check_precision(precision)
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ("binary", "ubinary"):
        if precision == "binary":
            vectors = (vectors.astype(np.int16) + 128).astype(np.uint8)
        bits = np.unpackbits(vectors, axis=-1)[..., :width]
        return bits.astype(np.float32) * 2 - 1
    if ranges is None:
        raise BertfastError(f"{precision} vectors need the ranges that they were made with")
    low, steps = _steps(ranges, width)
    numbers = vectors.astype(np.float32) + (128 if precision == "int8" else 0)
    return numbers * steps + low


def _steps(ranges: NDArray[Any], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    ranges = np.asarray(ranges, dtype=np.float32)
    if ranges.shape != (2, width):
        raise BertfastError(f"ranges have shape {ranges.shape}; they must be (2, {width})")
    steps = (ranges[1] - ranges[0]) / 255
    return ranges[0], np.where(steps == 0, np.float32(1), steps)
