"""What `bias_gelu` promises on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from support import (
    BACKENDS,
    COMPILE_BACKEND,
    DEVICE,
    assert_close_to_float64,
    assert_matches_float64,
    differentiate,
    forced,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def parts(rows, features, gated=False):
    generator = torch.Generator().manual_seed(0)
    width = 2 * features if gated else features
    shapes = ((rows, width), (width,), (rows, features))
    return [(torch.randn(*shape, generator=generator) * 2).to(DEVICE) for shape in shapes]


@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    features=st.sampled_from([1, 7, 16, 300]),
    dtype=st.sampled_from(DTYPES),
    approximate=st.sampled_from(["none", "tanh"]),
    gated=st.booleans(),
    has_bias=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_any_form_matches_float64(backend, rows, features, dtype, approximate, gated, has_bias):
    x, bias, dout = parts(rows, features, gated)
    leaves = [x, bias if has_bias else None]
    assert_matches_float64(
        lambda *a: kernels.bias_gelu(*a, approximate=approximate, gated=gated),
        leaves,
        [dout],
        backend,
        dtype,
    )


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_the_whole_line_of_floats_is_right(backend, approximate):
    """From one edge of float32 to the other, where powers of x overflow and Phi is 0 or 1."""
    small = torch.linspace(-12, 12, 4001)
    large = torch.logspace(
        2, 12 if backend == "reference" else 38, 75
    )  # PyTorch's own gradient is NaN where x^3 overflows
    x = torch.cat([small, large, -large, torch.zeros(1)]).to(DEVICE)[None].requires_grad_()
    wide = x.detach().double().requires_grad_()
    with forced(backend):
        out = kernels.bias_gelu(x, approximate=approximate)
        (dx,) = torch.autograd.grad(out, x, torch.ones_like(x))
    wanted = F.gelu(wide.clamp(-50, 50), approximate=approximate)
    inside = (wide.detach().abs() <= 50).squeeze(0)
    (dwide,) = torch.autograd.grad(wanted, wide, torch.ones_like(wide))
    assert_close_to_float64(out.detach()[0, inside], wanted.detach()[0, inside], scale=1.0)
    assert_close_to_float64(dx[0, inside], dwide[0, inside], scale=1.0)
    outer = x.detach()[0, ~inside]
    torch.testing.assert_close(out.detach()[0, ~inside], outer.clamp(min=0))
    torch.testing.assert_close(dx[0, ~inside], (outer > 0).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "limit"), [("cpp", 1e-6), ("triton", 3e-7)])
def test_the_exact_form_and_its_slope_are_within_a_limit_of_float64(backend, limit, dtype):
    """And a rounding of the result, from tail to tail; in Triton, relative to the result too."""
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.cat([torch.linspace(-14, 14, 2801), torch.tensor([0.0, tiny, -tiny, tiny / 64])])
    x = x.to(DEVICE, dtype)[None].requires_grad_()
    with forced(backend, dtype):
        out = kernels.bias_gelu(x)
        (dx,) = torch.autograd.grad(out, x, torch.ones_like(x))
    wide = x.detach().double().requires_grad_()
    wanted = wide * torch.erfc(-wide * 0.5**0.5) / 2
    (dwide,) = torch.autograd.grad(wanted, wide, torch.ones_like(wide))
    eps = torch.finfo(dtype).eps
    for got, exact in ((out, wanted), (dx, dwide)):
        assert ((got.double() - exact).abs() <= limit + eps * exact.abs()).all()
    if backend == "triton":
        below = (wide < 0) & (wide > (-3 if dtype == torch.float16 else -12))
        below &= wanted.abs() > tiny
        assert ((out.double() / wanted - 1).abs()[below] <= 5e-4 + eps).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_infinity_has_the_limits(backend, approximate):
    x = torch.tensor([[float("inf"), -float("inf")]], device=DEVICE, requires_grad=True)
    with forced(backend):
        out = kernels.bias_gelu(x, approximate=approximate)
        (dx,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert out.tolist() == [[float("inf"), 0.0]]
    assert dx.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_nan(backend):
    with forced(backend):
        out = kernels.bias_gelu(torch.tensor([[float("nan"), 1.0]], device=DEVICE))
    assert out.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gated_is_the_first_half_through_gelu_times_the_second(backend):
    x, bias, _ = parts(5, 12, gated=True)
    with forced(backend):
        out = kernels.bias_gelu(x, bias, gated=True)
    first, second = (x + bias).chunk(2, -1)
    torch.testing.assert_close(out, F.gelu(first) * second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_gated_without_a_bias_is_the_inner_layer_of_transformers_modernbert(backend):
    modernbert = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    config = modernbert.ModernBertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=24
    )
    layer, x = modernbert.ModernBertMLP(config).to(DEVICE), torch.randn(5, 16, device=DEVICE)
    with forced(backend):
        out = layer.Wo(kernels.bias_gelu(layer.Wi(x), None, gated=True))
    torch.testing.assert_close(out, layer(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_and_strides_do_not_matter(backend):
    x, bias, dout = parts(12, 20)
    one = differentiate(kernels.bias_gelu, [x, bias], [dout], backend, torch.float32)
    for inputs in (x.view(3, 4, 20), x.T.contiguous().T.view(3, 4, 20)):
        other = differentiate(
            kernels.bias_gelu, [inputs, bias], [dout.view(3, 4, 20)], backend, torch.float32
        )
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a.flatten(), b.flatten())


def test_the_backward_is_the_same_bits_on_any_number_of_threads():
    x, bias, dout = parts(300, 40)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                differentiate(kernels.bias_gelu, [x, bias], [dout], "cpp", torch.float32)
            )
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True)
    )


@pytest.mark.parametrize("gated", [False, True])
def test_the_reference_passes_gradcheck(gated):
    x, bias, _ = (t.cpu().double().requires_grad_() for t in parts(3, 4, gated))
    assert torch.autograd.gradcheck(lambda *a: kernels.bias_gelu(*a, gated=gated), (x, bias))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_custom_ops_pass_opcheck(gated, has_bias):
    x, bias, dout = (t.cpu() for t in parts(5, 12, gated))
    bias = bias.requires_grad_() if has_bias else None
    with forced("cpp"):
        torch.library.opcheck(
            torch.ops.bertfast.bias_gelu.default, (x.requires_grad_(), bias, False, gated, "cpp")
        )
        arguments = (dout, x.detach(), None if bias is None else bias.detach(), True, gated, "cpp")
        torch.library.opcheck(torch.ops.bertfast.bias_gelu_backward.default, arguments)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    x, bias, dout = parts(6, 16)
    leaves = [x.requires_grad_(), bias.requires_grad_()]

    def loss(*a):
        return (kernels.bias_gelu(*a) * dout).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*leaves), leaves
        )
    torch.testing.assert_close(got, wanted)


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.long(),), {}, TypeError, "x is torch.int64"),
        ((X[0, 0],), {}, ValueError, r"x has shape \(\)"),
        ((X[:, :0],), {}, ValueError, "at least one column"),
        ((X,), {"gated": True}, ValueError, "x has 3 columns; gated, it must have an even number"),
        ((X, X[0, :2]), {}, ValueError, "bias has 2 entries and x 3 columns"),
        ((X, X), {}, ValueError, r"bias has shape \(4, 3\)"),
        ((X, X[0].to("meta")), {}, ValueError, "bias is on meta"),
        (
            (X,),
            {"approximate": "sigmoid"},
            ValueError,
            "approximate is 'sigmoid'; it must be one of none, tanh",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.bias_gelu(*arguments, **options)
