"""Instructions of a compiled kernel by pipe, and the loop that it spends its time in, from the text
of ``nvdisasm``.

A loop is a natural one (Aho et al., "Compilers", section 9.6), found by a back edge, whose target
dominates its source. It consists of the blocks from which that edge is reached without passing its
target. Both sides of a branch inside count, as do instructions whose predicate is false: each takes
an issue slot of some warp.

Sources: NVIDIA, "CUDA Binary Utilities", instruction set reference; NVIDIA, "Nsight Compute,
Profiling Guide", pipelines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

# Which pipe runs an opcode, the part before its first dot: the first that matches.
PIPES = {
    "tensor": r"[HIDQO]G?MMA|UTC[HIQO]MMA",
    "MUFU": r"MUFU|F2F|F2I|I2F|FRND|POPC|FLO|BREV",
    "FMA": (
        r"FFMA2?|FMUL2?|FADD2?|FH(FMA|ADD)|F(FMA|MUL|ADD)32I|FSWZADD|IMAD|IMUL|IDP"
        r"|H(FMA|MUL|ADD)2"
    ),
    "FP64": r"D(FMA|MUL|ADD|SETP)",
    "ALU": (
        r"IADD3?|IADD32I|IABS|I(SETP|MNMX)|VIADD|VI(MNMX3?|ADDMNMX)|VABSDIFF4?|P?LOP3|LOP32I"
        r"|SHF|SHL|SHR|LEA|F?SEL|F(MNMX3?|SETP|SET|CHK)|H(SETP|SET|MNMX)2|PRMT|MOV|MOV32I|SGXT"
        r"|BMSK|F2FP|I2FP|F2IP|I2IP|P2R|R2P|CS2R|VOTE|PSETP"
    ),
    "load/store": (
        r"LD|LD[GSLCT]|LDSM|LDGSTS|LDTM|ST|ST[GSL]|STSM|STTM|STAS|ATOM[GS]?|RED|REDG|REDAS|SHFL"
        r"|CCTL[LT]?|MATCH|UTMA(?!CMDFLUSH)\w+|UBLK\w+"
    ),
    "control": (
        r"BRA|BRXU?|JMP|JMXU?|EXIT|RET|CALL|BREAK|BSSY|BSYNC|BMOV|BPT|BAR|B2R|R2B|WARPSYNC|KILL"
        r"|WARPGROUP|YIELD|NOP|NANOSLEEP|DEPBAR|LDGDEPBAR|LDTM?DEPBAR|ARRIVES|SYNCS|FENCE|MEMBAR"
        r"|ERRBAR|CGAERRBAR|S2R|UTCBAR|UTCATOMSWS|UTCCP|ACQBULK|PREEXIT|USETMAXREG|UTMACMDFLUSH"
        r"|ENDCOLLECTIVE|LEPC"
    ),
    "uniform": r"U\w+|R2UR|S2UR|LDCU|VOTEU|ELECT|C?REDUX",
}
_PIPE = [(name, re.compile(f"(?:{pattern})$")) for name, pattern in PIPES.items()]
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)([^;]*);"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_JUMPS = {"BRA", "JMP", "BRX", "JMX", "BRXU", "JMXU"}
_ENDS = {"EXIT", "RET", "KILL"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!P0 HMMA.16816.F32.BF16 R4, ...`` has the opcode HMMA and the modifiers
    16816, F32 and BF16.
    """

    address: int
    guard: str | None
    opcode: str
    modifiers: tuple[str, ...]
    operands: str

    @property
    def pipe(self) -> str:
        """A name in `PIPES`, or "other"."""
        return next((name for name, known in _PIPE if known.match(self.opcode)), "other")

    @property
    def target(self) -> str | None:
        """The label that it may jump to."""
        found = _TARGET.search(self.operands) if self.opcode in _JUMPS else None
        return found[1] if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction can follow it."""
        if self.guard is not None or self.opcode not in _JUMPS | _ENDS:
            return True
        # A predicate among the operands, or lanes that part, make a jump conditional as well.
        return self.opcode == "BRA" and not self.operands.strip().startswith("`(")


@dataclass(frozen=True)
class Loop:
    """The instructions of a natural loop, by address."""

    header: int
    instructions: tuple[Instruction, ...]

    @cached_property
    def addresses(self) -> frozenset[int]:
        """Of its instructions."""
        return frozenset(instruction.address for instruction in self.instructions)

    @property
    def waits(self) -> bool:
        """Whether it only waits for a barrier."""
        return all(x.pipe in ("control", "uniform") for x in self.instructions)


@dataclass(frozen=True)
class Code:
    """A kernel: what can be reached from its entry, and its loops."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    @property
    def innermost(self) -> list[Loop]:
        """The loops that hold no other one but such as wait."""
        busy = [loop for loop in self.loops if not loop.waits]
        return [x for x in busy if not any(y.addresses < x.addresses for y in busy)]

    @property
    def outside(self) -> list[Instruction]:
        """The instructions in no loop but such as wait."""
        inside = set().union(*(loop.addresses for loop in self.loops if not loop.waits))
        return [x for x in self.instructions if x.address not in inside]


