"""What the compiler says of the Triton kernels on each GPU generation, with no GPU."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from bertfast.kernels.resources import ROW_KERNELS

pytest.importorskip("triton", reason="Triton is not installed")


def resources(*options, **more):
    """The command's output, from a process in which Triton compiles and does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bertfast.kernels.resources", *options]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment | more, check=False
    )
    return result.returncode, result.stdout, result.stderr


def report(*options):
    """The rows of the report."""
    code, out, err = resources("--json", *options)
    assert code == 0, err
    return json.loads(out)


def test_one_kernel_is_compiled_and_its_instructions_counted():
    options = ["--kernel", "_gelu_forward_kernel", "--no-gated", "--dtype", "bf16"]
    (row,) = report(*options, "--capability", "90")
    work = row["work"]
    assert (row["kernel"], row["dtype"], row["capability"]) == (
        "gelu_forward_kernel",
        "bfloat16",
        90,
    )
    assert row["piece"] == "element"
    assert sum(work["instructions"].values()) == pytest.approx(work["issued"])
    assert "other" not in work["instructions"]
    # Loads and stores move several elements each, as their addresses are known to be aligned.
    assert work["instructions"]["FMA"] > 2
    assert 0 < work["instructions"]["load/store"] < 2
    assert work["clocks"][work["limit"]] == max(work["clocks"].values())
    assert work["clocks"]["issue"] == work["issued"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernel", "_no_kernel"], "invalid choice: '_no_kernel'"),
        (["--kernel", "_adamw_kernel", "--head-dim", "64"], "no kernel is launched with all"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_compiled_is_said_in_a_line(options, message):
    code, _, err = resources(*options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_the_interpreter_compiles_nothing():
    code, _, err = resources("--kernel", "_adamw_kernel", "--dtype", "fp32", "--capability", "80",
                             TRITON_INTERPRET="1")  # fmt: skip
    assert code == 2
    assert err.strip() == "compiling needs Triton, with TRITON_INTERPRET unset"


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def rows(request):
    """The report of one dtype: some hundred compilations."""
    return report("--dtype", request.param)


def name(row):
    traits = " ".join(
        f"{trait}={row[trait]}"
        for trait in ("head_dim", "dropout", "positions", "window", "length", "gated")
    )
    return f"{row['kernel']} {row['dtype']} {traits} sm_{row['capability']}"


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_target(rows):
    assert {row["capability"] for row in rows} == {80, 90, 100}
    half_alone = set() if rows[0]["dtype"] == "float32" else {"one_pass_kernel"}
    assert {row["kernel"] for row in rows} == half_alone | {
        "forward_kernel",
        "key_gradient_kernel",
        "query_gradient_kernel",
        "table_gradient_kernel",
        *(kernel.strip("_") for kernel in ROW_KERNELS),
    }


@pytest.mark.slow
def test_no_register_is_spilled(rows):
    # The tiles are chosen for Triton 3.7; the registers that 3.6 hands out differ by a few bytes,
    # in float32.
    bound = 0 if version("triton") >= "3.7" else 16
    assert [name(row) for row in rows if row["spills"] > bound] == []


@pytest.mark.slow
def test_shared_memory_is_within_the_chips_limit(rows):
    assert [name(row) for row in rows if row["shared"] > row["shared_limit"]] == []


@pytest.mark.slow
def test_half_precision_products_run_on_tensor_cores(rows):
    wanted = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    for row in rows:
        if row["dtype"] == "float32":
            assert row["tensor_core"] == [], "float32 is exact: no tf32"
        elif (
            row["kernel"] != "table_gradient_kernel" and f"_{row['kernel']}" not in ROW_KERNELS
        ):  # these multiply nothing
            assert wanted[row["capability"]] in row["tensor_core"], name(row)


@pytest.mark.slow
def test_every_instruction_goes_to_a_pipe(rows):
    assert [name(row) for row in rows if "other" in row["work"]["instructions"]] == []


@pytest.mark.slow
def test_no_bound_is_beyond_the_tensor_peak(rows):
    for row in rows:
        assert row["work"]["issued"] > 0, name(row)
        assert row["work"]["tensor_share"] <= 1, name(row)
