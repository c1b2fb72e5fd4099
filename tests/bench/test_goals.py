"""What the GPU's kernels and the step were to reach, held against the compiler's output and the
model of a step: nothing here was measured on a GPU.

Each row has the goal and what holds. Where what holds is more, the goal is not reached: bring the
row down as the kernels get there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from support import missing_backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton")),
]
# Of attention's kernels with dropout, head_dim 64, bfloat16, on sm_90. The key "issued" is
# instructions of a scheduler for a tile of 64 x 64 scores. The key "round" is those of a warp in a
# round of the loop. The backward's goals were set for rounds, of 64 x 64 by eight warps and of 32 x
# 64 by four.
TILES = [
    # kernel, unit, goal, holds
    ("_forward_kernel", "issued", 600, 600),
    ("_query_gradient_kernel", "round", 480, 490),
    ("_query_gradient_kernel", "issued", 480, 488),
    ("_key_gradient_kernel", "round", 400, 400),
]
# Instructions for an element of BERT's, which is not gated.
GELU = [("_gelu_forward_kernel", 28, 28), ("_gelu_backward_kernel", 36, 36)]
# Of a step of BERT-base at 15,570 tokens of WikiText's lengths, on an H200.
LAUNCHES = (450, 437)
MILLISECONDS = (20.0, 20.0)


@cache
def run(*command: str) -> Any:
    """A command's JSON, from a process in which Triton compiles and does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", *command, "--json"], capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def compiled(kernel: str, *options: str) -> dict[str, Any]:
    """The report of one kernel on sm_90."""
    (row,) = run(
        "bertfast.kernels.resources", "--kernel", kernel, "--dtype", "bfloat16",
        "--capability", "90", *options,
    )  # fmt: skip
    return row


@pytest.mark.parametrize(("kernel", "unit", "goal", "holds"), TILES)
def test_a_tile_of_attention_takes_so_many_instructions(
    kernel: str, unit: str, goal: float, holds: float
) -> None:
    options = ("--head-dim", "64", "--dropout", "--no-positions", "--no-window")
    row = compiled(kernel, *options)
    assert goal <= holds
    assert row["work"][unit] <= holds
    assert row["spills"] == 0


@pytest.mark.parametrize(("kernel", "goal", "holds"), GELU)
def test_an_element_of_gelu_takes_so_many_instructions(
    kernel: str, goal: float, holds: float
) -> None:
    assert goal <= holds
    assert compiled(kernel, "--no-gated")["work"]["issued"] <= holds


def test_the_modelled_step_of_bert_base() -> None:
    found = run("bertfast", "profile", "--model-gpu", "h200", "--tokens", "15570")
    assert found["modelled"] is True
    assert found["vocabulary_products"] == pytest.approx(3)
    assert found["launches"] <= LAUNCHES[1]
    assert found["seconds"] * 1e3 <= max(MILLISECONDS)
