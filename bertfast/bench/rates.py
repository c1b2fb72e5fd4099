"""What this machine can do at best, measured: the rate of matrix products and the bandwidth of a
copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from bertfast import kernels

from .timing import synchronize

# (rows, inner, columns): a square product, and a feed-forward layer of BERT-base.
PRODUCTS = {
    "cpu": ((2048, 2048, 2048), (2048, 768, 3072)),
    "cuda": ((8192, 8192, 8192), (16384, 768, 3072)),
}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


def _fastest(call: Callable[[], object], device: str, repeats: int) -> float:
    call()
    synchronize(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_rate(device: str, dtype: torch.dtype, quick: bool = False) -> float:
    """FLOP/s of the fastest of `PRODUCTS`, a multiply-add counted as two; by whichever of PyTorch's
    libraries is faster.
    """
    best = 0.0
    for rows, inner, columns in ((64, 64, 64),) if quick else PRODUCTS[device]:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        seconds = _fastest(partial(torch.mm, a, b, out=out), device, 8)
        seconds = min(seconds, _fastest(partial(kernels.linear, a, b.t()), device, 8))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def copy_bandwidth(device: str, quick: bool = False) -> float:
    """Bytes per second of a copy beyond the caches, bytes read plus bytes written."""
    size = (1 << 20) if quick else COPY_BYTES[device]
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device, 8)


def measure(device: str, quick: bool = False) -> dict[str, float]:
    """Every rate, by name."""
    rates = {
        f"matrix {name}": matrix_rate(device, dtype, quick)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    return rates | {"copy": copy_bandwidth(device, quick)}