def count_pipes(instructions: Iterable[Instruction]) -> dict[str, int]:
    """How many instructions each pipe runs."""
    found = Counter(instruction.pipe for instruction in instructions)
    return {name: found[name] for name in (*PIPES, "other") if found[name]}


def parse(text: str) -> Code:
    """Reads the output of ``nvdisasm`` for a binary with one kernel.

    Raises:
        ValueError: there is no instruction in it.
    """
    labels: dict[str, int] = {}
    listed: list[Instruction] = []
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(listed)
        elif found := _INSTRUCTION.search(line):
            address, guard, opcode, modifiers, operands = found.groups()
            listed.append(
                Instruction(
                    int(address, 16), guard, opcode, tuple(modifiers.split(".")[1:]), operands
                )
            )
    if not listed:
        raise ValueError("the disassembly holds no instruction; give it what nvdisasm -c prints")
    return _structure(listed, labels)


def _structure(listed: list[Instruction], labels: dict[str, int]) -> Code:
    """Blocks, what follows each, and the natural loops."""
    starts = {0, *(place for place in labels.values() if place < len(listed))}
    for place, instruction in enumerate(listed[:-1]):
        if instruction.opcode in _JUMPS | _ENDS:
            starts.add(place + 1)
    ordered = sorted(starts)
    ends = dict(zip(ordered, [*ordered[1:], len(listed)], strict=True))
    follows: dict[int, list[int]] = {}
    for start, end in ends.items():
        last = listed[end - 1]
        follows[start] = [end] if last.falls_through and end in ends else []
        if last.target is not None and labels.get(last.target, len(listed)) in ends:
            follows[start].append(labels[last.target])
    reached = _reachable(0, follows)
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for successor in follows[block]:
            before[successor].append(block)
    dominators = _dominators(reached, before)
    bodies: dict[int, set[int]] = {}
    for block in reached:
        for header in follows[block]:
            if header in dominators[block]:
                body = bodies.setdefault(header, {header})
                pending = [block]
                while pending:
                    member = pending.pop()
                    if member not in body:
                        body.add(member)
                        pending += before[member]

    def instructions_of(blocks: Iterable[int]) -> tuple[Instruction, ...]:
        return tuple(x for block in sorted(blocks) for x in listed[block : ends[block]])

    loops = [
        Loop(listed[header].address, instructions_of(body))
        for header, body in sorted(bodies.items())
    ]
    return Code(instructions_of(reached), tuple(loops))


def _reachable(entry: int, follows: dict[int, list[int]]) -> list[int]:
    """The blocks that control can reach, each before what only follows it, but for loops."""
    seen: set[int] = set()
    finished: list[int] = []
    pending: list[tuple[int, bool]] = [(entry, False)]
    while pending:
        block, done = pending.pop()
        if done:
            finished.append(block)
        elif block not in seen:
            seen.add(block)
            pending.append((block, True))
            pending += [(successor, False) for successor in follows[block]]
    return finished[::-1]


def _dominators(reached: list[int], before: dict[int, list[int]]) -> dict[int, set[int]]:
    """Of each block the blocks that every way to it passes, itself among them; ``before`` has what
    each can follow.
    """
    everything = set(reached)
    found = {block: set(everything) for block in reached}
    found[reached[0]] = {reached[0]}
    changed = True
    while changed:
        changed = False
        for block in reached[1:]:
            through = {block}.union(set.intersection(*(found[x] for x in before[block])))
            if through != found[block]:
                found[block] = through
                changed = True
    return found
