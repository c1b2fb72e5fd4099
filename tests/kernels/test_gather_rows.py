"""What `gather_rows` promises on the reference and the C++ backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from support import DEVICE, forced

BACKENDS = ("reference", "cpp")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 40),
    hidden=st.sampled_from([1, 3, 16, 65]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    data=st.data(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_come_out_and_gradients_go_back(backend, rows, hidden, dtype, data):
    chosen = data.draw(st.lists(st.integers(0, max(rows - 1, 0)), unique=True, max_size=rows))
    index = torch.tensor(
        [*chosen, -1][: len(chosen) + data.draw(st.integers(0, 1))], dtype=torch.int64
    )
    index = index[torch.randperm(len(index))].to(DEVICE)
    x = torch.randn(rows, hidden, dtype=dtype, device=DEVICE, requires_grad=True)
    dout = torch.randn(len(index), hidden, dtype=dtype, device=DEVICE)
    with forced(backend):
        out = kernels.gather_rows(x, index)
        (dx,) = torch.autograd.grad(out, x, dout)
    wanted, wanted_dx = torch.zeros_like(out), torch.zeros_like(x)
    for m, row in enumerate(index.tolist()):
        if row >= 0:
            wanted[m], wanted_dx[row] = x[row], dout[m]
    assert torch.equal(out, wanted)
    assert torch.equal(dx, wanted_dx)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input_gives_what_contiguous_input_gives(backend):
    x = torch.randn(8, 12, device=DEVICE)
    index = torch.tensor([6, 0, -1, 3], device=DEVICE)
    with forced(backend):
        assert torch.equal(
            kernels.gather_rows(x.T[:8], index), x.T[:8].contiguous()[index] * (index >= 0)[:, None]
        )
        assert torch.equal(kernels.gather_rows(x[:, 2:7], index[::3]), x[index[::3], 2:7])


def test_the_reference_passes_gradcheck():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, -1, 0])
    with forced("reference"):
        assert torch.autograd.gradcheck(lambda x: kernels.gather_rows(x, index), (x,))


def test_the_custom_ops_pass_opcheck():
    index = torch.tensor([2, -1, 0])
    with forced("cpp"):
        for x in (torch.randn(5, 4, requires_grad=True), torch.randn(4, 5).T):
            torch.library.opcheck(torch.ops.bertfast.gather_rows.default, (x, index, "cpp"))
        dout = torch.randn(3, 4, requires_grad=True)
        torch.library.opcheck(torch.ops.bertfast.scatter_rows.default, (dout, index, 5, "cpp"))


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("x", "index", "error", "message"),
    [
        (X.long(), torch.tensor([0]), TypeError, "x is torch.int64"),
        (X[0], torch.tensor([0]), ValueError, r"x has shape \(3,\)"),
        (
            X,
            torch.tensor([0], dtype=torch.int32),
            TypeError,
            "index is torch.int32; it must be torch.int64",
        ),
        (X, torch.tensor([[0]]), ValueError, r"index has shape \(1, 1\)"),
        (X, [0], TypeError, "index is a list"),
        (
            X,
            torch.tensor([4]),
            ValueError,
            "index holds 4; x has 4 rows, so it must be from -1 to 3",
        ),
        (X, torch.tensor([-2]), ValueError, "index holds -2"),
        (X, torch.tensor([1, 2, 1]), ValueError, "index holds 1 twice"),
        (X, torch.tensor([0], device="meta"), ValueError, "index is on meta and x on cpu"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_named(backend, x, index, error, message):
    with forced(backend), pytest.raises(error, match=message):
        kernels.gather_rows(x, index)
