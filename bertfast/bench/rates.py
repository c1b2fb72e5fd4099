"""What this machine can do at best, measured: the rate of matrix products and the bandwidth of a
copy.
"""

from __future__ import annotations

import subprocess
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
STATE = ("clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")
REPEATS = 8
SECONDS = 4.0  # after which a rate takes no further sample
SUSTAINED = 2.0  # seconds of one product on a GPU, whose clock falls under load


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
    libraries is faster. On a GPU it is what `sustained` finds.

    It takes about `SECONDS`. A library whose small product is half as fast as another's is not
    asked for a large product. Neither is one that would be late with it.
    """
    if device == "cuda":
        return max(sustained(shape, dtype, quick)[0] for shape in PRODUCTS["cuda"])
    deadline = time.perf_counter() + SECONDS
    rates = _rates_of(SMALL, device, dtype, deadline)
    best = max(rates.values())
    for shape in () if quick else PRODUCTS[device]:
        flops = 2 * shape[0] * shape[1] * shape[2]
        left = deadline - time.perf_counter()
        asked = [name for name, rate in rates.items() if rate > best / 2 and flops < rate * left]
        best = max(best, *_rates_of(shape, device, dtype, deadline, asked).values(), 0.0)
    return best


def sustained(
    shape: tuple[int, int, int], dtype: torch.dtype, quick: bool = False
) -> tuple[float, dict[str, float]]:
    """FLOP/s of one product on the GPU, made for `SUSTAINED` seconds without a pause, and the GPU's
    state (`gpu_state`) meanwhile.
    """
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device="cuda").to(dtype)
    b = torch.randn(inner, columns, device="cuda").to(dtype)
    out = torch.empty(rows, columns, device="cuda", dtype=dtype)

    def seconds_of(count: int, meanwhile: Callable[[], Any] = lambda: None) -> tuple[float, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            torch.mm(a, b, out=out)
        end.record()
        found = meanwhile()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / count, found

    seconds_of(3)
    count = max(1, round((0.05 if quick else SUSTAINED) / seconds_of(10)[0]))
    seconds, state = seconds_of(count, gpu_state)
    return 2 * rows * inner * columns / seconds, state


def gpu_state() -> dict[str, float]:
    """Clocks in MHz, power in W and degrees now, by the names of ``nvidia-smi``; empty without
    it.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        values = done.stdout.splitlines()[torch.cuda.current_device()].split(",")
        return {name: float(value) for name, value in zip(STATE, values, strict=True)}
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return {}


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
