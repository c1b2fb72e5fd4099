"""What `dropout` promises on the reference and the C++ backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from support import DEVICE, assert_close_to_float64, forced

BACKENDS = ("reference", "cpp")


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 17), min_size=0, max_size=3),
    p=st.sampled_from([0.1, 0.5, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_shape_matches_the_float64_reference(backend, shape, p, dtype, seed):
    x = torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    dout = torch.randn(shape, dtype=dtype, device=DEVICE)
    wide = x.detach().double().requires_grad_()
    with forced("reference"):
        wanted = kernels.dropout(wide, p, seed=seed)
    with forced(backend, dtype):
        out = kernels.dropout(x, p, seed=seed)
        (dx,) = torch.autograd.grad(out, x, dout)
    assert torch.equal(out == 0, wanted == 0) or x.eq(0).any()
    assert_close_to_float64(out.detach(), wanted.detach())
    assert_close_to_float64(dx, torch.autograd.grad(wanted, wide, dout.double())[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_tensor_loses_the_share_asked_for(backend):
    with forced(backend):
        out = kernels.dropout(torch.ones(1 << 20, device=DEVICE), 0.1, seed=4)
    share = (out == 0).double().mean().item()
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / 2**20) ** 0.5
    assert out.max().item() == pytest.approx(1 / 0.9, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input_gives_what_contiguous_input_gives(backend):
    x = torch.randn(9, 14, device=DEVICE)
    with forced(backend):
        assert torch.equal(
            kernels.dropout(x.T, 0.5, seed=1), kernels.dropout(x.T.contiguous(), 0.5, seed=1)
        )
        assert torch.equal(
            kernels.dropout(x[:, ::2], 0.5), kernels.dropout(x[:, ::2].contiguous(), 0.5)
        )


def test_a_probability_of_zero_returns_the_input_itself():
    x = torch.randn(3)
    assert kernels.dropout(x, 0.0) is x


def test_the_reference_passes_gradcheck():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kernels.dropout(x, 0.4, seed=2), (x,))


def test_the_custom_op_passes_opcheck():
    with forced("cpp"):
        for x in (torch.randn(7, 9, requires_grad=True), torch.randn(9, 7).T, torch.randn(0)):
            torch.library.opcheck(
                torch.ops.bertfast.dropout.default, (x, torch.tensor([5]), 6554, "cpp")
            )


@pytest.mark.parametrize(
    ("x", "p", "error", "message"),
    [
        (torch.arange(3), 0.1, TypeError, "x is torch.int64"),
        (None, 0.1, TypeError, "x is a NoneType"),
        (torch.ones(3), -1, ValueError, "dropout probability is -1"),
    ],
)
def test_wrong_arguments_are_named(x, p, error, message):
    with pytest.raises(error, match=message):
        kernels.dropout(x, p)
