"""What tests share: tolerances, packed-batch makers, and the optional real data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="the real data of ../shared/data is not on this machine"
)
# Inductor needs a C++ compiler; without one the graph is still captured whole and differentiated.
COMPILE_BACKEND = "inductor" if shutil.which("g++") else "aot_eager"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """The error that a result of ``dtype`` may have against float64, stated once for every test.

    A few tens of roundings for sums kept in float32; for half precision the roundings of inputs, of
    tiles between two products and of the result, each of the dtype's epsilon.
    """
    eps = torch.finfo(dtype).eps
    return (
        {"rtol": 32 * eps, "atol": 32 * eps}
        if dtype == torch.float32
        else {"rtol": 4 * eps, "atol": 4 * eps}
    )


def assert_close_to_float64(actual: Tensor, expected: Tensor, scale: float | None = None) -> None:
    """``actual`` equals the float64 ``expected`` up to its dtype's tolerance, absolute errors
    measured against the larger of its size and 1, the size of the inputs.
    """
    assert expected.dtype == torch.float64
    limits = tolerance(actual.dtype)
    size = (
        scale if scale is not None else (expected.abs().max().item() if expected.numel() else 1.0)
    )
    torch.testing.assert_close(
        actual.double(),
        expected.to(actual.device),
        rtol=limits["rtol"],
        atol=limits["atol"] * max(size, 1.0),
    )


def boundaries(lengths: list[int], device: torch.device = DEVICE) -> Tensor:
    """cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def random_positions(  # type: ignore[no-untyped-def]
    tables: str,
    tokens: int,
    heads: int,
    max_seqlen: int,
    dtype: torch.dtype = torch.float32,
    buckets: int = 7,
    seed: int = 1,
):
    """RelativePositions with a bucket drawn for each distance and normal values in the tables
    named: b(ias), q(uery) and k(ey) scores.
    """
    from bertfast import kernels

    generator = torch.Generator().manual_seed(seed)
    bucket_of = torch.randint(
        buckets, (max(2 * max_seqlen - 1, 0),), generator=generator, dtype=torch.int32
    )
    shapes = {"b": (heads, buckets), "q": (tokens, heads, buckets), "k": (tokens, heads, buckets)}
    values = {
        name: torch.randn(*shape, generator=generator).to(DEVICE, dtype)
        for name, shape in shapes.items()
    }
    wanted = [values[name].requires_grad_() if name in tables else None for name in shapes]
    return kernels.RelativePositions(bucket_of.to(DEVICE), *wanted)


def missing_backend(name: str, dtype: torch.dtype = torch.float32) -> str:
    """Why ``name`` cannot serve on this machine's test device; empty when it can."""
    from bertfast.kernels import dispatch

    return "; ".join(dispatch.reasons_against(name, "dropout", DEVICE, dtype))


def forced(backend: str, dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
    """A context in which every op runs on ``backend``; skips the test, saying why, where it
    cannot.
    """
    from bertfast import kernels

    reason = missing_backend(backend, dtype)
    if reason:
        pytest.skip(f"{backend}: {reason}")
    return kernels.use_backend(backend)


BACKENDS = ("reference", "cpp", "triton")


def differentiate(call, leaves, douts, backend, dtype):  # type: ignore[no-untyped-def]
    """Outputs of ``call(*leaves)`` on ``backend`` in ``dtype``, then the gradients of the leaves
    (None where there is none).

    Floating leaves are cast; a float64 run on the reference gives what the others are held against.
    """
    copies = [
        x.detach().to(dtype).requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in leaves
    ]
    wrt = [x for x in copies if isinstance(x, Tensor) and x.requires_grad]
    with forced(backend, dtype):
        outs = call(*copies)
        outs = outs if isinstance(outs, tuple) else (outs,)
        gradients = torch.autograd.grad(outs, wrt, [d.to(dtype) for d in douts])
    return [*(out.detach() for out in outs), *gradients]


def assert_matches_float64(call, leaves, douts, backend, dtype):  # type: ignore[no-untyped-def]
    """``call`` and its gradients on ``backend`` equal the float64 reference; inputs are first
    rounded to ``dtype``.
    """
    leaves = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in leaves]
    douts = [d.to(dtype) for d in douts]
    got = differentiate(call, leaves, douts, backend, dtype)
    wanted = differentiate(call, leaves, douts, "reference", torch.float64)
    for mine, other in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == other.shape
        assert_close_to_float64(mine.to_dense(), other.to_dense())


class HalfProducts(TorchDispatchMode):
    """Within it ``names`` collects the products that PyTorch itself makes of bfloat16 or
    float16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        multiplies = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution")
        if name in multiplies and any(
            isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) for x in args
        ):
            self.names.append(name)
        return function(*args, **(kwargs or {}))
