"""What the Triton kernels need of each GPU generation, from the compiler alone: ``python -m
bertfast.kernels.resources``.

Every kernel that computes is compiled ahead of time for sm_80, sm_90 and sm_100, with no GPU, at
the block sizes it is launched with. The report gives registers, spills and shared memory from the
binary, and the tensor-core instructions from its PTX.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch

from . import dispatch, tuning

CAPABILITIES = (80, 90, 100)
# Bytes of shared memory that a block may have. NVIDIA, "CUDA C++ Programming Guide", technical
# specifications.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# The module in `attention` that each of its kernels is in.
ONE_PASS = "_one_pass_kernel"
TABLES = "_table_gradient_kernel"
ATTENTION = {
    "_forward_kernel": "forward",
    "_key_gradient_kernel": "backward_two_passes",
    "_query_gradient_kernel": "backward_two_passes",
}
# Arguments that are multiples of 16 at a launch, as addresses are.
ALIGNED = {"hidden", "head_dim", "half", "token_stride", "head_stride", "q_t", "q_h", "k_t", "k_h"}
# The memory-bound kernels at BERT-base's width, with dropout, bias and every table: the op of each,
# its constants at a launch, and under which name `tuning` has the others.
WIDTH = 1024
ROW = {"DROPOUT": True, "ALIGNED": True, "COLUMNS": WIDTH}
NORM = ROW | {"RESIDUAL": True, "PRENORM": True, "RMS": False}
EMBED = ROW | {"POSITION": True, "SEGMENT": True, "num_warps": 4}
GELU = {"BIAS": True, "TANH": False, "GATED": True}
ROW_KERNELS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "_adamw_kernel": ("adamw", {"COPY": True}, "adamw.update"),
    "_dropout_kernel": ("dropout", {"COUNTERS": 128}, None),
    "_embed_backward_kernel": ("embed", EMBED, None),
    "_embed_forward_kernel": ("embed", EMBED | {"BIAS": True}, None),
    "_gelu_backward_kernel": ("bias_gelu", GELU | {"ROWS": 64}, "bias_gelu.backward"),
    "_gelu_forward_kernel": ("bias_gelu", GELU, "bias_gelu.forward"),
    "_norm_backward_kernel": ("add_layer_norm", NORM, "add_layer_norm.backward"),
    "_norm_forward_kernel": ("add_layer_norm", NORM | {"BIAS": True}, "add_layer_norm.forward"),
    "_rotary_kernel": ("rotary", {"INVERSE": True, "ROWS": 32, "COLUMNS": 32}, None),
    "_sum_runs_kernel": ("embed", {"RUN": 256, "COLUMNS": 256}, None),
    "_add_runs_kernel": ("embed", {"RUN": 256, "COLUMNS": 256}, None),
}
TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)")
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Resources:
    """One kernel on one target; spills and shared memory in bytes."""

    kernel: str
    dtype: str
    head_dim: int | None
    dropout: bool
    capability: int
    registers: int
    spills: int
    shared: int
    shared_limit: int
    tensor_core: tuple[str, ...]
    positions: bool
    window: bool
    length: int | None


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments, and its constants and launch options."""

    kernel: str
    dtype: torch.dtype
    head_dim: int | None
    dropout: bool
    capability: int
    positions: bool = False
    window: bool = False
    length: int | None = None  # that a tile of the kernel holds, where it holds whole sequences


def cases(
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32),
) -> Iterator[Case]:
    """Every kernel that computes, at each dtype; attention at the head sizes that differ to the
    compiler.
    """
    for capability in CAPABILITIES:
        for dtype in dtypes:
            for kernel in ("_statistics_kernel", "_gradient_kernel"):
                yield Case(kernel, dtype, None, False, capability)
            for kernel in ROW_KERNELS:
                yield Case(kernel, dtype, None, True, capability)
            for head_dim in (16, 32, 64, 128):
                for dropout in (False, True):
                    for kernel in ATTENTION:
                        yield Case(kernel, dtype, head_dim, dropout, capability)
                    for length in (64, 128, 256):
                        if _one_pass_options(dtype, head_dim, capability, length):
                            yield Case(
                                ONE_PASS, dtype, head_dim, dropout, capability, length=length
                            )
            # With dropout, which takes the most registers: all tables and their gradients; a
            # window.
            yield Case(
                TABLES,
                dtype,
                None,
                False,
                capability,
                positions=True,
                window=True,
            )
            for head_dim, kernel in product((64, 128), ATTENTION):
                yield Case(kernel, dtype, head_dim, True, capability, positions=True)
                yield Case(kernel, dtype, head_dim, True, capability, window=True)


