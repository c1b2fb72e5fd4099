"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

Builds the extension apart with both sanitizers, then drives it through torch's tensors, each of
which the sanitizer fences: every op, dtype and instruction set that this processor runs; random,
empty, one-token and odd sizes; strided input; forward and backward. Then each argument of each
function and of each private op, in every form in which it may come and may not: non-contiguous
ones, short ones, wrong ones (`boundary.py`). Any report ends the run with a non-zero exit.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import boundary
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build" / "sanitize"
FLAGS = (
    "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1 "
    "-Wno-maybe-uninitialized"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
    """The extension at ``path``, in the place of the package's own."""
    spec = importlib.util.spec_from_file_location("bertfast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["bertfast._C"] = module
    return module


class Arrays:
    """Tensors of exactly the bytes that a call may touch, so that one byte beyond is reported."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype, self.rng = dtype, torch.Generator().manual_seed(seed)

    def values(self, *shape: int) -> Tensor:
        """Normal values in the op's dtype."""
        return self.floats(*shape).to(self.dtype)

    def floats(self, *shape: int) -> Tensor:
        """Float32 values."""
        return torch.randn(*shape, generator=self.rng)

    def below(self, end: int, count: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers from 0 to end - 1."""
        return torch.randint(end, (count,), generator=self.rng, dtype=dtype)

    def room(self, *shape: int) -> Tensor:
        """Memory to write the op's dtype to."""
        return torch.empty(*shape, dtype=self.dtype)


def attention(
    ext: Any,
    dtype: torch.dtype,
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
    tokens, longest = sum(lengths) + slack, max(lengths, default=0)
    q, k, v = a.values(tokens, 3, heads, head_dim).unbind(1)
    out, lse = a.room(tokens, heads, head_dim), a.floats(heads, tokens)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    shapes = {
        "bias": (heads, BUCKETS),
        "query_scores": (tokens, heads, BUCKETS),
        "key_scores": (tokens, heads, BUCKETS),
    }
    wanted = {name: shape for name, shape in shapes.items() if name[0] in tables}
    absent = dict.fromkeys(shapes)
    buckets = a.below(BUCKETS, max(2 * longest - 1, 0), torch.int32) if tables else None
    call = {
        "q": q, "k": k, "v": v, "out": out, "lse": lse, "cu_seqlens": cu_seqlens,
        "buckets": buckets, **absent,
        **{name: a.values(*shape) for name, shape in wanted.items()}, "max_seqlen": longest,
        "window": window, "scale": 0.25, "threshold": threshold, "seed": -7, "threads": THREADS,
    }  # fmt: skip
    ext.attention_forward(**call)
    gradients = {"dqkv": a.room(tokens, 3, heads, head_dim)}
    gradients |= {f"d{name}": a.room(*wanted[name]) if name in wanted else None for name in shapes}
    ext.attention_backward(**call, dout=a.values(tokens, heads, head_dim), **gradients)


def rows(ext: Any, dtype: torch.dtype, count: int, masked: int, hidden: int) -> None:
    """check_rows, gather_rows, scatter_rows and dropout."""
    a = Arrays(dtype, 2)
    index = torch.randperm(count, generator=a.rng)[: max(masked - 1, 0)]
    index = torch.cat([index, torch.tensor([-1])])[:masked].clone()
    ext.check_rows(name="index", index=index, owner="x", rows=count)
    ext.gather_rows(
        x=a.values(count, hidden), index=index, out=a.room(masked, hidden), threads=THREADS
    )
    ext.scatter_rows(
        dout=a.values(masked, hidden), index=index, dx=a.room(count, hidden), threads=THREADS
    )
    x, out = a.values(count, hidden), a.room(count, hidden)
    ext.dropout(x=x, out=out, threshold=6554, seed=2**62, threads=THREADS)


def norms(
    ext: Any, dtype: torch.dtype, count: int, width: int, threshold: int, whole: bool
) -> None:
    """add_layer_norm and embed, forward and backward, with every argument or with only those that
    must be, and sum_row_groups.
    """
    a = Arrays(dtype, 5)

    def optional(x: Tensor) -> Tensor | None:
        return x if whole else None

    counted = {"threshold": threshold, "seed": 3, "threads": THREADS}
    common = {"weight": a.floats(width), "mean": a.floats(count), "rstd": a.floats(count)}
    inputs = {"x": a.values(count, width), "residual": optional(a.values(count, width)), **common}
    bias, out = optional(a.floats(width)), a.room(count, width)
    summed, dresidual = optional(a.room(count, width)), optional(a.room(count, width))
    ext.add_layer_norm_forward(
        **inputs, bias=bias, out=out, summed=summed, eps=1e-6, rms=not whole, **counted
    )
    dout, dx, dparameters = a.values(count, width), a.room(count, width), a.floats(2, width)
    dsummed = optional(a.values(count, width))
    ext.add_layer_norm_backward(
        **inputs, dout=dout, dsummed=dsummed, dx=dx, dresidual=dresidual, dparameters=dparameters,
        rms=not whole, **counted,
    )  # fmt: skip
    tables: dict[str, Tensor | None] = {
        "word": a.values(11, width),
        "input_ids": a.below(11, count),
    }
    for name, size in (("position", 7), ("segment", 2)):
        tables[name] = optional(a.values(size, width))
        tables[f"{name}_ids"] = optional(a.below(size, count))
    ext.embed_forward(**tables, **common, bias=bias, out=out, eps=1e-6, **counted)
    dsum = a.floats(count, width)
    ext.embed_backward(**tables, **common, dout=dout, dsum=dsum, dparameters=dparameters, **counted)
    ext.sum_row_groups(
        rows=dsum, order=torch.randperm(count, generator=a.rng),
        starts=torch.tensor([0, count // 2, count]), targets=torch.tensor([0, 4]),
        out=a.room(5, width), threads=THREADS,
    )  # fmt: skip


def gelus(ext: Any, dtype: torch.dtype, count: int, width: int, tanh: bool, gated: bool) -> None:
    """bias_gelu forward and backward, with a bias and without."""
    a = Arrays(dtype, 6)
    columns = 2 * width if gated else width
    for bias, dbias in ((a.floats(columns), a.floats(columns)), (None, None)):
        options = {"bias": bias, "tanh": tanh, "gated": gated, "threads": THREADS}
        x, dx = a.values(count, columns), a.room(count, columns)
        ext.bias_gelu_forward(x=x, out=a.room(count, width), **options)
        ext.bias_gelu_backward(x=x, dout=a.values(count, width), dx=dx, dbias=dbias, **options)


def rotary(ext: Any, dtype: torch.dtype, tokens: int, half: int, inverse: bool) -> None:
    """Both passes on q and k that lie in one projection of their own strides."""
    a = Arrays(dtype, 9)
    heads, positions = 3, 11
    q, k, _ = a.values(tokens, 3, heads, 2 * half).unbind(1)
    outs = {name: a.room(tokens, heads, 2 * half) for name in ("q_out", "k_out")}
    tables = {name: a.floats(positions, half) for name in ("cos", "sin")}
    ids = a.below(positions, tokens)
    ext.rotary(q=q, k=k, **outs, position_ids=ids, **tables, inverse=inverse, threads=THREADS)


def adamw(ext: Any, dtype: torch.dtype, sizes: list[int]) -> None:
    """A step over several tensors, with and without copies, and their norm."""
    a = Arrays(dtype, 7)
    rates = {"lr": 1e-3, "correction1": 0.1, "correction2": 0.1, "gradient_scale": 0.5}
    rates |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01}
    for copies in (False, True):
        updated = {
            name: [a.floats(n).abs() for n in sizes] for name in ("weights", "means", "squares")
        }
        gradients = [a.values(n) for n in sizes]
        rounded = [torch.empty(n, dtype=torch.bfloat16) for n in sizes] if copies else []
        ext.adamw(**updated, gradients=gradients, copies=rounded, **rates, threads=THREADS)
        ext.sum_of_squares(gradients=gradients, threads=THREADS)


def widened(ext: Any, dtype: torch.dtype, count: int, inner: int, width: int, form: int) -> None:
    """A product in each order of its matrices, with each of them in float32 or not."""
    a = Arrays(dtype, 11)

    def matrix(height: int, across: int, bit: int) -> Tensor:
        values = a.floats if form >> 3 + bit & 1 else a.values
        return values(across, height).T if form >> bit & 1 else values(height, across)

    ext.widened_product(
        a=matrix(count, inner, 0), b=matrix(inner, width, 1), out=matrix(count, width, 2),
        bias=a.floats(width) if form % 3 else None, accumulate=form % 2 == 0, threads=THREADS,
    )  # fmt: skip


def masking(ext: Any, tokens: int, counted: bool, words: bool) -> None:
    """mask_tokens, with counters of its own and with whole words."""
    a = Arrays(torch.float32, 4)
    ids = torch.arange(tokens)
    ext.mask_tokens(
        ids=ids, special=torch.rand(tokens, generator=a.rng) < 0.2,
        counters=a.below(2**62, tokens) - 2**61 if counted else None,
        choices=ids // 3 if words else None, masked=torch.empty_like(ids),
        labels=torch.empty_like(ids), mask_id=1, first_random_id=2, random_ids=2**31,
        choose_below=2**31, mask_below=2**30, random_below=2**32, ignore_index=-100, seed=-9,
        threads=THREADS,
    )  # fmt: skip


def cross_entropy(
    ext: Any,
    dtype: torch.dtype,
    count: int,
    vocab: int,
    smoothing: float,
    gradient: bool,
    bias: bool,
) -> None:
    """Losses, and gradients in place."""
    a = Arrays(dtype, 3)
    labels = torch.where(torch.rand(count, generator=a.rng) < 0.2, -100, a.below(vocab, count))
    ext.cross_entropy_rows(
        logits=a.values(count, vocab), bias=a.floats(vocab) if bias else None, labels=labels,
        loss=a.floats(count), correct=torch.empty(count, dtype=torch.uint8),
        grad_scale=a.floats(count) if gradient else None,
        dbias=a.floats(vocab) if gradient and bias else None, ignore_index=-100,
        label_smoothing=smoothing, z_loss=0.01, threads=THREADS,
    )  # fmt: skip


def every_form(ext: Any) -> int:
    """Each argument of each function and each private op in every form of `boundary.TENSOR_FAULTS`;
    returns the count of calls.
    """
    import bertfast.kernels

    assert bertfast.kernels.dispatch._C is ext
    boundary.guarded = lambda x: x.detach().clone()  # the sanitizer's fences see further
    calls = 0
    groups: tuple[tuple[Any, Any, Any], ...] = (
        (
            tuple(boundary.WRITTEN),
            boundary.extension_call,
            lambda name, call: boundary.call_extension(ext, name, call),
        ),
        (boundary.OPS, lambda name, d: boundary.op_call(name, d, "cpp"), boundary.call_op),
    )
    for names, make, run in groups:
        for name in names:
            for place in boundary.tensors_of(make(name, torch.float32)):
                for fault, change in boundary.TENSOR_FAULTS.items():
                    for number in range(4):
                        call = make(name, DTYPES[number % 3])
                        x = boundary.at(call, place)
                        try:
                            boundary.put(call, place, change(x, number, x))
                        except (RuntimeError, TypeError, ZeroDivisionError, IndexError):
                            continue  # this tensor cannot be made wrong in this way
                        what = f"{name}: {place} {fault} {number}"
                        boundary.check_wrong_call(partial(run, name), call, what)
                        calls += 1
    return calls


def drive(ext: Any) -> int:
    """Every op in every shape that has gone wrong somewhere; returns the count of calls."""
    calls = 0
    for isa in ext.capabilities()["runnable"]:
        ext.set_isa(isa)
        for dtype in DTYPES:
            for lengths in ([], [0], [1], [0, 1, 0, 2], [3, 65, 0, 17], [130, 64, 63]):
                for head_dim in (16, 32, 48, 64, 80, 96, 128):
                    for slack, threshold in ((0, 0), (3, 26)):
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
                    attention(ext, dtype, lengths, 3, 16, 2, 26, window, tables)
                    calls += 2
            for product in (
                (0, 3, 2),
                (1, 1, 1),
                (5, 0, 4),
                (13, 33, 70),
                (70, 530, 9),
                (9, 20, 130),
                (16, 600, 300),
                (37, 13, 70),
                (38, 530, 70),
            ):
                for form in range(64):
                    widened(ext, dtype, *product, form)
                    calls += 1
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
                calls += 8
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
    return calls + every_form(ext)


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
