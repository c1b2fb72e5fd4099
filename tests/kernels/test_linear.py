"""The dense layer is PyTorch's, whichever library multiplies, and leaves to PyTorch what the other
library is not for.
"""

import copy
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


def layers(bias=True, sizes=(4, 4, 4)):
    torch.manual_seed(0)
    return [nn.Linear(6, size, bias=bias) for size in sizes]


def weights(made):
    return [layer.weight for layer in made]


def test_parameters_that_lie_together_are_one_tensor_with_each_ones_gradient():
    made = layers(sizes=(4, 1, 7))
    values = [weight.detach().clone() for weight in weights(made)]
    assert module.together(weights(made)) is None
    module.lay_together(weights(made))
    whole = module.together(weights(made))
    assert torch.equal(whole, torch.cat(values))
    assert whole.data_ptr() == made[0].weight.data_ptr()
    assert all(torch.equal(w, value) for w, value in zip(weights(made), values, strict=True))
    made[1].weight.requires_grad_(False)
    dwhole = torch.randn(12, 6)
    module.together(weights(made)).backward(dwhole)
    assert torch.equal(made[0].weight.grad, dwhole[:4])
    assert made[1].weight.grad is None
    assert torch.equal(made[2].weight.grad, dwhole[5:])


def test_parameters_that_no_longer_lie_together_are_no_whole():
    made = layers()
    module.lay_together(weights(made))
    assert module.together(weights(made)[:2]).shape == (8, 6)
    assert module.together(weights(made)[::-1]) is None
    assert module.together(weights(made)[::2]) is None
    assert module.together(weights(copy.deepcopy(made))) is None
    assert module.together([weights(made)[0], *weights(layers())[1:]]) is None
    assert module.together([nn.Parameter(weights(made)[0].data.t()), *weights(made)[1:]]) is None
    for layer in made:
        layer.to(torch.float64)
    assert module.together(weights(made)) is None


@pytest.mark.parametrize("given", ["parts of one", "apart", "one is missing", "in another order"])
def test_unbinding_takes_back_what_is_one_tensor_already_without_a_copy(given):
    x = torch.randn(5, 3, 2, 4, requires_grad=True)
    parts = module.unbind(x)
    assert all(torch.equal(a, b) for a, b in zip(parts, x.unbind(1), strict=True))
    dx = torch.randn(5, 3, 2, 4)
    douts = dx.unbind(1)
    if given == "in another order":
        douts = douts[::-1]
    elif given != "parts of one":
        douts = [dout.clone() for dout in douts]
    if given == "one is missing":
        parts, douts = parts[:2], douts[:2]
        dx = torch.cat([dx[:, :2], torch.zeros(5, 1, 2, 4)], 1)
    seen = []
    x.register_hook(seen.append)
    torch.autograd.backward(parts, douts)
    assert torch.equal(x.grad, dx.flip(1) if given == "in another order" else dx)
    assert (seen[0].data_ptr() == dx.data_ptr()) == (given == "parts of one")


def test_unbinding_no_rows_gives_no_gradient():
    x = torch.randn(0, 3, 2, 4, requires_grad=True)
    sum(part.sum() for part in module.unbind(x)).backward()
    assert x.grad.shape == x.shape
