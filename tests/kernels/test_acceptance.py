"""What the kernels and the step were to reach, held against the compiler's output and the model of
a step: nothing here was measured on a GPU.

Where a goal is not reached, the bound is what holds today, and the goal stands beside it.
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
HEAD_DIM_64 = ("--head-dim", "64", "--dropout", "--no-positions", "--no-window")


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


def instructions(kernel: str, capability: int, *options: str) -> float:
    """Those that a scheduler issues for a 64 x 64 tile, or for an element."""
    (row,) = run(
        "bertfast.kernels.resources", "--kernel", kernel, "--dtype", "bfloat16",
        "--capability", str(capability), *options,
    )  # fmt: skip
    return row["work"]["issued"]
