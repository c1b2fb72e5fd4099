"""What this machine can do at best, measured: the rate of matrix products and the bandwidth of a
copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from bertfast import kernels

from .timing import synchronize

# (rows, inner, columns): a square product, and a feed-forward layer of BERT-base.
PRODUCTS = {
    "cpu": ((2048, 2048, 2048), (2048, 768, 3072)),
    "cuda": ((8192, 8192, 8192), (16384, 768, 3072)),
}
# Tells which library is worth a larger product; the slowest there is needs a second for it.
SMALL = (256, 256, 256)
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
REPEATS = 8
SECONDS = 4.0  # after which a rate takes no further sample


def _fastest(call: Callable[[], object], device: str, deadline: float) -> float:
    """Seconds of the fastest of `REPEATS` calls after a first one; fewer where time is up."""
    best = float("inf")
    for number in range(1 + REPEATS):
        start = time.perf_counter()
        call()
        synchronize(device)
        end = time.perf_counter()
        late = end > deadline
        if number or late:  # the first call pays for what it sets up
            best = min(best, end - start)
        if late:
            break
    return best


def matrix_rate(device: str, dtype: torch.dtype, quick: bool = False) -> float:
    """FLOP/s of the fastest of `PRODUCTS`, a multiply-add counted as two; by whichever of PyTorch's
    libraries is faster.

    It takes about `SECONDS`: a library whose small product is half as fast as another's, or that
    would be late with one large product, is not asked for it.
    """
    deadline = time.perf_counter() + SECONDS
    rates = _rates_of(SMALL, device, dtype, deadline)
    best = max(rates.values())
    for shape in () if quick else PRODUCTS[device]:
        flops = 2 * shape[0] * shape[1] * shape[2]
        left = deadline - time.perf_counter()
        asked = [name for name, rate in rates.items() if rate > best / 2 and flops < rate * left]
        best = max(best, *_rates_of(shape, device, dtype, deadline, asked).values(), 0.0)
    return best


def _rates_of(
    shape: tuple[int, int, int],
    device: str,
    dtype: torch.dtype,
    deadline: float,
    asked: Iterable[str] = ("torch.mm", "kernels.linear"),
) -> dict[str, float]:
    """FLOP/s of one product, by way of making it."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    ways = {
        "torch.mm": partial(torch.mm, a, b, out=out),
        "kernels.linear": partial(kernels.linear, a, b.t()),
    }
    return {
        name: 2 * rows * inner * columns / _fastest(ways[name], device, deadline) for name in asked
    }


def copy_bandwidth(device: str, quick: bool = False) -> float:
    """Bytes per second of a copy beyond the caches, bytes read plus bytes written."""
    size = (1 << 20) if quick else COPY_BYTES[device]
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    deadline = time.perf_counter() + SECONDS
    return 2 * size / _fastest(lambda: target.copy_(source), device, deadline)


def needed(case: dict[str, Any]) -> str:
    """The name of the rate that a case's record is set beside."""
    return f"matrix {case['dtype']}" if case["flops"] else "copy"


def measure(device: str, names: Iterable[str], quick: bool = False) -> dict[str, float]:
    """The rates of these names, "copy" or "matrix" and a dtype: "matrix bfloat16"."""
    return {
        name: copy_bandwidth(device, quick)
        if name == "copy"
        else matrix_rate(device, getattr(torch, name.removeprefix("matrix ")), quick)
        for name in names
    }
