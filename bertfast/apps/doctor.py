"""What this machine runs: versions, instruction sets, and for each op the backend it takes and why
not another.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bertfast import __version__, openmp, processor
from bertfast.kernels import dispatch, products
from bertfast.kernels.triton_compat import HAS_TRITON

PACKAGES = ("torch", "triton", "numpy", "tokenizers", "safetensors", "transformers", "tensorboard")
# What is there only with an extra, and what for.
EXTRAS = {
    "transformers": ("hf", "models of transformers in place"),
    "tensorboard": ("train", "TensorBoard's events"),
}
HEAD_DIM = 64  # of the attention that is asked about


def report() -> dict[str, Any]:
    """The facts, as plain JSON values."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    missing = dispatch.NO_EXTENSION or dispatch.ISA_ERROR
    return {
        "machine": {
            "system": platform.platform(),
            "processor": processor.name(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "openmp": _openmp(),
        "versions": {"bertfast": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "missing": _missing(),
        "instruction_sets": {"missing": missing} if missing else dispatch._C.capabilities(),
        "products": products.describe(),
        "ops": [
            _choice(op, device, dtype)
            for device in devices
            for op in dispatch.OPS
            for dtype in dispatch.DTYPES
        ],
    }


def _openmp() -> dict[str, Any]:
    """How this process's threads wait and how many they are, who said so, and what to do."""
    found, threads = openmp.report(), torch.get_num_threads()
    given = found["environment"].get("OMP_NUM_THREADS")
    if given == str(threads):
        by = "OMP_NUM_THREADS in the environment"
    else:
        by = "one a core" if threads == usable_cores() else "torch.set_num_threads"
    return {
        "runtime": found["runtime"],
        "loaded from": found["loaded"],
        "threads": threads,
        "threads set by": by,
        "at a region's end": found["waiting"],
        "waiting set by": found["set_by"],
        "to do": found["advice"],
    }


def _missing() -> dict[str, str]:
    """What is not there, and what to do to have it."""
    found = {}
    if torch.cuda.is_available() and not HAS_TRITON:
        found["triton"] = "pip install 'bertfast[gpu]', for the kernels on the GPU"
    if dispatch.NO_EXTENSION:
        found["C++ kernels"] = "install a C++ compiler such as g++, then bertfast again"
    for package, (extra, purpose) in EXTRAS.items():
        if _version(package) is None:
            found[package] = f"pip install 'bertfast[{extra}]', for {purpose}"
    return found


def usable_cores() -> int:
    """How many cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _choice(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    try:
        taken, reasons = dispatch.explain(op, device, dtype, HEAD_DIM)
    except dispatch.BackendError as error:
        taken, reasons = None, {}
        for backend in dispatch.BACKENDS:
            against = dispatch.reasons_against(backend, op, device, dtype, HEAD_DIM)
            reasons[backend] = "; ".join(against) or str(error)
    return {
        "op": op,
        "device": device.type,
        "dtype": dispatch.dtype_name(dtype),
        "backend": taken,
        "reasons": reasons,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(facts: dict[str, Any]) -> None:
    """Prints the facts as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="bertfast doctor", show_header=False, title_justify="left")
    for part in ("machine", "openmp", "versions", "missing", "instruction_sets", "products"):
        for name, value in facts[part].items():
            shown = (
                ", ".join(value)
                if isinstance(value, list)
                else ("not there" if value is None else str(value))
            )
            table.add_row(part.replace("_", " "), name, escape(shown))
        table.add_section()
    console.print(table)
    table = Table(
        title="which backend each op takes, and why not the others",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("ops", no_wrap=True)
    for heading in ("device", "dtypes", "takes", "others"):
        table.add_column(heading, overflow="fold")
    for (device, dtypes, backend, others), ops in _alike(facts["ops"]).items():
        table.add_row("\n".join(ops), device, "\n".join(dtypes), backend, escape(others))
    console.print(table)


def _alike(rows: list[dict[str, Any]]) -> dict[tuple[str, tuple[str, ...], str, str], list[str]]:
    """The ops by device, dtypes, backend and reasons: what many share is said once."""
    dtypes: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        others = "\n".join(f"{name}: {why}" for name, why in row["reasons"].items())
        dtypes.setdefault((row["op"], row["device"], row["backend"] or "none", others), []).append(
            row["dtype"]
        )
    ops: dict[tuple[str, tuple[str, ...], str, str], list[str]] = {}
    for (op, device, backend, others), names in dtypes.items():
        ops.setdefault((device, tuple(names), backend, others), []).append(op)
    return ops