def measure(case: Case) -> Resources:
    """Compiles one case and reads its resources.

    Raises:
        BackendError: Triton is not installed, or runs as its interpreter.
    """
    from .triton_compat import HAS_TRITON, INTERPRETED

    if not HAS_TRITON or INTERPRETED:
        raise dispatch.BackendError("compiling needs Triton, with TRITON_INTERPRET unset")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with tuning.target(case.capability):
        function, constants, options = _specialised(case)
    signature = {
        name: "constexpr" if name in constants else _argument_type(case.kernel, name, case.dtype)
        for name in function.arg_names
    }
    unaligned = {x.name for x in function.params if x.do_not_specialize_on_alignment}
    source = ASTSource(
        function,
        signature,
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (function.arg_names.index(name), *path): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if name not in unaligned and name not in constants
            for path in _aligned(name, kind)
        },
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", case.capability, 32), options=options
    )
    registers, spills = _usage(compiled.asm["cubin"])
    return Resources(
        kernel=case.kernel.strip("_"),
        dtype=dispatch.dtype_name(case.dtype),
        head_dim=case.head_dim,
        dropout=case.dropout,
        capability=case.capability,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        shared_limit=SHARED_LIMIT[case.capability],
        tensor_core=tuple(sorted(set(TENSOR_CORE.findall(compiled.asm["ptx"])))),
        positions=case.positions,
        window=case.window,
        length=case.length,
    )


def _attention(name: str) -> Any:
    """A module of the attention, which the function of that name hides."""
    return import_module(f"bertfast.kernels.attention.{name}")


def _one_pass_options(
    dtype: torch.dtype, head_dim: int, capability: int, length: int
) -> list[dict[str, Any]]:
    q = torch.empty(0, 1, head_dim, dtype=dtype)
    module = _attention("backward_one_pass")
    found: list[dict[str, Any]] = module.one_pass_options(q, length, divmod(capability, 10))
    return found


def _specialised(case: Case) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """The function, its constants and its launch options, from the code that launches it."""
    if case.kernel == TABLES:
        module = _attention("table_gradients")
        return module._table_gradient_kernel, {"SIGN": 1, **module.TILES}, {}
    if case.kernel in ROW_KERNELS:
        name, constants, tuned = ROW_KERNELS[case.kernel]
        settings = dict(constants)
        if tuned is not None:
            settings |= tuning.options(tuned, case.dtype, torch.device("cpu"), WIDTH)
        settings.pop("PROGRAMS", None)  # of the grid
        options = {"num_warps": settings.pop("num_warps", 4)}
        return getattr(import_module(f"bertfast.kernels.{name}"), case.kernel), settings, options
    if case.head_dim is None:
        module = import_module("bertfast.kernels.linear_cross_entropy")
        kernel = case.kernel.removeprefix("_").removesuffix("_kernel")
        settings = module._tile_options(kernel, torch.empty(0, 0, dtype=case.dtype), torch.empty(0))
    else:
        if case.kernel == ONE_PASS:
            assert case.length is not None
            module = _attention("backward_one_pass")
            found = _one_pass_options(case.dtype, case.head_dim, case.capability, case.length)
            settings = dict(found[-1])
        else:
            module = _attention(ATTENTION[case.kernel])
            q = torch.empty(0, 1, case.head_dim, dtype=case.dtype)
            kernel = case.kernel.removeprefix("_").removesuffix("_kernel")
            settings = dict(_attention("tiles").options(q, kernel, case.positions))
        # What a launch leaves out is None.
        absent = {
            "dropout": not case.dropout,
            "terms": not case.positions,
            "ds_rows": not case.positions,
            "window": not case.window,
        }
        names = getattr(module, case.kernel).arg_names
        settings |= {name: None for name in names if absent.get(name)}
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
    return getattr(module, case.kernel), settings, options


