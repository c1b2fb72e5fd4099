"""Instructions by pipe and loops, from a disassembly written by hand: every count is known."""

import pytest

from bertfast.kernels.disassembly import Code, parse
from bertfast.kernels.throughput import bound, loaded_bytes, multiply_adds, stored_bytes

# A loop from .L_x_1 to the last branch, with a branch inside, and a shorter one that waits for a
# barrier. Behind the exit is a block that the loop jumps to and from.
HOPPER = """
	.section	.text._forward_kernel,"ax",@progbits
.text._forward_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0020*/              @P0 EXIT ;
        /*0030*/                   UMOV UR4, 0x40 ;
.L_x_1:
        /*0040*/                   WARPGROUP.ARRIVE ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
.L_x_2:
        /*0070*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2 ;
        /*0080*/             @!P1 BRA `(.L_x_2) ;
        /*0090*/                   FFMA R2, R24, R3, -R4 ;
        /*00a0*/                   MUFU.EX2 R2, R2 ;
        /*00b0*/                   IMAD.WIDE.U32 R4, R2, R3, RZ ;
        /*00c0*/                   LOP3.LUT R4, R4, R5, RZ, 0x3c, !PT ;
        /*00d0*/              @P2 BRA `(.L_x_4) ;
        /*00e0*/                   FADD R6, R6, R2 ;
.L_x_3:
        /*00f0*/                   LDS.128 R8, [R9] ;
        /*0100*/                   LDSM.16.M88.4 R8, [R9+UR4] ;
        /*0110*/             @!P0 BRA `(.L_x_1) ;
        /*0120*/                   STG.E.64 desc[UR6][R2.64], R4 ;
        /*0130*/                   EXIT ;
.L_x_4:
        /*0140*/                   F2FP.BF16.F32.PACK_AB R2, R3, R2 ;
        /*0150*/                   BRA `(.L_x_3) ;
.L_x_5:
        /*0160*/                   BRA `(.L_x_5);
        /*0170*/                   NOP;
"""
STRAIGHT = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   FMUL R4, R4, R5 ;
        /*0020*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0030*/                   STG.E.U16 desc[UR4][R2.64+0x40], R4 ;
        /*0040*/                   EXIT ;
.L_x_0:
        /*0050*/                   BRA `(.L_x_0);
"""


@pytest.fixture
def code() -> Code:
    return parse(HOPPER)


def test_what_cannot_be_reached_is_no_part_of_a_kernel(code: Code) -> None:
    assert max(x.address for x in code.instructions) == 0x150
    assert [x.address for x in parse(STRAIGHT).instructions] == [0, 0x10, 0x20, 0x30, 0x40]
    assert parse(STRAIGHT).loops == ()


def test_a_text_without_instructions_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no instruction; give it what nvdisasm"):
        parse("nvdisasm fatal   : no such file")


def test_a_loop_holds_both_sides_of_its_branches(code: Code) -> None:
    (loop,) = code.innermost
    assert loop.header == 0x40
    assert loop.addresses == {*range(0x40, 0x120, 0x10), 0x140, 0x150}
    assert {x.address for x in code.outside} == {0, 0x10, 0x20, 0x30, 0x120, 0x130}


def test_a_loop_that_waits_is_not_taken_for_the_inner_one(code: Code) -> None:
    assert [(loop.header, loop.waits) for loop in code.loops] == [(0x40, False), (0x70, True)]


def test_instructions_go_to_their_pipes(code: Code) -> None:
    pipes = {x.address: x.pipe for x in code.instructions}
    assert [pipes[place] for place in (0x50, 0x60)] == ["tensor"] * 2
    assert pipes[0xA0] == "MUFU"
    assert [pipes[place] for place in (0x90, 0xB0, 0xE0)] == ["FMA"] * 3
    assert [pipes[place] for place in (0xC0, 0x140)] == ["ALU"] * 2
    assert [pipes[place] for place in (0, 0xF0, 0x100, 0x120)] == ["load/store"] * 4
    assert pipes[0x30] == "uniform"
    assert {pipes[place] for place in (0x10, 0x20, 0x40, 0x70, 0x80, 0xD0)} == {"control"}


@pytest.mark.parametrize(
    ("line", "pipe"),
    [
        ("UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR6], tmem[UR4], idesc[UR5], UP0", "tensor"),
        ("UTCBAR [UR4], URZ", "control"),
        ("UTMALDG.2D [UR8], [UR4]", "load/store"),
        ("LDTM.x32 R4, tmem[UR4]", "load/store"),
        ("LDCU.64 UR4, c[0x0][0x358]", "uniform"),
        ("IADD3.X R4, P0, PT, R4, R5, RZ, P1, !PT", "ALU"),
        ("HFMA2.BF16_V2 R4, R4, R5, R6", "FMA"),
        ("FHFMA.BF16 R4, R4.H0_H0, R5.H0_H0, R6", "FMA"),
        ("FHADD.BF16 R4, R4.H0_H0, R6", "FMA"),
        ("WHATEVER R4", "other"),
    ],
)
def test_the_names_of_other_generations_are_known(line: str, pipe: str) -> None:
    (x,) = parse(f"        /*0000*/                   {line} &req={{0}} ?trans1 ;").instructions
    assert x.pipe == pipe


@pytest.mark.parametrize(
    "jump",
    ["@P0 BRA `(.L_x_1)", "BRA.U UP0, `(.L_x_1)", "BRA.DIV UR4, `(.L_x_1)", "BRA P0, `(.L_x_1)"],
)
def test_a_branch_of_a_condition_falls_through_too(jump: str) -> None:
    found = parse(
        f".L_x_1:\n/*0000*/ NOP ;\n/*0010*/ FADD R1, R1, R1 ;\n/*0020*/ {jump} ;\n/*0030*/ EXIT ;"
    )
    assert [x.address for x in found.instructions] == [0, 0x10, 0x20, 0x30]
    assert [loop.header for loop in found.innermost] == [0]


def test_a_loop_of_two_entries_is_none() -> None:
    found = parse(
        "/*0000*/ @P0 BRA `(.L_x_2) ;\n.L_x_1:\n/*0010*/ FADD R1, R1, R1 ;\n"
        ".L_x_2:\n/*0020*/ FADD R1, R1, R1 ;\n/*0030*/ @P1 BRA `(.L_x_1) ;\n/*0040*/ EXIT ;"
    )
    assert found.loops == ()


