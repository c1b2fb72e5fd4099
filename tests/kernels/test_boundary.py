"""No call from Python makes a kernel read or write outside a tensor: `tests/boundary.py` says how
that is tried, in processes of their own.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from boundary import OPS, WRITTEN, extension_call, ops_of

from bertfast import kernels
from bertfast.kernels import dispatch
from support import REPOSITORY, missing_backend

pytestmark = pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))


def run_apart(part, examples=0):
    """The counts that `boundary.py` prints; freed memory is overwritten, and a crash fails."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "boundary.py", part, str(examples)],
        env={**os.environ, "MALLOC_PERTURB_": "165", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode} after: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def faults():
    return run_apart("faults")


def test_calls_that_once_reached_outside_a_tensor_raise(faults):
    assert len(faults) > 70
    assert {
        what: error for what, error in faults.items() if error not in ("ValueError", "TypeError")
    } == {}


@pytest.mark.parametrize(
    ("part", "names", "examples"),
    [
        ("extension", WRITTEN, 25),
        pytest.param("extension", WRITTEN, 60, marks=pytest.mark.slow),
        ("cpp", ops_of("cpp"), 15),
        pytest.param("cpp", ops_of("cpp"), 60, marks=pytest.mark.slow),
        pytest.param("triton", ops_of("triton"), 12, marks=pytest.mark.slow),
    ],
)
def test_any_wrong_call_raises_or_gives_what_clean_copies_give(part, names, examples):
    if part == "triton" and missing_backend("triton"):
        pytest.skip(missing_backend("triton"))
    counts = run_apart(part, examples)
    assert set(counts) == set(names)
    for name, outcomes in counts.items():
        assert outcomes["refused"] > 0, name
        assert outcomes["right"] > 0, name


def test_every_function_of_the_extension_is_tried():
    plain = {"capabilities", "set_isa", "set_pressure_file", "spin_state"}
    assert {name for name in dir(dispatch._C) if not name.startswith("_")} == {*WRITTEN, *plain}


def test_every_private_op_is_tried():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "bertfast::" in name}
    assert {name.removeprefix("bertfast::") for name in registered} == set(OPS)