INT64 = {
    "seed_ptr",
    "labels_ptr",
    "input_ids_ptr",
    "position_ids_ptr",
    "segment_ids_ptr",
    "ids_ptr",
}
INT32 = {"cu_ptr", "best_ptr", "bounds_ptr"}
ROWS = {"q", "k", "v", "out", "dout", "dq", "dk", "dv", "ds", "ds_rows", "dtable", "parts"}
FLOAT = {
    *(
        "lse_ptr",
        "delta_ptr",
        "scale_ptr",
        "max_ptr",
        "sum_ptr",
        "total_ptr",
        "at_label_ptr",
        "part_ptr",
        "mean_ptr",
    ),
    *(
        "rstd_ptr",
        "partial_ptr",
        "dsum_ptr",
        "rows_ptr",
        "runs_ptr",
        "square_ptr",
        "rates_ptr",
        "cos_ptr",
        "sin_ptr",
    ),
}
FLOAT_SCALARS = {
    "scale",
    "keep_scale",
    "smoothing",
    "z_loss",
    "eps",
    "beta1",
    "beta2",
    "weight_decay",
}


def _aligned(name: str, kind: Any) -> Iterator[tuple[int, ...]]:
    """The paths to an argument's parts that are multiples of 16; the empty one is to itself."""
    if isinstance(kind, tuple):
        for index, part in enumerate(kind._fields):  # type: ignore[attr-defined]
            yield from ((index, *path) for path in _aligned(part, kind[index]))
    elif name in ALIGNED or kind.startswith("*"):
        yield ()


def _argument_type(kernel: str, name: str, dtype: torch.dtype) -> Any:
    """The type of an argument, or a tuple of types where that is one."""
    groups = _attention("tiles")
    rows = groups.Rows(f"*{TYPES[dtype]}", "i32", "i32")
    if name in ROWS:
        return rows._replace(ptr="*fp32") if name == "parts" else rows
    if name == "dropout":
        return groups.Dropout("i32", "fp32")
    if name == "terms":
        return groups.Terms("*i32", rows.ptr, rows, rows, "i32", "i32")
    if kernel == "_adamw_kernel" and name in ("weight_ptr", "copy_ptr"):
        return "*fp32" if name == "weight_ptr" else "*bf16"
    if name == "order_ptr":  # of distances, or of tokens
        return "*i64" if kernel == "_sum_runs_kernel" else "*i32"
    for names, kind in (
        (INT64, "*i64"),
        (INT32, "*i32"),
        (FLOAT, "*fp32"),
        (FLOAT_SCALARS, "fp32"),
    ):
        if name in names:
            return kind
    return f"*{TYPES[dtype]}" if name.endswith("_ptr") else "i32"


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of spills, from the binary's own record."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers is not None
    assert stack is not None
    return int(registers[1]), int(stack[1])


def main(arguments: list[str]) -> None:
    """Prints a table, or JSON with ``--json``; ``--dtype NAME`` keeps to one dtype."""
    dtypes: tuple[torch.dtype, ...] = tuple(TYPES)
    if "--dtype" in arguments:
        dtypes = (getattr(torch, arguments[arguments.index("--dtype") + 1]),)
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(measure, cases(dtypes)))
    if "--json" in arguments:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    for row in found:
        traits = [name for name in ("dropout", "positions", "window") if getattr(row, name)]
        traits += [] if row.length is None else [f"length {row.length}"]
        shape = "" if row.head_dim is None else " ".join(["", str(row.head_dim), *traits])
        print(
            f"sm_{row.capability} {row.dtype:>8} {row.kernel + shape:<44} {row.registers:>3} "
            f"registers {row.spills:>4} B spilled {row.shared:>6} of {row.shared_limit} B shared  "
            f"{', '.join(row.tensor_core) or 'no tensor core'}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
