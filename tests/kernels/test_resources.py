"""What the compiler says of the Triton kernels on each GPU generation, with no GPU."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from bertfast.kernels.resources import ROW_KERNELS

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow  # some hundred compilations a dtype


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def rows(request):
    """The report of one dtype, from a process in which Triton compiles and does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "bertfast.kernels.resources",
        "--json",
        "--dtype",
        request.param,
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def name(row):
    traits = " ".join(
        f"{trait}={row[trait]}"
        for trait in ("head_dim", "dropout", "positions", "window", "length")
    )
    return f"{row['kernel']} {row['dtype']} {traits} sm_{row['capability']}"


def test_every_kernel_is_compiled_for_every_target(rows):
    assert {row["capability"] for row in rows} == {80, 90, 100}
    half_alone = set() if rows[0]["dtype"] == "float32" else {"one_pass_kernel"}
    assert {row["kernel"] for row in rows} == half_alone | {
        "forward_kernel",
        "key_gradient_kernel",
        "query_gradient_kernel",
        "table_gradient_kernel",
        "statistics_kernel",
        "gradient_kernel",
        *(kernel.strip("_") for kernel in ROW_KERNELS),
    }


def test_no_register_is_spilled(rows):
    # The tiles are chosen for Triton 3.7; the registers that 3.6 hands out differ by a few bytes,
    # in float32.
    bound = 0 if version("triton") >= "3.7" else 16
    assert [name(row) for row in rows if row["spills"] > bound] == []


def test_shared_memory_is_within_the_chips_limit(rows):
    assert [name(row) for row in rows if row["shared"] > row["shared_limit"]] == []


def test_half_precision_products_run_on_tensor_cores(rows):
    wanted = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    for row in rows:
        if row["dtype"] == "float32":
            assert row["tensor_core"] == [], "float32 is exact: no tf32"
        elif (
            row["kernel"] != "table_gradient_kernel" and f"_{row['kernel']}" not in ROW_KERNELS
        ):  # these multiply nothing
            assert wanted[row["capability"]] in row["tensor_core"], name(row)
