"""What the Triton kernels need of each GPU generation, from the compiler alone: ``python -m
bertfast.kernels.resources``.

Every kernel that computes is compiled ahead of time for sm_80, sm_90 and sm_100, with no GPU, at
the block sizes it is launched with. The report gives registers, spills and shared memory from the
binary, and the tensor-core instructions from its PTX. The disassembly gives the instructions of the
inner loop by pipe, with the clocks that they take at the least (`throughput.py`).

Instructions are those that a scheduler issues for a piece of work, so that tiles, warps and
unrolling of any number compare. They are those of a warp in a round of the loop. They are
multiplied by the warps over the multiprocessor's four schedulers, and divided by the pieces that
the program's warps do meanwhile. The piece is

- of attention, a tile of 64 queries and 64 keys of one head;
- of the loss, a product of 64 x 64 x 64;
- of a kernel that multiplies nothing, 128 elements, one a thread of each scheduler's warp: what a
  thread runs for one.

Of several inner loops, as of whole and of masked tiles, the one that takes the fewest instructions
counts. Where a kernel has no loop its whole code does.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import dispatch, throughput, tuning
from .disassembly import Code, Instruction, parse
from .launch import Launch

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
# Products of a tile: of scores, and of what is made with them.
PRODUCTS = {
    "_forward_kernel": 2,
    "_query_gradient_kernel": 3,
    "_key_gradient_kernel": 4,
    ONE_PASS: 5,
}
# The rows of a head that a round of the loop loads: how many tensors, and the block they are of.
LOADED = {
    "_forward_kernel": (2, "BLOCK_N"),
    "_query_gradient_kernel": (2, "BLOCK_N"),
    "_key_gradient_kernel": (2, "BLOCK_M"),
    ONE_PASS: (3, "BLOCK_M"),
}
SIDE = 64  # of the piece of work that a kernel with products is counted by
# Arguments that are multiples of 16 at a launch, as addresses are.
ALIGNED = {
    "features",
    "hidden",
    "head_dim",
    "half",
    "token_stride",
    "head_stride",
    "q_t",
    "q_h",
    "k_t",
    "k_h",
    "stride",
}
# The memory-bound kernels at BERT-base's width, with dropout, bias and every table. Each has its
# op, its constants at a launch, and the name under which `tuning` has the others.
WIDTH = 1024
ROW = {"DROPOUT": True, "ALIGNED": True, "PIECES": 3, "COLUMNS": 256}
NORM = ROW | {"X_BIAS": True, "RESIDUAL": True, "PRENORM": True, "RMS": False}
EMBED = ROW | {"POSITION": True, "SEGMENT": True, "ROWS": 2, "num_warps": 4}
RUNS = {"RUN": 16, "COLUMNS": 256}
GELU = {"BIAS": True, "TANH": False}
LOSS = {"HAS_BIAS": True, "GRADIENT": True, "SCALE_BY_ROW": False}
ROW_KERNELS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "_adamw_kernel": ("adamw", {"COPY": True, "ALIGNED": True}, "adamw.update"),
    "_dropout_kernel": ("dropout", {"COUNTERS": 128}, None),
    "_embed_backward_kernel": ("embed", EMBED | {"SEGMENTS": 2}, None),
    "_embed_forward_kernel": ("embed", EMBED | {"BIAS": True}, None),
    "_gelu_backward_kernel": ("bias_gelu", GELU | {"ROWS": 64}, "bias_gelu.backward"),
    "_gelu_forward_kernel": ("bias_gelu", GELU, "bias_gelu.forward"),
    "_norm_kernel": ("adamw", {"BLOCK": 4096, "num_warps": 16}, None),
    "_squares_kernel": ("adamw", {"ALIGNED": True, "BLOCK": 4096, "num_warps": 8}, None),
    "_norm_backward_kernel": ("add_layer_norm", NORM, "add_layer_norm.backward"),
    "_norm_forward_kernel": ("add_layer_norm", NORM | {"BIAS": True}, "add_layer_norm.forward"),
    "_rows_kernel": ("linear_cross_entropy", LOSS, "linear_cross_entropy.rows"),
    "_scale_kernel": ("linear_cross_entropy", {"BLOCK": 2048, "num_warps": 8}, None),
    "_rotary_kernel": ("rotary", {"INVERSE": True, "ROWS": 32, "COLUMNS": 32}, None),
    "_sum_runs_kernel": ("embed", RUNS, None),
    "_add_runs_kernel": ("embed", RUNS, None),
    "_sum_positions_kernel": ("embed", {"SEQUENCES": 8, "SCAN": 128, "COLUMNS": 256}, None),
    "_sum_partials_kernel": ("layer_norm_triton", {"ROWS": 32, "COLUMNS": 32}, None),
}
# Bytes that a kernel stores for each of its elements, over those of one; AdamW's tensors differ.
STORED = {
    "_dropout_kernel": 1,
    "_embed_backward_kernel": 1,
    "_embed_forward_kernel": 1,
    "_gelu_backward_kernel": 1,
    "_gelu_forward_kernel": 1,
    "_norm_backward_kernel": 2,
    "_norm_forward_kernel": 2,
    "_rotary_kernel": 1,
    "_rows_kernel": 1,
    "_scale_kernel": 1,
}
ADAMW_STORED = 3 * 4 + 2  # the weight and both moments in float32, and the copy
TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)")
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
POINTERS = TYPES | {
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}


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
    gated: bool
    piece: str
    work: throughput.Bound


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
    gated: bool = False


def cases(
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32),
) -> Iterator[Case]:
    """Every kernel that computes, at each dtype; attention at the head sizes that differ to the
    compiler.
    """
    for capability in CAPABILITIES:
        for dtype in dtypes:
            for kernel, (op, _, _) in ROW_KERNELS.items():
                yield Case(kernel, dtype, None, True, capability)
                if op == "bias_gelu":
                    yield Case(kernel, dtype, None, True, capability, gated=True)
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
    require_compiler()
    with tuning.target(case.capability):
        function, constants, options = _specialised(case)
    signature = {
        name: "constexpr" if name in constants else _argument_type(case.kernel, name, case.dtype)
        for name in function.arg_names
    }
    unaligned = {x.name for x in function.params if x.do_not_specialize_on_alignment}
    places = {
        (function.arg_names.index(name), *path)
        for name, kind in signature.items()
        if name not in unaligned and name not in constants
        for path in _aligned(name, kind)
    }
    constexprs: dict[tuple[int, ...], Any] = {
        (function.arg_names.index(name),): value for name, value in constants.items()
    }
    compiled = _compile(function, signature, constexprs, places, options, case.capability)
    registers, spills = _usage(compiled.asm["cubin"])
    code = Compiled(disassemble(compiled.asm["cubin"]), compiled.metadata.num_warps)
    piece, work = piece_of(case.kernel, constants, case.dtype.itemsize, code, case.capability)
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
        gated=case.gated,
        piece=piece,
        work=work,
    )


def _compile(
    function: Any,
    signature: dict[str, Any],
    constexprs: dict[tuple[int, ...], Any],
    aligned: set[tuple[int, ...]],
    options: dict[str, int],
    capability: int,
) -> Any:
    """A kernel compiled ahead of time; Triton's own cache keeps it.

    Args:
        function: of `triton.jit`.
        signature: type of each argument by name; "constexpr" of a constant.
        constexprs: the constants, by their places.
        aligned: places of the arguments that are multiples of 16.
        options: warps and stages.
        capability: 80, 90 or 100.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {place: [["tt.divisibility", 16]] for place in sorted(aligned)}
    source = ASTSource(function, signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass(frozen=True)
class Compiled:
    """A kernel's code, and the warps of a program."""

    code: Code
    warps: int


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """A recorded launch, compiled as Triton would for its arguments, whose tensors may be on the
    meta device; once for all launches of one form.

    Raises:
        BackendError: Triton is not installed, or runs as its interpreter.
    """
    require_compiler()
    return _of_form(_form(launch), capability)


@cache
def _of_form(form: tuple[Any, ...], capability: int) -> Compiled:
    function, signature, constexprs, aligned, options = form
    compiled = _compile(
        function, dict(signature), dict(constexprs), set(aligned), dict(options), capability
    )
    return Compiled(disassemble(compiled.asm["cubin"]), compiled.metadata.num_warps)


def require_compiler() -> None:
    """Raises BackendError where Triton is not installed, or runs as its interpreter."""
    from .triton_compat import HAS_TRITON, INTERPRETED

    if not HAS_TRITON or INTERPRETED:
        raise dispatch.BackendError("compiling needs Triton, with TRITON_INTERPRET unset")


def _form(launch: Launch) -> tuple[Any, ...]:
    """What a launch is compiled for, so that equal ones share a binary.

    It is the function, and as pairs its signature and constants, the places of aligned arguments,
    and the launch options.
    """
    function = launch.kernel
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    aligned: set[tuple[int, ...]] = set()
    for place, (parameter, value) in enumerate(
        zip(function.params, launch.arguments, strict=False)
    ):
        specialised = not parameter.do_not_specialize
        alignment = specialised and not parameter.do_not_specialize_on_alignment
        signature[parameter.name] = _kind(
            value, (place,), specialised, alignment, constexprs, aligned
        )
    options = dict(launch.constants)
    for place, parameter in enumerate(function.params):
        if parameter.name in options:
            constexprs[place,] = options.pop(parameter.name)
        if parameter.name not in signature:
            signature[parameter.name] = "constexpr"
    return (
        function,
        tuple(signature.items()),
        tuple(constexprs.items()),
        tuple(sorted(aligned)),
        tuple(options.items()),
    )


def _kind(
    value: Any,
    place: tuple[int, ...],
    specialised: bool,
    alignment: bool,
    constexprs: dict[tuple[int, ...], Any],
    aligned: set[tuple[int, ...]],
) -> Any:
    """The type of a launch's argument as signatures have it; what is known of its value goes to
    ``constexprs`` and ``aligned``.
    """
    if isinstance(value, tuple):
        parts = [
            _kind(part, (*place, index), specialised, alignment, constexprs, aligned)
            for index, part in enumerate(value)
        ]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if value is None or (specialised and type(value) is int and value == 1):
        constexprs[place] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        if alignment and value.storage_offset() * value.itemsize % 16 == 0:
            aligned.add(place)
        return f"*{POINTERS[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, float):
        return "fp32"
    if alignment and value % 16 == 0:
        aligned.add(place)
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def piece_of(
    kernel: str, constants: dict[str, Any], itemsize: int, compiled: Compiled, capability: int
) -> tuple[str, throughput.Bound]:
    """The piece of work that a kernel's inner loop is counted for, in words, and its bound.

    Args:
        kernel: its name.
        constants: of the launch.
        itemsize: of the elements that it reads.
        compiled: its code.
        capability: that it was compiled for.
    """
    code, warps = compiled.code, compiled.warps
    if kernel in PRODUCTS:
        area, depth = constants["BLOCK_M"] * constants["BLOCK_N"], constants["BLOCK_D"]
        tensors, block = LOADED[kernel]
        bytes_ = tensors * constants[block] * depth * itemsize
        products = depth * PRODUCTS[kernel]
        work = _of_products(code, capability, warps, area * products, SIDE**2 * products, bytes_)
        return f"{SIDE} x {SIDE} tile", work
    instructions = inner_loop(code)
    stored = ADAMW_STORED if kernel == "_adamw_kernel" else STORED.get(kernel, 0) * itemsize
    elements = throughput.stored_bytes(instructions) / stored if stored else 0
    if not elements:
        return "round", throughput.bound(instructions, capability, 1.0)
    return "element", throughput.bound(instructions, capability, 1 / elements)


def _of_products(
    code: Code, capability: int, warps: int, piece: int, wanted: int, loaded: int
) -> throughput.Bound:
    """The bound of ``wanted`` multiply-adds in the cheapest loop.

    Args:
        code: of the kernel.
        capability: that it was compiled for.
        warps: of a program.
        piece: multiply-adds that a program needs for one tile.
        wanted: multiply-adds of the piece of work.
        loaded: bytes that a program loads for one tile. They tell how many tiles a round of an
            unrolled loop makes. Products alone do not, for warps may repeat one another's. Bytes
            alone do not either, for those of the rows' sums come on top.
    """
    found = []
    for instructions in product_loops(code):
        bytes_ = throughput.loaded_bytes(instructions) * throughput.WARP * warps
        made = throughput.multiply_adds(instructions, warps)
        tiles = round(bytes_ / loaded)
        tiles = max(1, min(tiles, made // piece) if made else tiles)
        made = made or tiles * piece
        share = wanted / (tiles * piece)
        scale = warps / throughput.SCHEDULERS * share
        found.append(throughput.bound(instructions, capability, scale, wanted, made * share))
    return min(found, key=lambda work: work.issued)


def disassemble(cubin: bytes) -> Code:
    """A binary's code."""
    return parse(_tool("nvdisasm", "-c", cubin))


def product_loops(code: Code) -> list[Sequence[Instruction]]:
    """The loops with tensor instructions that hold no other such; the longest innermost one where
    there is none.
    """
    loops = [x for x in code.loops if any(y.pipe == "tensor" for y in x.instructions)]
    loops = [x for x in loops if not any(y.addresses < x.addresses for y in loops)]
    return [x.instructions for x in loops] or [inner_loop(code)]


def inner_loop(code: Code) -> Sequence[Instruction]:
    """The longest loop that holds no other; all of the code where there is none."""
    loops = [x.instructions for x in code.innermost]
    return max(loops, key=len, default=code.instructions)


def _attention(name: str) -> Any:
    """A module of the attention, which the function of that name hides."""
    return import_module(f"bertfast.kernels.attention.{name}")


def _one_pass_options(
    dtype: torch.dtype, head_dim: int, capability: int, length: int
) -> list[dict[str, Any]]:
    q = torch.empty(0, 1, head_dim, dtype=dtype)
    module = _attention("backward_one_pass")
    found: list[dict[str, Any]] = module.one_pass_options(q, length, divmod(capability, 10))
    return [options for options in found if options["BLOCK_N"] == length]


def _specialised(case: Case) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """The function, its constants and its launch options, from the code that launches it."""
    if case.kernel == TABLES:
        module = _attention("table_gradients")
        return module._table_gradient_kernel, {"SIGN": 1, **module.TILES}, {}
    if case.kernel in ROW_KERNELS:
        name, constants, tuned = ROW_KERNELS[case.kernel]
        settings = dict(constants)
        if name == "bias_gelu":
            settings["GATED"] = case.gated
        if tuned is not None:
            settings |= tuning.options(tuned, case.dtype, torch.device("cpu"), WIDTH)
        settings.pop("PROGRAMS", None)  # of the grid
        options = {"num_warps": settings.pop("num_warps", 4)}
        return getattr(import_module(f"bertfast.kernels.{name}"), case.kernel), settings, options
    assert case.head_dim is not None
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
    "table_ptr",
}
INT32 = {"cu_ptr", "gaps_ptr", "list_ptr", "bounds_ptr", "programs_ptr"}
ROWS = {"q", "k", "v", "out", "dout", "dq", "dk", "dv", "ds", "ds_rows", "dtable", "parts"}
FLOAT = {
    *(
        "lse_ptr",
        "sums_ptr",
        "scale_ptr",
        "loss_ptr",
        "factor_ptr",
        "norm_ptr",
        "parts_ptr",
        "part_ptr",
        "mean_ptr",
    ),
    *(
        "rstd_ptr",
        "partial_ptr",
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
        return groups.Dropout("i32", "fp32", "fp32")
    if name == "terms":
        return groups.Terms("*i32", rows.ptr, rows, rows, "i32", "i32")
    if kernel == "_adamw_kernel" and name in ("weight_ptr", "copy_ptr"):
        return "*fp32" if name == "weight_ptr" else "*bf16"
    if name == "correct_ptr":
        return "*u8"
    if name == "order_ptr":  # of distances, or of tokens
        return "*i64" if kernel == "_sum_runs_kernel" else "*i32"
    if name == "ids_ptr" and kernel != "_sum_positions_kernel":
        return "*i16"  # a vocabulary's, narrowed to be sorted
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
    text = _tool("cuobjdump", "-res-usage", cubin)
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers is not None
    assert stack is not None
    return int(registers[1]), int(stack[1])


def _tool(name: str, option: str, cubin: bytes) -> str:
    """What one of the tools in Triton's package prints of a binary."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, option, file.name], capture_output=True, text=True, check=True
        ).stdout


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        "python -m bertfast.kernels.resources",
        description="Compile the Triton kernels with no GPU; print registers, shared memory and "
        "the inner loop's instructions by pipe. Nothing given: every kernel, for minutes.",
    )
    kernels = sorted({case.kernel for case in cases()})
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--kernel", choices=kernels, action="append", metavar="NAME",
                        help=f"only this one; may be repeated: {', '.join(kernels)}")  # fmt: skip
    parser.add_argument("--dtype", choices=[*TYPES.values(), *PRECISIONS.values()])
    parser.add_argument("--head-dim", type=int, choices=(16, 32, 64, 128))
    parser.add_argument("--capability", type=int, choices=CAPABILITIES)
    parser.add_argument("--length", type=int, help="of the one-pass backward's keys")
    for name in ("dropout", "positions", "window", "gated"):
        parser.add_argument(f"--{name}", action=flag, help="default: both")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options leave."""
    wanted: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("head_dim", "capability", "length", "dropout", "positions", "window", "gated")
        if getattr(options, name) is not None
    }
    if options.dtype is not None:
        wanted["dtype"] = getattr(torch, PRECISIONS.get(options.dtype, options.dtype))
    return [
        case
        for case in cases()
        if (options.kernel is None or case.kernel in options.kernel)
        and all(getattr(case, name) == value for name, value in wanted.items())
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, or JSON with ``--json``; the options leave out cases."""
    options = _options(arguments)
    chosen = _chosen(options)
    if not chosen:
        _refuse("no kernel is launched with all of these options; leave one out")
    try:
        require_compiler()
    except dispatch.BackendError as error:
        _refuse(str(error))
    if len(chosen) < 4:
        found = [measure(case) for case in chosen]
    else:
        with ProcessPoolExecutor(2) as pool:
            found = list(pool.map(measure, chosen))
    if options.json:
        print(json.dumps([_record(row) for row in found], indent=1))
        return
    for row in found:
        print(_line(row))


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _record(row: Resources) -> dict[str, Any]:
    """A row as JSON has it, what follows from its bound among it."""
    work = row.work
    more = {"issued": work.issued, "limit": work.limit, "tensor_share": work.tensor_share}
    return asdict(row) | {"work": asdict(work) | more}


def _line(row: Resources) -> str:
    """A row in two lines: the compiler's figures, and the inner loop's."""
    traits = [name for name in ("dropout", "positions", "window", "gated") if getattr(row, name)]
    traits += [] if row.length is None else [f"length {row.length}"]
    shape = " ".join(["", *([] if row.head_dim is None else [str(row.head_dim)]), *traits])
    work = row.work
    pipes = ", ".join(f"{name} {count:.0f}" for name, count in work.instructions.items())
    share = f", at most {work.tensor_share:.0%} of the tensor peak" if work.products else ""
    return (
        f"sm_{row.capability} {row.dtype:>8} {row.kernel + shape:<44} {row.registers:>3} "
        f"registers {row.spills:>4} B spilled {row.shared:>6} of {row.shared_limit} B shared  "
        f"{', '.join(row.tensor_core) or 'no tensor core'}\n"
        f"    a {row.piece}: {work.issued:.0f} instructions ({pipes}), {work.round} a warp in a "
        f"round; at least {work.least:.0f} clocks, by {work.limit}{share}"
    )


if __name__ == "__main__":
    main()
