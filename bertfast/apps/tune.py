"""``bertfast tune``: which tile sizes, warps and stages are the fastest for each Triton kernel on
this machine's GPU.

Every candidate of a small grid does the work of a BERT step in turn. Of that work its own launches
alone are timed, recorded as a CUDA graph, so that neither the host nor another kernel counts. A
candidate that cannot run, or computes something else than the shipped options, is left out. So is
one, unmeasured, whose registers spill or whose instructions take too many clocks by the model of
`bertfast.kernels.resources`. The fastest is written to the cache file that
`bertfast.kernels.tuning` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bertfast import kernels
from bertfast.errors import BertfastError
from bertfast.kernels import resources, tuning
from bertfast.kernels.launch import Launch, recording

VOCAB, MASKED_SHARE = 30522, 0.15
MEASURED_SECONDS = 0.1  # of a candidate
SLOWER = 1.25  # times the fewest clocks by the model, above which a candidate is not measured
LEAST_GAIN = 0.02  # of the time, below which the shipped options stay
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}  # of the results, as ‖a - b‖ / ‖b‖


@dataclass(frozen=True)
class Problem:
    """A kernel at work.

    Attributes:
        kernel: as `tuning` names it.
        size: that its input is padded to.
        grid: the candidates.
        run: launches it, among others, and returns what it computes.
    """

    kernel: str
    size: int
    grid: list[dict[str, int]]
    run: Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Found:
    """The best options, and the seconds that they and the shipped ones take.

    Two counts go with them: candidates that could not be used, and candidates that were left out by
    their costs.
    """

    options: tuning.Options
    seconds: float
    usual_seconds: float
    unusable: int
    left_out: int = 0


@dataclass(frozen=True)
class Cost:
    """What the compiler says of a candidate.

    Attributes:
        registers, spills: of a thread; spills in words.
        shared: bytes of shared memory.
        clocks: that a piece of its work takes at the least, by the model of
            `kernels.resources.piece_of`; None where it has no piece.
        error: why it cannot be launched; "" where it can.
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    clocks: float | None = None
    error: str = ""


