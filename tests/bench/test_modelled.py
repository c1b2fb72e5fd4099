"""The model of a step on a GPU that is not there: what it records, how it counts, and that it says
what it is. A stand-in takes the compiler's place; `test_goals.py` compiles.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import run_cli

from bertfast.bench import floors, modelled, steps
from bertfast.bench.case import Setup
from bertfast.bench.gpus import ALONE, COPY_SHARE, GAP, GPUS, LATENCY, START
from bertfast.bench.lengths import Lengths, wikitext
from bertfast.bench.modelled import Clock, Node, Product
from bertfast.config import BertConfig
from bertfast.errors import BertfastError
from bertfast.kernels import resources
from bertfast.kernels.disassembly import parse
from bertfast.kernels.launch import Launch
from support import missing_backend

pytestmark = pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton"))
H200 = GPUS["h200"]
# Ten instructions, whatever the kernel is.
STRAIGHT = parse("\n".join(f"/*{16 * place:04x}*/ FADD R1, R1, R1 ;" for place in range(10)))


def small(layers: int = 2, sequences: int = 4) -> Setup:
    config = replace(BertConfig.preset("bert-tiny", vocab_size=300), num_hidden_layers=layers)
    return Setup(wikitext(sequences), config, torch.bfloat16, "cuda", compiled=False)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel is ten additions of four warps."""
    monkeypatch.setattr(
        resources, "compile_launch", lambda launch, capability: resources.Compiled(STRAIGHT, 4)
    )


def launches(nodes: list[Node]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in nodes:
        name = node.what.kernel.__name__ if isinstance(node.what, Launch) else str(node.what)
        found[name] = found.get(name, 0) + node.launches
    return found


def test_a_recorded_step_has_the_launches_of_every_layer() -> None:
    two, three = (launches(modelled.record_step(small(layers), 90)) for layers in (2, 3))
    assert two["_forward_kernel"] == 2
    assert three["_forward_kernel"] == 3
    assert three["_gelu_forward_kernel"] == two["_gelu_forward_kernel"] + 1
    assert three["_norm_backward_kernel"] == two["_norm_backward_kernel"] + 2


def test_a_recorded_step_multiplies_what_the_step_must() -> None:
    setup = small()
    nodes = modelled.record_step(setup, 90)
    tokens, hidden = setup.lengths.tokens, setup.config.hidden_size
    inner = setup.config.intermediate_size
    products = [node.what for node in nodes if isinstance(node.what, Product)]
    # Up in the forward and down in the backward; the last layer has the masked rows alone.
    assert sum(x == Product(1, tokens, hidden, inner) for x in products) == 2
    assert all(node.itemsize == 2 for node in nodes if isinstance(node.what, Product))
    masked = steps.masked_count(tokens)
    least = floors.step_ops(setup.config, setup.lengths, masked, 0, 2)["matrix products"]
    assert sum(x.flops for x in products) >= least.flops


def test_a_step_of_bert_base_multiplies_the_vocabulary_three_times() -> None:
    setup = modelled.setup("bert-base", None, "bfloat16", None)
    nodes = modelled.record_step(setup, 90)
    masked, vocab = steps.masked_count(setup.lengths.tokens), setup.config.vocab_size
    found = [x.what for x in nodes if isinstance(x.what, Product) and x.what.has(vocab)]
    hidden = setup.config.hidden_size
    assert found == [
        Product(1, masked, hidden, vocab),
        Product(1, masked, vocab, hidden),
        Product(1, vocab, masked, hidden),
    ]
    update = [x for x in nodes if isinstance(x.what, Launch) and x.part == "optimizer"]
    assert len(update) == 3  # the norm takes two


def test_the_parts_add_up_to_the_step(stand_in: None) -> None:
    found = modelled.model(small(), "h200")
    parts = found["parts"].values()
    assert found["modelled"] is True
    assert found["gpu"] == "H200 SXM"
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
    assert found["launches"] == sum(part["launches"] for part in parts)
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert found["parts"]["launch gaps"]["seconds"] == pytest.approx(found["launches"] * GAP)
    assert {"matrix products", "attention forward", "attention backward", "gelu", "layer norm",
            "linear_cross_entropy", "embedding", "optimizer"} <= set(found["parts"])  # fmt: skip
    assert 0 < found["matrix_share"] < 1
    # The logits, and the gradients of the rows and of the table.
    assert found["vocabulary_products"] == pytest.approx(3)
    assert found["counted_once"] == []


def test_more_tokens_take_longer_and_a_faster_gpu_less(stand_in: None) -> None:
    few, many = (modelled.model(small(sequences=n), "h200") for n in (64, 640))
    assert many["seconds"] > few["seconds"]
    assert many["matrix_share"] > few["matrix_share"]
    by_gpu = [modelled.model(small(sequences=640), name)["seconds"] for name in GPUS]
    assert by_gpu == sorted(by_gpu, reverse=True)


def test_a_copy_takes_the_time_of_its_bytes() -> None:
    seconds, bound = Clock(H200, wikitext(1)).time(Node("sums", "add", 4.8e9 * COPY_SHARE))
    assert bound == "bytes"
    assert seconds == pytest.approx(1e-3 + START)


def test_a_product_takes_whole_waves_of_tiles() -> None:
    clock = Clock(H200, wikitext(1))
    wave = Product(1, 128 * 132, 4096, 256)
    seconds, bound = clock.time(Node("matrix products", wave, 0, itemsize=2))
    ends = LATENCY / H200.clock + wave.rows * wave.columns * 2 / clock.bandwidth + START
    assert bound == "matrix rate"
    assert seconds == pytest.approx(wave.flops / H200.rate + ends)
    more, _ = clock.time(Node("matrix products", replace(wave, rows=128 * 132 + 1), 0, itemsize=2))
    assert more > 1.2 * seconds
    # Few tiles of a long inner dimension are split among the multiprocessors.
    long, _ = clock.time(Node("matrix products", Product(1, 768, 15570, 768), 0, itemsize=2))
    assert long < 3 * Product(1, 768, 15570, 768).flops / H200.rate


def test_a_kernels_instructions_are_issued_by_four_schedulers(stand_in: None) -> None:
    class Kernel:
        __name__ = "_some_kernel"
        arg_names = ("x",)

    launch = Launch(Kernel(), (132 * 1000,), (torch.empty(1, device="meta"),), {})
    seconds, bound = Clock(H200, wikitext(1)).time(Node("other", launch, 0))
    assert bound == "issue"
    assert seconds == pytest.approx(10 * 1000 / H200.clock + START)


def test_a_loop_of_few_programs_waits_for_memory_in_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Kernel:
        __name__ = "_gelu_backward_kernel"
        arg_names = ("x", "rows", "features")

    # A round of four warps stores 128 elements.
    loop = parse(
        "/*0000*/ NOP ;\n.L_x_1:\n/*0010*/ FADD R1, R1, R1 ;\n/*0020*/ STG.E.U16 [R2], R1 ;\n"
        "/*0030*/ @P0 BRA `(.L_x_1) ;\n/*0040*/ EXIT ;"
    )
    monkeypatch.setattr(
        resources, "compile_launch", lambda launch, capability: resources.Compiled(loop, 4)
    )
    x = torch.empty(1, dtype=torch.bfloat16, device="meta")
    launch = Launch(Kernel(), (2,), (x, 200, 128), {})
    seconds, bound = Clock(H200, wikitext(1)).time(Node("gelu", launch, 0))
    assert bound == "latency"
    assert seconds == pytest.approx(100 * (LATENCY + 3 * ALONE) / H200.clock + START)


@pytest.mark.parametrize(
    ("kernel", "above", "has_tail", "wanted"),
    [
        # 5 and 64 tokens are a block each, 65 are two; two heads.
        ("_forward_kernel", 0, False, (2 * 4, 2 * (1 + 1 + 2 * 2))),
        # Of the blocks in the loop the whole ones alone: none of 5 tokens, one of 65.
        ("_forward_kernel", 0, True, (2 * 4, 2 * (0 + 1 + 2 * 1))),
        ("_query_gradient_kernel", 64, False, (2 * 2, 2 * 4)),
        # at most 64 keys
        (resources.ONE_PASS, 0, False, (2 * 2, 2 * 2)),
        (resources.ONE_PASS, 5, False, (2 * 1, 2 * 1)),
    ],
)
def test_tiles_are_those_of_each_sequence(
    kernel: str, above: int, has_tail: bool, wanted: tuple[int, int]
) -> None:
    class Rows:
        ptr = torch.empty(134, 2, 64, device="meta")

    values: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 64, "q": Rows, "above": above}
    assert modelled.tiles(kernel, values, Lengths("three", (5, 64, 65)), has_tail) == wanted


