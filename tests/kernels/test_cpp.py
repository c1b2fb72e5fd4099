"""What the C++ extension promises beyond the ops: its instruction sets agree, and its bindings
check before they follow a pointer.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bertfast import kernels
from bertfast.kernels import dispatch
from support import boundaries, missing_backend, random_positions, tolerance

pytestmark = pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))


@pytest.fixture
def isas():
    """The instruction sets that run here; the one in use is put back."""
    facts = dispatch._C.capabilities()
    yield facts["runnable"]
    dispatch._C.set_isa(facts["selected"])


def outputs(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(70, 2, 48, generator=generator).to(dtype) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    cu_seqlens = boundaries([33, 0, 37])
    out = kernels.attention(*leaves, cu_seqlens, 37, dropout_p=0.2, seed=3)
    positions = random_positions("bqk", 70, 2, 37, dtype)
    placed = kernels.attention(*leaves, cu_seqlens, 37, window=20, positions=positions)
    placed_gradients = torch.autograd.grad(placed, [*leaves, *positions.tables], dout)
    h, w, b = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((9, 16), (101, 16), (101,))
    )
    loss, _ = kernels.linear_cross_entropy(h, w, b, torch.arange(9), label_smoothing=0.1)
    dropped = kernels.dropout(q, 0.3, seed=1)
    ids = torch.arange(70)
    rotated = kernels.rotary(q, k, ids, *kernels.rotary_tables(70, 48, 100.0))
    masked = kernels.mask_tokens(
        ids, ids < 3, mask_id=1, vocab_size=101, rate=0.5, word_ids=ids // 3, seed=1
    )
    gradients = [
        *torch.autograd.grad(out, leaves, dout),
        *torch.autograd.grad(loss, (h, w, b)),
        *placed_gradients,
    ]
    return [out, loss, placed, dropped, *rotated, *gradients, *masked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_instruction_set_gives_the_same_results(isas, dtype):
    results = []
    with kernels.use_backend("cpp"):
        for isa in isas:
            dispatch._C.set_isa(isa)
            results.append(outputs(dtype))
    for result in results[1:]:
        # Products of bfloat16 itself round the probabilities once more than widened ones do.
        torch.testing.assert_close(result, results[0], **tolerance(dtype))


def test_an_instruction_set_that_is_not_there_is_named(isas):
    with pytest.raises(
        ValueError, match="instruction set 'avx9000' is not to be had here; there are .*baseline"
    ):
        dispatch._C.set_isa("avx9000")


def test_one_openmp_runtime_serves_torch_and_the_extension():
    # In a process of its own: other libraries of the tests (scikit-learn) bring a runtime along.
    program = """
import torch
from bertfast import kernels
kernels.dropout(torch.ones(4096), 0.5)
torch.ones(4096, 64).sum()
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1


