"""Our side of an op's case: one `Side` for each backend that can serve it here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bertfast import kernels
from bertfast.kernels import dispatch

from .timing import Side


def our_sides(
    op: str, device: str, dtype: torch.dtype, call: Callable[[], tuple[Tensor, ...]], head_dim: int | None = None
) -> list[Side]:
    """The backend that is taken as "ours", then each other one that can run."""
    where = torch.device(device)
    taken = dispatch.select(op, where, dtype, head_dim)
    sides = []
    for backend in sorted(dispatch.BACKENDS, key=lambda name: name != taken):
        # Triton's interpreter is for tests.
        if (backend == "triton" and device != "cuda") or dispatch.reasons_against(backend, op, where, dtype, head_dim):
            continue

        def run(backend: str = backend) -> tuple[Tensor, ...]:
            with kernels.use_backend(backend):
                return call()

        sides.append(Side(f"bertfast {backend}", "ours" if backend == taken else "backend", run, run))
    return sides