@pytest.mark.parametrize("name", WRITTEN)
def test_arguments_go_by_name_alone(name):
    call = extension_call(name, torch.float32)
    with pytest.raises(TypeError):
        getattr(dispatch._C, name)(*call.values())


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("dropout", {"x": 5}, TypeError, "x is a int; it must be a tensor"),
        ("dropout", {"x": None}, TypeError, "x is None; it must be a tensor"),
        ("dropout", {"x": torch.zeros(6, 12).double()}, TypeError,
         "x is of another dtype; it must be float32, bfloat16 or float16"),
        ("dropout", {"out": torch.zeros(6, 12).bfloat16()}, TypeError,
         "out is bfloat16; it must be float32"),
        ("dropout", {"out": torch.zeros(71)}, ValueError, "out has 71 elements; it must have 72"),
        ("dropout", {"out": torch.zeros(12, 6).T}, ValueError, "out is not contiguous"),
        ("dropout", {"x": torch.zeros(6, 12, device="meta")}, ValueError,
         "x has no memory that a CPU kernel can read: .*meta"),
        ("dropout", {"threshold": 65536}, ValueError,
         "threshold is 65536; it must be from 0 to 65535"),
        ("dropout", {"threads": 0}, ValueError, "threads is 0; it must be from 1 to 1024"),
        ("dropout", {"threads": 100_000}, ValueError,
         "threads is 100000; it must be from 1 to 1024"),
        ("gather_rows", {"index": torch.tensor([0, 1, 2, 6])}, ValueError,
         r"index\[3\] is 6; it must be from -1 to 5"),
        ("gather_rows", {"index": torch.tensor([0, 1, 2, 6]).int()}, TypeError,
         "index is int32; it must be int64"),
        ("check_rows", {"index": torch.tensor([0, 6])}, ValueError,
         "index holds 6; x has 6 rows, so it must be from -1 to 5"),
        ("check_rows", {"index": torch.tensor([3, 3])}, ValueError, "index holds 3 twice"),
        ("check_rows", {"index": torch.tensor([3, -1, 3]), "rows": 2**40}, ValueError,
         "index holds 3 twice"),
        ("mask_tokens", {"special": None}, TypeError, "special is None"),
        ("mask_tokens", {"random_ids": 2**33}, ValueError, r"random_ids must be at most 2\^32"),
        ("widened_product", {"a": torch.zeros(6, 24)[:, ::2]}, ValueError,
         "neither the rows nor the columns of a are contiguous"),
        ("widened_product", {"b": torch.zeros(11, 9)}, ValueError,
         "a has 12 columns and b 11 rows"),
        ("widened_product", {"a": torch.zeros(6, 12).half(), "b": torch.zeros(12, 9).bfloat16()},
         TypeError, "b is bfloat16; it must be float16"),
        ("widened_product", {"out": torch.zeros(6, 8)}, ValueError,
         r"out has shape \(6, 8\); it must be \(6, 9\)"),
        ("widened_product", {"out": torch.zeros(1, 9).expand(6, 9)}, ValueError,
         "neither the rows nor the columns of out"),
        ("rotary", {"position_ids": torch.tensor([0, 1, 2, 3, 4, 7])}, ValueError,
         r"position_ids\[5\] is 7; it must be from 0 to 6"),
        ("rotary", {"k": torch.zeros(5, 2, 16)}, ValueError,
         r"k has shape \(5, 2, 16\); it must be \(6, 2, 16\)"),
        ("rotary", {"k": torch.zeros(6, 16, 2).mT}, ValueError,
         "the elements of k are not adjacent"),
        ("rotary", {"q": torch.zeros(6, 2, 15)}, ValueError, "head_dim is 15; it must be even"),
        ("adamw", {"means": [torch.zeros(5), torch.zeros(0)]}, ValueError,
         "there are 2 means and 3 weights"),
        ("adamw", {"means": [torch.zeros(5), torch.zeros(0), torch.zeros(32)]}, ValueError,
         r"means\[2\] has 32 elements and its weight 33"),
        ("cross_entropy_rows", {"logits": torch.zeros(6, 0)}, ValueError, "vocab must be above 0"),
        ("cross_entropy_rows", {"labels": torch.full((6,), 9)}, ValueError,
         r"labels\[0\] is 9; it must be from 0 to 8, or -100"),
        ("cross_entropy_rows", {"grad_scale": None}, ValueError, "dbias needs grad_scale"),
        ("embed_forward", {"position": None}, ValueError, "position and position_ids go together"),
        ("embed_forward", {"input_ids": torch.full((6,), 9)}, ValueError,
         r"input_ids\[0\] is 9; it must be from 0 to 8"),
        ("sum_row_groups", {"starts": torch.tensor([3, 2, 6])}, ValueError,
         "starts must never fall"),
        ("sum_row_groups", {"targets": torch.tensor([4, 4])}, ValueError, "targets must rise"),
        ("attention_forward", {"cu_seqlens": torch.tensor([1, 2]).int()}, ValueError,
         "must start with 0"),
        ("attention_forward", {"cu_seqlens": torch.tensor([0, 3, 2]).int()}, ValueError,
         "must never fall"),
        ("attention_forward", {"cu_seqlens": torch.tensor([0, 5]).int()}, ValueError,
         "longer than max_seqlen"),
        ("attention_forward", {"cu_seqlens": torch.tensor([0, 4, 8]).int()}, ValueError,
         "beyond the tokens"),
        ("attention_forward", {"cu_seqlens": torch.tensor([]).int()}, ValueError,
         "cu_seqlens is empty"),
        ("attention_forward", {"window": -2}, ValueError, "window is -2"),
        ("attention_forward", {"buckets": torch.full((7,), 3).int()}, ValueError,
         r"buckets\[0\] is 3; it must be from 0 to 2"),
        ("attention_forward", {"buckets": None}, TypeError, "buckets is None"),
        ("attention_forward", {"bias": torch.zeros(2, 4)}, ValueError,
         "the tables differ in buckets"),
        ("attention_backward", {"bias": None}, ValueError,
         "dbias is given and its table is absent"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(name, wrong, error, message):
    with pytest.raises(error, match=message):
        getattr(dispatch._C, name)(**{**extension_call(name, torch.float32), **wrong})


@pytest.mark.parametrize(
    ("written", "read"), [("out", "x"), ("dx", "dout"), ("q_out", "k"), ("q_out", "k_out")]
)
def test_what_is_written_shares_no_memory(written, read):
    name = {"out": "dropout", "dx": "bias_gelu_backward", "q_out": "rotary"}[written]
    call = extension_call(name, torch.float32)
    if name == "bias_gelu_backward":
        call.update(gated=False, bias=None, dbias=None, x=call["dout"].clone())
    call[written] = call[read]
    with pytest.raises(ValueError, match="is written and shares memory with"):
        getattr(dispatch._C, name)(**call)


def test_memory_that_cannot_be_written_is_refused():
    call = extension_call("dropout", torch.float32)
    out = call["out"].numpy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out has no memory that a CPU kernel can read"):
        dispatch._C.dropout(**{**call, "out": out})


def test_numpys_arrays_serve_as_torchs_tensors_do():
    call, other = (extension_call("dropout", torch.float32) for _ in range(2))
    dispatch._C.dropout(**call)
    dispatch._C.dropout(**{**other, "x": other["x"].numpy(), "out": other["out"].numpy()})
    assert torch.equal(call["out"], other["out"])


def test_the_extension_loads_without_torch():
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", {dispatch._C.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import numpy as np
x = np.ones(9, np.float32)
out = np.zeros(9, np.float32)
module.dropout(x=x, out=out, threshold=0, seed=0, threads=1)
assert (out == x).all() and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("value", [4.0, "4", True, None])
@pytest.mark.parametrize("name", ["max_seqlen", "window"])
def test_a_size_that_is_no_int_is_named(name, value):
    if (name, value) == ("window", None):
        pytest.skip("None is no window")
    q = torch.randn(4, 1, 16)
    options = {"max_seqlen": 4, name: value}
    with pytest.raises(TypeError, match=f"{name} is a {type(value).__name__}; it must be an int"):
        kernels.attention(q, q, q, torch.tensor([0, 4], dtype=torch.int32), **options)


def test_heads_of_no_elements_are_named():
    q = torch.randn(4, 1, 0)
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        kernels.attention(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4)


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.1, "window": 2}])
def test_meta_tensors_give_meta_tensors(options):
    q, cu_seqlens = torch.empty(8, 2, 16, device="meta"), torch.empty(3, device="meta").int()
    out = kernels.attention(q, q, q, cu_seqlens, 4, **options)
    assert out.is_meta
    assert out.shape == q.shape
    hidden, labels = torch.empty(8, 16, device="meta"), torch.empty(8, device="meta").long()
    loss, correct = kernels.linear_cross_entropy(hidden, hidden, None, labels)
    assert loss.is_meta
    assert correct.is_meta
