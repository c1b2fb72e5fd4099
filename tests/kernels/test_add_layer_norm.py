"""What `add_layer_norm` promises on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels.layer_norm_triton import row_pieces
from support import BACKENDS, COMPILE_BACKEND, DEVICE, assert_matches_float64, differentiate, forced

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def parts(rows, hidden, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, hidden), (rows, hidden), (hidden,), (hidden,), (rows, hidden), (rows, hidden))
    return [torch.randn(*shape, generator=generator).to(DEVICE) for shape in shapes]


@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    hidden=st.sampled_from([1, 7, 16, 24, 100, 131]),
    dtype=st.sampled_from(DTYPES),
    p=st.sampled_from([0.0, 0.3]),
    rms=st.booleans(),
    prenorm=st.booleans(),
    has_residual=st.booleans(),
    has_bias=st.booleans(),
    has_x_bias=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_any_form_matches_float64(
    backend, rows, hidden, dtype, p, rms, prenorm, has_residual, has_bias, has_x_bias
):
    x, residual, weight, bias, dout, dsummed = parts(rows, hidden)
    options = {"eps": 1e-3, "dropout_p": p, "seed": 2**40 + 3, "rms": rms, "prenorm": prenorm}
    leaves = [x, residual if has_residual else None, weight, bias if has_bias and not rms else None]
    leaves.append(bias.flip(0) if has_x_bias else None)
    douts = [dout, dsummed] if prenorm else [dout]
    assert_matches_float64(
        lambda *a: kernels.add_layer_norm(*a[:-1], x_bias=a[-1], **options),
        leaves,
        douts,
        backend,
        dtype,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_bert_sized_row_matches_float64(backend, dtype):
    x, residual, weight, bias, dout, _ = parts(5, 768)
    options = {"dropout_p": 0.1, "seed": 7}
    assert_matches_float64(
        lambda *a: kernels.add_layer_norm(*a[:-1], x_bias=a[-1], **options),
        [x, residual, weight, bias, bias.flip(0)],
        [dout],
        backend,
        dtype,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_dropout_then_sum_then_layer_norm(backend):
    x, residual, weight, bias, _, _ = parts(9, 24)
    with forced(backend):
        out = kernels.add_layer_norm(x, residual, weight, bias, eps=1e-5, dropout_p=0.4, seed=11)
        dropped = kernels.dropout(x, 0.4, seed=11)
    torch.testing.assert_close(
        out, F.layer_norm(dropped + residual, (24,), weight, bias, 1e-5), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prenorm", [False, True])
def test_the_bias_of_x_is_one_that_a_dense_layer_had_added(backend, prenorm):
    x, residual, weight, bias, dout, dsummed = parts(9, 24)
    options = {"dropout_p": 0.4, "seed": 11, "prenorm": prenorm}
    leaves, douts = [x, residual, weight, bias, bias.neg()], [dout, dsummed][: 1 + prenorm]

    def inside(x, residual, weight, bias, x_bias):
        return kernels.add_layer_norm(x, residual, weight, bias, x_bias=x_bias, **options)

    def before(x, residual, weight, bias, x_bias):
        return kernels.add_layer_norm(x + x_bias, residual, weight, bias, **options)

    one, other = (
        differentiate(call, leaves, douts, backend, torch.float32) for call in (inside, before)
    )
    torch.testing.assert_close(one, other)


def test_the_triton_backward_is_the_same_bits_each_time_and_for_any_rows_of_a_tile():
    *leaves, dout, _ = parts(37, 48)

    def call(*a):
        return kernels.add_layer_norm(*a[:-1], x_bias=a[-1], dropout_p=0.1)

    leaves.append(leaves[-1].neg())
    one, other = (differentiate(call, leaves, [dout], "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("hidden", [16, 20, 128, 384, 768, 1000, 1024, 1536, 4096, 5000])
def test_a_row_is_cut_into_few_tiles_that_hold_it(hidden):
    cut = row_pieces(hidden)
    pieces, columns = cut["PIECES"], cut["COLUMNS"]
    assert columns & (columns - 1) == 0
    assert (pieces - 1) * columns < hidden <= pieces * columns
    assert pieces <= 4
    if hidden % 128 == 0 and hidden <= 1536:
        assert pieces * columns == hidden


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_mean_costs_no_precision(backend):
    """The variance is of the centred row: E[s^2] - E[s]^2 would be lost here."""
    x = parts(4, 64)[0].double() + 1000
    weight, bias = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    with forced(backend):
        out = kernels.add_layer_norm(x.float(), None, weight, bias)
    wanted = F.layer_norm(x.float().double(), (64,), eps=1e-12)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_and_strides_do_not_matter(backend):
    x, residual, weight, bias, dout, _ = parts(12, 20)
    leaves = [x.view(3, 4, 20), residual.view(3, 4, 20), weight, bias]
    awkward = [
        x.T.contiguous().T.view(3, 4, 20),
        torch.stack([residual] * 2, -1)[..., 0].view(3, 4, 20),
        weight,
        bias,
    ]

    def call(*a):
        return kernels.add_layer_norm(*a, dropout_p=0.2, seed=1)

    one = differentiate(call, [x, residual, weight, bias], [dout], backend, torch.float32)
    for inputs in (leaves, awkward):
        other = differentiate(call, inputs, [dout.view(3, 4, 20)], backend, torch.float32)
        assert all(torch.equal(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True))


def test_weights_may_be_wider_than_the_tokens():
    x, residual, weight, bias, _, _ = parts(6, 32)
    with forced("cpp", torch.bfloat16):
        out = kernels.add_layer_norm(x.bfloat16(), residual.bfloat16(), weight, bias)
    assert out.dtype == torch.bfloat16


def test_the_backward_is_the_same_bits_on_any_number_of_threads():
    *leaves, dout, _ = parts(300, 48)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                differentiate(
                    lambda *a: kernels.add_layer_norm(*a, dropout_p=0.1),
                    leaves,
                    [dout],
                    "cpp",
                    torch.float32,
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True)
    )


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_the_reference_passes_gradcheck(p):
    x, residual, weight, bias, _, _ = (t.cpu().double().requires_grad_() for t in parts(3, 5))
    call = lambda *a: kernels.add_layer_norm(*a, dropout_p=p, seed=2, eps=1e-3, prenorm=True)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, residual, weight, bias))


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("threshold", [0, 6554])
def test_the_custom_ops_pass_opcheck(threshold, prenorm):
    x, residual, weight, bias, dout, dsummed = (t.cpu() for t in parts(5, 12))
    seed = torch.tensor([5])
    with forced("cpp"):
        arguments = (
            x.requires_grad_(),
            x[0].detach() if prenorm else None,
            residual,
            weight.requires_grad_(),
            bias,
            seed,
            1e-5,
            threshold,
            False,
            prenorm,
            "cpp",
        )
        torch.library.opcheck(torch.ops.bertfast.add_layer_norm.default, arguments)
        _, _, mean, rstd = torch.ops.bertfast.add_layer_norm(*arguments)
        backward = (
            dout,
            dsummed if prenorm else None,
            x.detach(),
            x[0].detach() if prenorm else None,
            residual,
            weight.detach(),
            mean,
            rstd,
            seed,
        )
        torch.library.opcheck(
            torch.ops.bertfast.add_layer_norm_backward.default, (*backward, threshold, False, "cpp")
        )


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    *leaves, dout, _ = parts(6, 16)
    leaves = [x.requires_grad_() for x in leaves]

    def loss(*a):
        return (kernels.add_layer_norm(*a, dropout_p=0.1, seed=5) * dout).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*leaves), leaves
        )
    torch.testing.assert_close(got, wanted)


X, W = torch.randn(4, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.long(), None, W, W), {}, TypeError, "x is torch.int64"),
        ((X[0, 0], None, W, W), {}, ValueError, r"x has shape \(\)"),
        ((X[:, :0], None, W[:0], W[:0]), {}, ValueError, "at least one column"),
        ((X, X[:2], W, W), {}, ValueError, r"residual has shape \(2, 3\) and x \(4, 3\)"),
        ((X, X.bfloat16(), W, W), {}, TypeError, "residual is torch.bfloat16 and x torch.float32"),
        ((X, X, W[:2], W), {}, ValueError, "weight has 2 entries and x 3 columns"),
        ((X, X, W, W[None]), {}, ValueError, r"bias has shape \(1, 3\)"),
        ((X, X, W, W.double()), {}, TypeError, "bias is torch.float64 and weight torch.float32"),
        ((X, X, W.to("meta"), None), {}, ValueError, "weight is on meta"),
        ((X, X, W, W), {"rms": True}, ValueError, "an RMSNorm has no bias"),
        ((X, X, W, W), {"x_bias": W[:2]}, ValueError, "x_bias has 2 entries and x 3 columns"),
        ((X, X, W, W), {"x_bias": W.long()}, TypeError, "x_bias is torch.int64"),
        ((X, X, W, W), {"eps": -1.0}, ValueError, "eps is -1.0"),
        ((X, X, W, W), {"dropout_p": 1.0}, ValueError, "dropout probability is 1.0"),
        ((X, X, W, W), {"seed": 1.5}, TypeError, "seed is a float"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.add_layer_norm(*arguments, **options)
