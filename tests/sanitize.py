"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

Builds the extension apart with both sanitizers, then drives it, without torch, through numpy
buffers of exact size: every op, dtype and instruction set that this processor runs; random, empty,
one-token and odd sizes; strided input; forward and backward. Any report ends the run with a
non-zero exit.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build" / "sanitize"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1 -Wno-maybe-uninitialized"
BYTES = {"float32": 4, "bfloat16": 2}
THREADS = 2
BUCKETS = 5


def build() -> Path:
    """Compiles the extension with the sanitizers; returns its path."""
    environment = {**os.environ, "BERTFAST_CXX_FLAGS": FLAGS, "BERTFAST_REQUIRE_EXTENSION": "1"}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(BUILD),
        "--build-temp",
        str(BUILD / "temp"),
    ]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return next((BUILD / "bertfast").glob("_C.*"))


def run_instrumented(extension: Path) -> int:
    """This script again, with the sanitizers' runtimes loaded first."""
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, __file__, str(extension)], env=environment, check=False
    ).returncode


def load(path: Path) -> Any:
    """The extension at ``path``, without the package around it."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Arrays:
    """Buffers of exactly the bytes that a call may touch, so that one byte beyond is reported."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype, self.rng, self.kept = dtype, np.random.default_rng(seed), []

    def _keep(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return array.ctypes.data

    def values(self, *shape: int) -> int:
        """Normal values in the op's dtype."""
        x = self.rng.normal(size=shape).astype(np.float32)
        return self._keep(
            x if self.dtype == "float32" else (x.view(np.uint32) >> 16).astype(np.uint16)
        )

    def floats(self, *shape: int) -> int:
        """Float32 values."""
        return self._keep(self.rng.normal(size=shape).astype(np.float32))

    def integers(self, values: Any, dtype: Any = np.int64) -> int:
        """These integers."""
        return self._keep(np.asarray(values, dtype))

    def room(self, *shape: int) -> int:
        """Bytes to write the op's dtype to."""
        return self._keep(np.empty(int(np.prod(shape)) * BYTES[self.dtype], np.uint8))


def attention(
    ext: Any,
    dtype: str,
    lengths: list[int],
    heads: int,
    head_dim: int,
    slack: int,
    threshold: int,
    window: int = -1,
    tables: str = "",
) -> None:
    """Forward and backward on q, k, v that lie in one projection of their own strides, with the
    tables named: b(ias), q(uery), k(ey) scores.
    """
    a = Arrays(dtype, 1)
    tokens = sum(lengths) + slack
    stride = 3 * heads * head_dim
    qkv = a.values(tokens, 3, heads, head_dim)
    q, k, v = (qkv + part * heads * head_dim * BYTES[dtype] for part in range(3))
    out, lse = a.room(tokens, heads, head_dim), a.floats(heads, tokens)
    cu = a.integers(np.cumsum([0, *lengths]), np.int32)
    longest = max(lengths, default=0)
    sizes = (len(lengths), heads, head_dim, *(stride, head_dim) * 3)
    shapes = {"b": (heads, BUCKETS), "q": (tokens, heads, BUCKETS), "k": (tokens, heads, BUCKETS)}
    bucket_of = a.integers(a.rng.integers(0, BUCKETS, max(2 * longest - 1, 0)), np.int32)
    addresses = [
        bucket_of,
        *(a.values(*shape) if name in tables else 0 for name, shape in shapes.items()),
    ]
    positions = (window, addresses if tables else [0] * 4, BUCKETS, [heads * BUCKETS, BUCKETS] * 2)
    rest = (tokens, longest, 0.25, threshold, -7, THREADS, *positions)
    ext.attention_forward(dtype, q, k, v, out, lse, cu, *sizes, *rest)
    gradients = [a.room(tokens, heads, head_dim) for _ in range(3)]
    table_gradients = [a.room(*shape) if name in tables else 0 for name, shape in shapes.items()]
    dout = a.values(tokens, heads, head_dim)
    strides = (heads * head_dim, head_dim)
    ext.attention_backward(
        dtype, dout, q, k, v, out, lse, *gradients, cu, *sizes, *strides, *rest, table_gradients
    )


def rows(ext: Any, dtype: str, count: int, masked: int, hidden: int) -> None:
    """check_rows, gather_rows, scatter_rows and dropout."""
    a = Arrays(dtype, 2)
    index = a.integers([*a.rng.permutation(count)[: max(masked - 1, 0)], -1][:masked])
    ext.check_rows("index", index, masked, "x", count)
    width = hidden * BYTES[dtype]
    ext.gather_rows(
        a.values(count, hidden), index, a.room(masked, hidden), count, masked, width, width, THREADS
    )
    ext.scatter_rows(
        a.values(masked, hidden), index, a.room(count, hidden), count, masked, width, THREADS
    )
    ext.dropout(
        dtype, a.values(count, hidden), a.room(count, hidden), count * hidden, 6554, 2**62, THREADS
    )


def norms(ext: Any, dtype: str, count: int, width: int, threshold: int, whole: bool) -> None:
    """add_layer_norm and embed, forward and backward, with every argument or with only those that
    must be, and sum_row_groups.
    """
    a = Arrays(dtype, 5)
    x, weight, mean, rstd = (
        a.values(count, width),
        a.floats(width),
        a.floats(count),
        a.floats(count),
    )
    residual, bias = (a.values(count, width), a.floats(width)) if whole else (0, 0)
    summed, dresidual = (a.room(count, width) for _ in range(2)) if whole else (0, 0)
    rest = (count, width)
    out = a.room(count, width)
    ext.add_layer_norm_forward(
        dtype,
        x,
        residual,
        weight,
        bias,
        out,
        summed,
        mean,
        rstd,
        *rest,
        1e-6,
        not whole,
        threshold,
        3,
        THREADS,
    )
    dout, dx, dparameters = a.values(count, width), a.room(count, width), a.floats(2, width)
    dsummed = a.values(count, width) if whole else 0
    ext.add_layer_norm_backward(
        *(dtype, dout, dsummed, x, residual, weight, mean, rstd, dx, dresidual, dparameters),
        *(*rest, not whole, threshold, 3, THREADS),
    )
    sizes = [11, 7, 2] if whole else [11, 0, 0]
    tables = [a.values(size, width) if size else 0 for size in sizes]
    ids = [a.integers(a.rng.integers(0, size, count)) if size else 0 for size in sizes]
    ext.embed_forward(
        dtype, tables, ids, sizes, weight, bias, out, mean, rstd, *rest, 1e-6, threshold, 3, THREADS
    )  # fmt: skip
    dsum = a.floats(count, width)
    ext.embed_backward(
        dtype, dout, tables, ids, sizes, weight, mean, rstd, dsum, dparameters, *rest, threshold, 3, THREADS
    )  # fmt: skip
    starts = [0, count // 2, count]
    groups = (a.integers(a.rng.permutation(count)), a.integers(starts), a.integers([4, 0]))
    ext.sum_row_groups(dtype, dsum, *groups, a.room(5, width), count, 2, 5, width, THREADS)


def gelus(ext: Any, dtype: str, count: int, width: int, tanh: bool, gated: bool) -> None:
    """bias_gelu forward and backward, with a bias and without."""
    a = Arrays(dtype, 6)
    columns = 2 * width if gated else width
    for bias, dbias in ((a.floats(columns), a.floats(columns)), (0, 0)):
        x, sizes = a.values(count, columns), (count, width, tanh, gated, THREADS)
        ext.bias_gelu_forward(dtype, x, bias, a.room(count, width), *sizes)
        ext.bias_gelu_backward(
            dtype, a.values(count, width), x, bias, a.room(count, columns), dbias, *sizes
        )


def rotary(ext: Any, dtype: str, tokens: int, half: int, inverse: bool) -> None:
    """Both passes on q and k that lie in one projection of their own strides."""
    a = Arrays(dtype, 9)
    heads, positions = 3, 11
    qkv = a.values(tokens, 3, heads, 2 * half)
    k = qkv + heads * 2 * half * BYTES[dtype]
    ids = a.integers(a.rng.integers(0, positions, tokens))
    tables = [a.floats(positions, half) for _ in range(2)]
    outs = [a.room(tokens, heads, 2 * half) for _ in range(2)]
    strides = [3 * heads * 2 * half, 2 * half] * 2
    ext.rotary(
        dtype,
        qkv,
        k,
        *outs,
        ids,
        *tables,
        tokens,
        heads,
        half,
        positions,
        strides,
        inverse,
        THREADS,
    )


def adamw(ext: Any, dtype: str, sizes: list[int]) -> None:
    """A step over several tensors, with and without copies, and their norm."""
    for copies in (False, True):
        a, b = Arrays(dtype, 7), Arrays("bfloat16", 8)
        rows = [
            [a.floats(n), a.values(n), a.floats(n), a.floats(n), b.room(n) if copies else 0] for n in sizes
        ]  # fmt: skip
        ext.adamw(dtype, rows, sizes, [1e-3, 0.1, 0.1, 0.5, 0.9, 0.999, 1e-6, 0.01], THREADS)
        ext.sum_of_squares(dtype, [row[1] for row in rows], sizes, THREADS)


def masking(ext: Any, tokens: int, counted: bool, words: bool) -> None:
    """mask_tokens, with counters of its own and with whole words."""
    a = Arrays("float32", 4)
    special = a.integers(a.rng.random(tokens) < 0.2, np.bool_)
    counters = a.integers(a.rng.integers(-(2**63), 2**63 - 1, tokens)) if counted else 0
    choices = a.integers(np.arange(tokens) // 3) if words else 0
    out = [a.integers(np.zeros(tokens)) for _ in range(2)]
    ids = a.integers(np.arange(tokens))
    ext.mask_tokens(
        ids,
        special,
        counters,
        choices,
        *out,
        tokens,
        1,
        2,
        2**31,
        2**31,
        2**30,
        2**32,
        -100,
        -9,
        THREADS,
    )


def cross_entropy(
    ext: Any, dtype: str, count: int, vocab: int, smoothing: float, gradient: bool, bias: bool
) -> None:
    """Losses, and gradients in place."""
    a = Arrays(dtype, 3)
    labels = a.integers(np.where(a.rng.random(count) < 0.2, -100, a.rng.integers(0, vocab, count)))
    ext.cross_entropy_rows(
        dtype,
        a.values(count, vocab),
        a.floats(vocab) if bias else 0,
        labels,
        a.floats(count),
        a.floats(count),
        a.integers(np.zeros(count), np.uint8),
        count,
        vocab,
        -100,
        smoothing,
        0.01,
        a.floats(count) if gradient else 0,
        a.floats(vocab) if gradient and bias else 0,
        THREADS,
    )


def drive(ext: Any) -> int:
    """Every op in every shape that has gone wrong somewhere; returns the count of calls."""
    calls = 0
    for isa in ext.capabilities()["runnable"]:
        ext.set_isa(isa)
        for dtype in BYTES:
            for lengths in ([], [0], [1], [0, 1, 0, 2], [3, 65, 0, 17], [130, 64, 63]):
                for head_dim in (16, 32, 48, 64, 80, 96, 128):
                    for slack, threshold in ((0, 0), (3, 6554)):
                        attention(ext, dtype, lengths, 2, head_dim, slack, threshold)
                        calls += 2
                for window, tables in (
                    (-1, "bqk"),
                    (0, ""),
                    (7, "b"),
                    (64, "qk"),
                    (2**62, "q"),
                    (100, "k"),
                ):
                    attention(ext, dtype, lengths, 3, 16, 2, 6554, window, tables)
                    calls += 2
            for shape in ((0, 0, 5), (1, 1, 1), (7, 3, 16), (33, 33, 65), (150, 40, 129)):
                rows(ext, dtype, *shape)
                if shape[0]:
                    for threshold, whole in ((0, False), (6554, True)):
                        norms(ext, dtype, shape[0], shape[2], threshold, whole)
                        calls += 5
                    for tanh, gated in ((False, False), (True, True)):
                        gelus(ext, dtype, shape[0], shape[2], tanh, gated)
                        calls += 4
                adamw(ext, dtype, [shape[0] * shape[2], 1, 20000])
                calls += 4
                calls += 4
            for tokens, half in ((0, 8), (1, 1), (3, 17), (40, 32)):
                rotary(ext, dtype, tokens, half, tokens % 2 == 0)
                calls += 1
            for count, vocab in ((0, 5), (1, 1), (3, 15), (4, 16), (5, 1025)):
                for smoothing, gradient, bias in (
                    (0.0, False, False),
                    (0.1, True, True),
                    (0.0, True, False),
                ):
                    cross_entropy(ext, dtype, count, vocab, smoothing, gradient, bias)
                    calls += 1
        for tokens in (0, 1, 15, 16, 17, 5001):
            for counted, words in ((False, False), (True, False), (False, True), (True, True)):
                masking(ext, tokens, counted, words)
                calls += 1
    return calls


def main() -> int:
    """Builds and runs itself again; or, given the extension, drives it."""
    if len(sys.argv) > 1:
        ext = load(Path(sys.argv[1]))
        isas = ", ".join(ext.capabilities()["runnable"])
        print(f"sanitize: {drive(ext)} calls on {isas}: no report")
        return 0
    return run_instrumented(build())


if __name__ == "__main__":
    sys.exit(main())