X = np.zeros(64, np.float32)
I64 = np.zeros(4, np.int64)
FOUR = np.array([4])
P, PI = X.ctypes.data, I64.ctypes.data


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dropout", ("float64", P, P, 4, 1, 0, 1), "dtype is 'float64'"),
        ("dropout", ("float32", 0, P, 4, 1, 0, 1), "x is a null pointer"),
        ("dropout", ("float32", P, P, -4, 1, 0, 1), "n is -4"),
        ("dropout", ("float32", P, P, 4, 65536, 0, 1), "threshold must be below 65536"),
        ("dropout", ("float32", P, P, 4, 1, 0, 0), "threads above 0"),
        (
            "gather_rows",
            (P, FOUR.ctypes.data, P, 4, 1, 16, 16, 1),
            r"index\[0\] is 4; it must be from -1 to 3",
        ),
        ("gather_rows", (P, PI, P, 4, 1, -16, 16, 1), "width is -16"),
        ("scatter_rows", (P, 0, P, 4, 1, 16, 1), "index is a null pointer"),
        ("check_rows", ("index", FOUR.ctypes.data, 1, "x", 4), "index holds 4; x has 4 rows"),
        (
            "mask_tokens",
            (PI, 0, 0, 0, PI, PI, 4, 1, 1, 1, 1, 1, 1, -100, 0, 1),
            "special is a null pointer",
        ),
        (
            "mask_tokens",
            (PI, PI, 0, 0, PI, PI, 4, 1, 1, 2**33, 1, 1, 1, -100, 0, 1),
            r"at most 2\^32",
        ),
        (
            "rotary",
            ("float32", P, P, P, P, FOUR.ctypes.data, P, P, 1, 1, 8, 4, [16] * 4, False, 1),
            r"position_ids\[0\] is 4",
        ),
        (
            "rotary",
            ("float32", P, P, P, P, PI, P, P, 1, 1, 0, 4, [16] * 4, False, 1),
            "half and threads must be above 0",
        ),
        (
            "rotary",
            ("float32", P, P, P, P, PI, P, P, 1, 1, 8, 4, [16, 16, -1, 16], False, 1),
            "the strides of k",
        ),
        (
            "rotary",
            ("float32", P, P, P, 0, PI, P, P, 1, 1, 8, 4, [16] * 4, False, 1),
            "k_out is a null pointer",
        ),
        (
            "cross_entropy_rows",
            ("float32", P, 0, PI, P, P, P, 1, 0, -100, 0.0, 0.0, 0, 0, 1),
            "vocab must be above 0",
        ),
    ],
)
def test_bad_arguments_are_refused_before_a_pointer_is_followed(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(dispatch._C, name)(*arguments)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([1, 2], "must start with 0"),
        ([0, 3, 2], "must never fall"),
        ([0, 5], "longer than max_seqlen"),
        ([0, 4, 8], "beyond the tokens"),
    ],
)
def test_boundaries_that_reach_outside_are_refused(bounds, message):
    cu = np.array(bounds, np.int32)
    sizes = (len(bounds) - 1, 1, 16, *(16, 16) * 3, 4, 4, 1.0, 0, 0, 1, -1, [0] * 4, 0, [0] * 4)
    with pytest.raises(ValueError, match=message):
        dispatch._C.attention_forward("float32", P, P, P, P, P, cu.ctypes.data, *sizes)


@pytest.mark.parametrize(
    ("window", "values", "tables", "strides", "message"),
    [
        (-2, [0] * 7, [P, 0, 0], [0] * 4, "window is -2"),
        (-1, [0] * 6 + [3], [P, 0, 0], [0] * 4, r"bucket_of\[6\] is 3; it must be from 0 to 2"),
        (-1, [-1] * 7, [0, P, 0], [0] * 4, r"bucket_of\[0\] is -1"),
        (-1, None, [0, 0, P], [0] * 4, "bucket_of is a null pointer"),
        (-1, [0] * 7, [0, P, P], [0, 0, -1, 0], "strides of the tables"),
    ],
)
def test_positions_that_reach_outside_are_refused(window, values, tables, strides, message):
    cu, bucket_of = np.array([0, 4], np.int32), np.array(values or [], np.int32)
    addresses = [bucket_of.ctypes.data if values else 0, *tables]
    sizes = (1, 1, 16, *(16, 16) * 3, 4, 4, 1.0, 0, 0, 1, window, addresses, 3, strides)
    with pytest.raises(ValueError, match=message):
        dispatch._C.attention_forward("float32", P, P, P, P, P, cu.ctypes.data, *sizes)


def test_a_gradient_of_an_absent_table_is_refused():
    cu, bucket_of = np.array([0, 4], np.int32), np.zeros(7, np.int32)
    sizes = (
        1,
        1,
        16,
        *(16, 16) * 4,
        4,
        4,
        1.0,
        0,
        0,
        1,
        -1,
        [bucket_of.ctypes.data, P, 0, 0],
        3,
        [0] * 4,
    )
    with pytest.raises(ValueError, match="of a table that is absent"):
        dispatch._C.attention_backward("float32", *[P] * 9, cu.ctypes.data, *sizes, [P, P, 0])
