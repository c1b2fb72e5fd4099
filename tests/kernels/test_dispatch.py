"""Which backend runs, how one is forced, and what is said when it cannot."""

import subprocess
import sys

import pytest
import torch

from bertfast import kernels
from bertfast.kernels import dispatch
from support import missing_backend

CPU = torch.device("cpu")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    clean = {
        k: v for k, v in os.environ.items() if k not in ("BERTFAST_BACKEND", "TRITON_INTERPRET")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        check=False,
    )


DROP = (
    "import torch; from bertfast import kernels; print(kernels.dropout(torch.ones(64), "
    "0.5).sum().item())"
)


def test_the_reference_takes_what_no_other_backend_can():
    assert dispatch.select("attention", CPU, torch.float64, 64) == "reference"
    assert dispatch.select("attention", CPU, torch.float32, 24) == "reference"


@pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))
def test_the_cpp_backend_is_preferred_on_a_cpu():
    taken, others = dispatch.explain("attention", CPU, torch.float32, 64)
    assert taken == "cpp"
    assert set(others) == {"triton", "reference"}
    assert others["reference"] == "cpp comes before it"


def test_every_backend_that_is_not_taken_has_a_reason():
    for op in dispatch.OPS:
        for dtype in dispatch.DTYPES:
            taken, others = dispatch.explain(op, CPU, dtype, 64)
            assert {taken, *others} == set(dispatch.BACKENDS)
            assert all(others.values())


def test_use_backend_forces_and_gives_back():
    with kernels.use_backend("reference"):
        assert dispatch.select("dropout", CPU, torch.float32) == "reference"
        with kernels.use_backend(None):
            assert dispatch.select("dropout", CPU, torch.float32) == (
                "reference" if missing_backend("cpp") else "cpp"
            )
        assert dispatch.select("dropout", CPU, torch.float32) == "reference"


def test_use_backend_refuses_an_unknown_name():
    with (
        pytest.raises(
            kernels.BackendError, match="'cuda'; it must be one of triton, cpp, reference"
        ),
        kernels.use_backend("cuda"),
    ):
        pass


def test_a_forced_backend_that_cannot_run_says_why():
    with (
        kernels.use_backend("cpp"),
        pytest.raises(
            kernels.BackendError, match="the dtype is float64, it takes float32, bfloat16, float16"
        ),
    ):
        kernels.dropout(torch.ones(3, dtype=torch.float64), 0.5)


def test_the_environment_forces_a_backend():
    assert python(DROP, BERTFAST_BACKEND="reference").returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "triton",
            "BERTFAST_BACKEND forces 'triton', which cannot run dropout here: the input is on cpu",
        ),
        ("cudnn", "BERTFAST_BACKEND is 'cudnn'; it must be one of triton, cpp, reference"),
    ],
)
@pytest.mark.slow
def test_an_environment_that_cannot_be_met_says_why(name, message):
    result = python(DROP, BERTFAST_BACKEND=name)
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))
@pytest.mark.slow
def test_an_instruction_set_that_is_not_there_is_an_error_that_lists_those_that_are():
    done = python(DROP, BERTFAST_CPU_ISA="sse9")
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert (
        "BackendError: BERTFAST_CPU_ISA: instruction set 'sse9' is not to be had here; there are"
        in message
    )
    assert python(DROP, BERTFAST_CPU_ISA="baseline").returncode == 0
