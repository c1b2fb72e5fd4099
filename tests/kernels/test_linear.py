"""The dense layer is PyTorch's, whichever library multiplies, and leaves to PyTorch what the other
library is not for.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertfast.kernels import linear, products
from support import COMPILE_BACKEND, assert_close_to_float64

module = importlib.import_module("bertfast.kernels.linear")
SHAPE = (700, 200, 128)  # rows, in, out: more work than `products.LEAST`
onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture
def through_onednn(monkeypatch):
    """As on a CPU that MKL serves badly; how often oneDNN was called."""
    calls = []
    dense = module._dense
    monkeypatch.setattr(products, "_mkl_is_half_as_wide", lambda: True)
    monkeypatch.setattr(module, "_dense", lambda *args: (calls.append(args), dense(*args))[1])
    return calls


def inputs(rows, inner, columns, dtype=torch.float32):
    x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    return x.requires_grad_(), nn.Parameter(weight), nn.Parameter(torch.randn(columns, dtype=dtype))


@onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("form", ["contiguous", "strided", "three dimensions"])
def test_results_and_gradients_equal_float64(form, with_bias, through_onednn):
    x, weight, bias = inputs(*SHAPE)
    leaves = (x, weight, bias) if with_bias else (x, weight)
    view = {
        "contiguous": lambda x: x,
        "strided": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    }.get(form, lambda x: x.unflatten(0, (7, 100)))
    got = linear(view(x), weight, bias if with_bias else None)
    dout = torch.randn(got.shape)
    gradients = torch.autograd.grad(got, leaves, dout)
    assert len(through_onednn) == 3
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = F.linear(view(wide[0]), *wide[1:])
    assert_close_to_float64(got, wanted)
    for mine, other in zip(
        gradients, torch.autograd.grad(wanted, wide, dout.double()), strict=True
    ):
        assert_close_to_float64(mine, other)


@onednn
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_a_gelu_on_the_way_equals_float64(form, through_onednn):
    x, weight, bias = inputs(*SHAPE)
    assert not module.can_fuse_gelu(x, weight)
    with torch.no_grad():
        assert module.can_fuse_gelu(x, weight)
        got = linear(x, weight, bias, gelu=form)
        wanted = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate=form)
    assert_close_to_float64(got, wanted)


@onednn
def test_constant_weights_give_the_same_and_are_forgotten_afterwards(through_onednn):
    x, weight, bias = inputs(*SHAPE)
    with torch.no_grad():
        plain = linear(x, weight, bias)
        with module.constant_weights():
            for _ in range(2):
                torch.testing.assert_close(linear(x, weight, bias), plain, rtol=1e-6, atol=1e-5)
        weight.zero_()
        assert torch.equal(linear(x, weight, bias), bias.expand_as(plain))


@pytest.mark.parametrize("kind", ["small", "float64", "bfloat16", "autocast", "compiled"])
def test_everything_else_is_pytorchs_to_the_bit(kind, through_onednn, monkeypatch):
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, True)
    shape = (4, 8, 16) if kind == "small" else SHAPE
    x, weight, bias = inputs(
        *shape, dtype=getattr(torch, kind) if kind in ("float64", "bfloat16") else torch.float32
    )
    torch._dynamo.reset()
    call = (
        torch.compile(linear, fullgraph=True, backend=COMPILE_BACKEND)
        if kind == "compiled"
        else linear
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        got, wanted = call(x, weight, bias), F.linear(x, weight, bias)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(
        got, wanted, rtol=0 if kind != "compiled" else 1e-6, atol=0 if kind != "compiled" else 1e-5
    )
    assert not through_onednn