def _grid(**values: tuple[int, ...]) -> list[dict[str, int]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _attention(
    dtype: torch.dtype, device: torch.device, head_dim: int, hidden: int, tokens: int
) -> Iterator[Problem]:
    lengths = [512] * (tokens // 1024) + [128] * (tokens // 256)
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)
    shape = (sum(lengths), max(1, hidden // head_dim), head_dim)
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    dout, seed = (
        torch.randn(shape, dtype=dtype, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )

    def forward() -> tuple[Tensor, ...]:
        return (kernels.attention(q, k, v, bounds, max(lengths), dropout_p=0.1, seed=seed),)

    (out,) = forward()
    block = (16, 32, 64) if dtype == torch.float32 else (32, 64, 128)
    grid = _grid(BLOCK_M=block, BLOCK_N=block, num_warps=(4, 8), num_stages=(1, 2, 3))
    size = 1 << (head_dim - 1).bit_length()
    yield Problem("attention.forward", size, grid, forward)
    for kernel in ("query_gradient", "key_gradient"):
        yield Problem(
            f"attention.{kernel}",
            size,
            grid,
            lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True),
        )


def _cross_entropy(
    dtype: torch.dtype, device: torch.device, head_dim: int, hidden: int, tokens: int
) -> Iterator[Problem]:
    masked = round(MASKED_SHARE * tokens)
    shapes = ((masked, hidden), (VOCAB, hidden), (VOCAB,))
    rows, weight, bias = (
        torch.randn(x, device=device).mul(0.1).to(dtype).requires_grad_() for x in shapes
    )
    labels = torch.randint(VOCAB, (masked,), device=device)

    def run() -> tuple[Tensor, ...]:
        loss, _ = kernels.linear_cross_entropy(rows, weight, bias, labels)
        return (loss, *torch.autograd.grad(loss, (rows, weight, bias)))

    grid = _grid(BLOCK=(1024, 2048, 4096, 8192), num_warps=(4, 8, 16))
    yield Problem("linear_cross_entropy.rows", 0, grid, run)


def _layer_norm(
    dtype: torch.dtype, device: torch.device, head_dim: int, hidden: int, tokens: int
) -> Iterator[Problem]:
    x, residual = (
        torch.randn(tokens, hidden, dtype=dtype, device=device, requires_grad=True)
        for _ in range(2)
    )
    weight, bias = (
        torch.randn(hidden, dtype=dtype, device=device, requires_grad=True) for _ in range(2)
    )
    dout, seed = torch.randn_like(x), torch.zeros(1, dtype=torch.int64, device=device)

    def forward() -> tuple[Tensor, ...]:
        out = kernels.add_layer_norm(x, residual, weight, bias, dropout_p=0.1, seed=seed)
        return out if isinstance(out, tuple) else (out,)

    (out,) = forward()
    size = max(16, 1 << (hidden - 1).bit_length())
    yield Problem(
        "add_layer_norm.forward", size, _grid(ROWS=(1, 2, 4, 8), num_warps=(1, 2, 4, 8)), forward
    )
    yield Problem(
        "add_layer_norm.backward",
        size,
        _grid(ROWS=(1, 2, 4, 8), PROGRAMS=(132, 264, 396, 528), num_warps=(2, 4, 8)),
        lambda: torch.autograd.grad(out, (x, residual, weight, bias), dout, retain_graph=True),
    )


def _gelu(
    dtype: torch.dtype, device: torch.device, head_dim: int, hidden: int, tokens: int
) -> Iterator[Problem]:
    x = torch.randn(tokens, 4 * hidden, dtype=dtype, device=device, requires_grad=True)
    bias = torch.randn(4 * hidden, dtype=dtype, device=device, requires_grad=True)
    dout = torch.randn_like(x)

    def forward() -> tuple[Tensor, ...]:
        return (kernels.bias_gelu(x, bias),)

    (out,) = forward()
    columns, warps = (128, 256, 512, 1024), (2, 4, 8)
    yield Problem(
        "bias_gelu.forward", 0, _grid(ROWS=(1, 2, 4, 8), COLUMNS=columns, num_warps=warps), forward
    )
    yield Problem(
        "bias_gelu.backward",
        0,
        _grid(STEP=(1, 2, 4, 8), COLUMNS=columns, num_warps=warps),
        lambda: torch.autograd.grad(out, (x, bias), dout, retain_graph=True),
    )


def _adamw(
    dtype: torch.dtype, device: torch.device, head_dim: int, hidden: int, tokens: int
) -> Iterator[Problem]:
    gradient = torch.randn(4 * hidden * hidden, device=device)
    state = [gradient.clone() for _ in range(3)]
    state[2].square_()
    lower = [] if dtype == torch.float32 else [gradient.bfloat16()]

    def run() -> tuple[Tensor, ...]:  # on copies, whose time is the same for each candidate
        weight, mean, square = (x.clone() for x in state)
        kernels.adamw([weight], [gradient.to(dtype)], [mean], [square], lower, lr=0.1, step=1)
        return weight, mean, square

    yield Problem("adamw.update", 0, _grid(BLOCK=(512, 1024, 2048, 4096), num_warps=(2, 4, 8)), run)


PROBLEMS = {
    "adamw": _adamw,
    "add_layer_norm": _layer_norm,
    "attention": _attention,
    "bias_gelu": _gelu,
    "linear_cross_entropy": _cross_entropy,
}


def search(
    problem: Problem,
    dtype: torch.dtype,
    usual: tuning.Options,
    measure: Callable[[Callable[[], object]], float],
    costs: Sequence[Cost] | None = None,
) -> Found:
    """The fastest of a problem's candidates and the usual options.

    Args:
        measure: the seconds of a call.
        costs: of the candidates, in their order; with None all are measured.
    """
    with tuning.trying(problem.kernel, usual):
        expected, own = _observed(problem)
        usual_seconds = measure(own)
    best, seconds, unusable = usual, usual_seconds * (1 - LEAST_GAIN), 0
    kept = problem.grid if costs is None else affordable(problem.grid, costs)
    for candidate in kept:
        if candidate == usual:
            continue
        try:
            with tuning.trying(problem.kernel, candidate):
                results, own = _observed(problem)
                if not _agree(results, expected, TOLERANCE[dtype]):
                    unusable += 1
                    continue
                taken = measure(own)
        # too much shared memory, too many registers, a limit of the compiler: each has an error of
        # its own
        except Exception:
            unusable += 1
            continue
        if taken < seconds:
            best, seconds = candidate, taken
    return Found(
        best,
        usual_seconds if best is usual else seconds,
        usual_seconds,
        unusable,
        len(problem.grid) - len(kept),
    )


def affordable(grid: list[dict[str, int]], costs: Sequence[Cost]) -> list[dict[str, int]]:
    """The candidates that are worth a measurement.

    They can be launched, spill no more than the one that spills least, and are not slow by the
    model.
    """
    fine = [cost for cost in costs if not cost.error]
    spills = min((cost.spills for cost in fine), default=0)
    clocks = [x.clocks for x in fine if x.clocks is not None and x.spills == spills]
    most = SLOWER * min(clocks, default=float("inf"))
    return [
        candidate
        for candidate, cost in zip(grid, costs, strict=True)
        if not cost.error and cost.spills == spills and (cost.clocks is None or cost.clocks <= most)
    ]


def compile_costs(problem: Problem, grid: Iterable[dict[str, int]]) -> Iterator[Cost]:
    """Compiles candidates of a problem, into Triton's cache, and gives the cost of each; the
    problem's other kernels run.
    """
    for candidate in grid:
        found: list[Cost] = []

        def compile_own(one: Launch, found: list[Cost] = found) -> None:
            if not found and is_launch_of(problem.kernel, one):
                found.append(_cost(one))
            elif not is_launch_of(problem.kernel, one):
                _make(one)

        try:
            with tuning.trying(problem.kernel, candidate), recording(compile_own):
                problem.run()
        except Exception as error:  # as of `search`
            found[:] = [Cost(error=type(error).__name__)]
        yield found[0] if found else Cost()


def _cost(one: Launch) -> Cost:
    compiled = one.kernel.warmup(*one.arguments, grid=one.grid, **one.constants)
    if compiled is None:  # of the interpreter
        return Cost()
    _ = compiled.run  # loads it, or says that it cannot be
    capability = tuning.GENERATIONS.get(torch.cuda.get_device_capability()[0], tuning.OLDEST)
    code = resources.Compiled(
        resources.disassemble(compiled.asm["cubin"]), compiled.metadata.num_warps
    )
    itemsize = next(x.itemsize for x in one.arguments if isinstance(x, Tensor))
    try:
        _, work = resources.piece_of(
            one.kernel.fn.__name__, one.constants, itemsize, code, capability
        )
        clocks = work.least
    except (KeyError, ValueError):  # a kernel that the model has no piece of
        clocks = None
    return Cost(compiled.n_regs, compiled.n_spills, compiled.metadata.shared, clocks)


def is_launch_of(kernel: str, one: Launch) -> bool:
    """Whether a launch is of the kernel that `tuning` has under this name."""
    op, name = kernel.split(".")
    function = one.kernel.fn
    names = (f"_{op}_kernel", f"_{name}_kernel", f"{op.split('_')[-1]}_{name}_kernel")
    return f".{op}" in function.__module__ and function.__name__.endswith(names)


def _make(one: Launch) -> None:
    one.kernel[one.grid](*one.arguments, **one.constants)


def _observed(problem: Problem) -> tuple[tuple[Tensor, ...], Callable[[], Any]]:
    """What the problem computes, and its kernel's own launches again."""
    own: list[Launch] = []

    def note(one: Launch) -> None:
        _make(one)
        if is_launch_of(problem.kernel, one):
            own.append(one)

    with recording(note):
        results = problem.run()

    def launch_own() -> None:
        for one in own:
            _make(one)

    return results, launch_own if own else problem.run


def _agree(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> bool:
    pairs = [
        (x.detach().float(), y.detach().float()) for x, y in zip(results, expected, strict=True)
    ]
    return all(float((x - y).norm()) <= tolerance * float(y.norm()) for x, y in pairs)


def tune(
    op: str | None = None, dtype: str = "bfloat16", head_dim: int = 64, hidden: int = 768
) -> None:
    """Searches the kernels of an op, or of all that have options, and writes each one's best to the
    cache file.

    Args:
        op: one of `PROBLEMS`; None for each.
        dtype: "bfloat16", whose options serve float16 too, or "float32".
        head_dim: of the attention.
        hidden: the width of the model.

    Raises:
        BertfastError: an argument is none of those, or there is no GPU.
    """
    if op is not None and op not in PROBLEMS:
        raise BertfastError(f"op is {op!r}; it must be one of {', '.join(PROBLEMS)}")
    if dtype not in ("bfloat16", "float32"):
        raise BertfastError(f"dtype is {dtype!r}; it must be bfloat16 or float32")
    if head_dim not in kernels.dispatch.HEAD_DIMS:
        raise BertfastError(
            f"head-dim is {head_dim}; "
            f"it must be one of {', '.join(map(str, kernels.dispatch.HEAD_DIMS))}"
        )
    if hidden < 1:
        raise BertfastError(f"hidden is {hidden}; it must be at least 1")
    if not torch.cuda.is_available():
        raise BertfastError("tune measures on a CUDA GPU, and PyTorch finds none here")

    import triton.testing

    def measure(run: Callable[[], object]) -> float:
        rep = MEASURED_SECONDS * 1e3
        return triton.testing.do_bench_cudagraph(run, rep=rep, return_mode="median") / 1e3

    device, torch_dtype = torch.device("cuda", torch.cuda.current_device()), getattr(torch, dtype)
    assert device.index is not None
    for name in [op] if op else PROBLEMS:
        with kernels.use_backend("triton"):
            for problem in PROBLEMS[name](torch_dtype, device, head_dim, hidden, 16384):
                key, usual = tuning.default(problem.kernel, torch_dtype, device, problem.size)
                costs = list(compile_costs(problem, problem.grid))
                found = search(problem, torch_dtype, usual, measure, costs)
                tuning.save(problem.kernel, key, found.options, device.index)
                chosen = (
                    "as shipped"
                    if found.options == usual
                    else f"{dict(found.options)}, shipped {dict(usual)}"
                )
                print(
                    f"{problem.kernel} {key}: {found.usual_seconds * 1e3:.3f} -> "
                    f"{found.seconds * 1e3:.3f} ms, {chosen} ({len(problem.grid)} tried, "
                    f"{found.unusable} unusable, {found.left_out} left out)"
                )
    print(f"written to {tuning.cache_file()}")