def test_each_pipe_bounds_the_clocks_by_its_width(code: Code) -> None:
    (loop,) = code.innermost
    products = multiply_adds(loop.instructions, warps=4)
    assert products == 2 * 64 * 64 * 16
    hopper = bound(loop.instructions, 90, 1.0, products)
    assert hopper.instructions == {
        "tensor": 2, "MUFU": 1, "FMA": 3, "ALU": 2, "load/store": 2, "control": 6
    }  # fmt: skip
    assert hopper.clocks == {
        # two loads of four words a lane, at a word a clock for 32 lanes of the multiprocessor
        "issue": 16, "tensor": 64, "MUFU": 8, "FMA": 3, "FP64": 0, "ALU": 4, "load/store": 32
    }  # fmt: skip
    assert (hopper.issued, hopper.limit, hopper.least, hopper.tensor_share) == (16, "tensor", 64, 1)
    ampere = bound(loop.instructions, 80, 2.0, products)
    assert ampere.issued == 32
    assert (ampere.clocks["tensor"], ampere.clocks["FMA"]) == (128, 12)
    assert (hopper.round, ampere.round) == (16, 16)
    # Warps that repeat one another's products do more than the piece needs.
    twice = bound(loop.instructions, 90, 1.0, products, 2 * products)
    assert (twice.clocks["tensor"], twice.tensor_share) == (128, 0.5)
    # Without the products the loads take longest.
    assert bound(loop.instructions, 90, 1.0).limit == "load/store"


def test_integer_products_have_half_of_the_pipe() -> None:
    lines = "\n".join(f"/*{place:04x}*/ IMAD R1, R1, R2, RZ ;" for place in range(0, 160, 16))
    assert bound(parse(lines).instructions, 90, 1.0).clocks["FMA"] == 20
    assert bound(parse(lines).instructions, 80, 1.0).clocks["FMA"] == 20


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["HMMA.16816.F32.BF16 R4, R8, R12, R4"], 4 * 16 * 8 * 16),
        (["HMMA.1688.F32.TF32 R4, R8, R12, R4"], 4 * 16 * 8 * 8),
        (["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24"], 64 * 128 * 16),
        # 128 rows and 64 columns in the descriptor's bits 24 to 28 and 17 to 22
        (
            [
                "UMOV UR5, 0x8100490",
                "UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR6], tmem[UR4], idesc[UR5], UP0",
            ],
            128 * 64 * 16,
        ),
    ],
)
def test_multiply_adds_come_from_the_shapes(lines: list[str], wanted: int) -> None:
    text = "\n".join(f"/*{16 * place:04x}*/ {line} ;" for place, line in enumerate(lines))
    assert multiply_adds(parse(text).instructions, warps=4) == wanted


def test_moved_bytes_are_those_of_global_memory(code: Code) -> None:
    assert loaded_bytes(parse(STRAIGHT).instructions) == 16
    assert loaded_bytes(code.instructions) == 0
    assert stored_bytes(parse(STRAIGHT).instructions) == 18
    assert stored_bytes(code.instructions) == 8