def test_tiles_are_counted_by_their_area() -> None:
    class Rows:
        ptr = torch.empty(128, 1, 64, device="meta")

    values: dict[str, Any] = {"BLOCK_M": 32, "BLOCK_N": 64, "q": Rows}
    found = modelled.tiles("_key_gradient_kernel", values, Lengths("one", (128,)), False)
    assert found == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model-gpu", "h300"],
            "--model-gpu is 'h300'; it must be one of a100, h100, h200, b200",
        ),
        (["--tokens", "9"], "--tokens is of --model-gpu"),
        (["--model-gpu", "h200", "--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["--model-gpu", "h200", "--device", "cpu"], "measures nothing; leave out"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    outcome = run_cli(monkeypatch, capfd, "profile", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_the_command_says_that_it_is_a_model(
    stand_in: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", "--model-gpu", "h200", "--shape", "bert-tiny", "--tokens", "2000"]
    printed = " ".join(run_cli(monkeypatch, capfd, *arguments).out.split())
    assert "modelled and not measured" in printed
    assert "a model: shapes, instruction counts and data sheets" in printed
    outcome = run_cli(monkeypatch, capfd, *arguments, "--json")
    found = json.loads(outcome.out)
    assert found["modelled"] is True
    assert found["dtype"] == "bfloat16"


def test_a_compiler_that_is_not_there_is_named() -> None:
    # The tests' own Triton is the interpreter.
    with pytest.raises(BertfastError, match="--model-gpu compiles the Triton kernels: .*unset"):
        modelled.model(small(), "h200")
