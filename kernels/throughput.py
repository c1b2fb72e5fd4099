"""The least clocks that a kernel's instructions take on a multiprocessor, by pipe.

They are a bound from the counts, which knows of no latency, no bank conflict and no memory.

A multiprocessor has four schedulers. Each issues an instruction a clock, and has a quarter of each
pipe. An instruction of a warp is 32 results. On a pipe of ``width`` results a clock and
multiprocessor it takes ``4 * 32 / width`` clocks of a scheduler's share.

Source of the widths: NVIDIA, "CUDA C++ Programming Guide", throughput of native arithmetic
instructions. Loads and stores are from NVIDIA, "A100" and "H100 Tensor Core GPU Architecture": 32
units a multiprocessor, of 4 bytes each. Tensor cores are from the dense bfloat16 peak over
multiprocessors and clock. That peak is in the same papers, and of sm_100 in the B200's data sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .disassembly import Instruction, count_pipes

SCHEDULERS, WARP = 4, 32
# Results a clock and multiprocessor, by capability. The pipe "IMAD" is the half of the FMA pipe, on
# sm_80 the whole of it, that multiplies integers and widens float16.
WIDTHS = {
    80: {"FMA": 64, "IMAD": 64, "ALU": 64, "MUFU": 16, "FP64": 32, "load/store": 32},
    90: {"FMA": 128, "IMAD": 64, "ALU": 64, "MUFU": 16, "FP64": 64, "load/store": 32},
    100: {"FMA": 128, "IMAD": 64, "ALU": 64, "MUFU": 16, "FP64": 64, "load/store": 32},
}
# Multiply-adds of bfloat16 a clock and multiprocessor; float8 takes half the clocks, tf32 twice.
TENSOR = {80: 1024, 90: 2048, 100: 4096}
HALF_WIDTH = {"IMAD", "IMUL", "IDP", "HADD2"}
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)$")
_MMA = re.compile(r"(16)(8)(8|16|32)$")
_IDESC = re.compile(r"idesc\[(UR\d+)\]")
_UMOV = re.compile(r"\s*(UR\d+), (0x[0-9a-f]+)")


@dataclass(frozen=True)
class Bound:
    """What a scheduler issues for a piece of work, and the clocks that it takes of each pipe.

    Attributes:
        instructions: by pipe.
        clocks: by pipe, and "issue", all of them at one a clock.
        products: clocks that the piece's products take at the tensor cores' peak; those of
            ``clocks`` are more where warps repeat one another's.
        round: instructions that a warp runs in a round of the loop.
    """

    instructions: dict[str, float]
    clocks: dict[str, float]
    products: float
    round: int

    @property
    def issued(self) -> float:
        """All instructions."""
        return self.clocks["issue"]

    @property
    def limit(self) -> str:
        """What takes longest."""
        return max(self.clocks, key=self.clocks.__getitem__)

    @property
    def least(self) -> float:
        """The clocks of what takes longest."""
        return self.clocks[self.limit]

    @property
    def tensor_share(self) -> float:
        """The share of the tensor cores' peak that the bound leaves possible."""
        return self.products / self.least if self.least else 0.0


def bound(
    instructions: Iterable[Instruction],
    capability: int,
    scale: float,
    products: float = 0.0,
    made: float | None = None,
) -> Bound:
    """The bound of a piece of work.

    Args:
        instructions: that a warp runs.
        capability: 80, 90 or 100.
        scale: instructions of a scheduler for the piece, over those in ``instructions``.
        products: multiply-adds of the piece.
        made: those that the tensor cores do for it; None for no more.
    """
    listed = list(instructions)
    widths = WIDTHS[capability]
    counts = {name: number * scale for name, number in count_pipes(listed).items()}
    per_result = SCHEDULERS * WARP * scale
    tensor = products if made is None else made
    clocks = {"issue": sum(counts.values()), "tensor": tensor / TENSOR[capability]}
    for pipe in ("MUFU", "FMA", "FP64", "ALU"):
        clocks[pipe] = counts.get(pipe, 0.0) * SCHEDULERS * WARP / widths[pipe]
    half = sum(x.opcode in HALF_WIDTH for x in listed)
    clocks["FMA"] = max(clocks["FMA"], half * per_result / widths["IMAD"])
    words = sum(_words(x) for x in listed if x.pipe == "load/store")
    clocks["load/store"] = words * per_result / widths["load/store"]
    return Bound(counts, clocks, products / TENSOR[capability], len(listed))


def multiply_adds(instructions: Iterable[Instruction], warps: int) -> int:
    """The multiply-adds of the tensor instructions of a program of so many warps.

    All warps run the same code. On sm_100 one thread starts a product of the whole program, whose
    shape is in a descriptor.
    """
    total = 0
    registers: dict[str, int] = {}
    for x in instructions:
        if x.opcode == "UMOV" and (found := _UMOV.match(x.operands)):
            registers[found[1]] = int(found[2], 16)
        if x.pipe != "tensor":
            continue
        if x.opcode.startswith("UTC"):
            register = _IDESC.search(x.operands)
            descriptor = registers.get(register[1], 0) if register else 0
            rows, columns = (descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8
            total += rows * columns * 16
        else:
            total += _of_shape(x) * warps
    return total


def loaded_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes a thread that are loaded from global memory."""
    return sum(_bytes(x) for x in instructions if x.opcode in ("LDG", "LD", "LDGSTS"))


def stored_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes a thread that are stored to global memory."""
    return sum(_bytes(x) for x in instructions if x.opcode in ("STG", "ST"))


def _of_shape(x: Instruction) -> int:
    """Multiply-adds of one warp: ``HMMA.16816`` is 16 x 8 x 16, ``HGMMA.64x128x16`` four warps'."""
    for modifier in x.modifiers:
        if found := _SHAPE.match(modifier):
            rows, columns, inner = map(int, found.groups())
            return rows * columns * inner // SCHEDULERS
        if found := _MMA.match(modifier):
            rows, columns, inner = map(int, found.groups())
            return rows * columns * inner
    return 0


def _words(x: Instruction) -> int:
    """The 4-byte words a lane that a load or store moves; of matrices each of 8 x 8 is one."""
    if "M88" in x.modifiers:
        return next((int(count) for count in x.modifiers if count in ("2", "4")), 1)
    return max(1, _bytes(x) // 4)


def _bytes(x: Instruction) -> int:
    """The bytes a lane of a load or store."""
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[name] for name in x.modifiers if name in sizes), 4)
