"""What `attention` promises on the reference and the C++ backend; `test_triton.py` holds the same for Triton."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels import reference
from bertfast.kernels.philox import as_seed, dropout_threshold
from support import COMPILE_BACKEND, DEVICE, assert_close_to_float64, boundaries, forced

HEAD_DIMS = (16, 32, 48, 64, 80, 96, 128)
BACKENDS = ("reference", "cpp")
LENGTHS = [5, 0, 1, 37, 2, 130]


def inputs(lengths, heads, head_dim, dtype, slack=0, seed=0):
    """q, k, v as slices of one projection, the form in which an encoder has them, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths) + slack
    qkv = torch.randn(tokens, 3, heads, head_dim, generator=generator).to(DEVICE, dtype)
    dout = torch.randn(tokens, heads, head_dim, generator=generator).to(DEVICE, dtype)
    return [x.detach().requires_grad_() for x in qkv.unbind(1)], dout, boundaries(lengths)


def run(qkv, dout, cu_seqlens, max_seqlen, **options):
    out = kernels.attention(*qkv, cu_seqlens, max_seqlen, **options)
    return [out.detach(), *torch.autograd.grad(out, qkv, dout)]


def float64_run(qkv, dout, cu_seqlens, max_seqlen, scale=None, dropout_p=0.0, seed=0):
    qkv = [x.detach().double().requires_grad_() for x in qkv]
    scale = qkv[0].shape[2] ** -0.5 if scale is None else scale
    threshold = dropout_threshold(dropout_p)
    out = reference.attention(*qkv, cu_seqlens, as_seed(seed, DEVICE), max_seqlen, scale, threshold)
    return [out.detach(), *torch.autograd.grad(out, qkv, dout.double())]


def check(backend, lengths, heads, head_dim, dtype, slack=0, **options):
    qkv, dout, cu_seqlens = inputs(lengths, heads, head_dim, dtype, slack)
    max_seqlen = max(lengths, default=0)
    with forced(backend, dtype):
        actual = run(qkv, dout, cu_seqlens, max_seqlen, **options)
    for got, wanted in zip(actual, float64_run(qkv, dout, cu_seqlens, max_seqlen, **options), strict=True):
        assert got.dtype == dtype
        assert_close_to_float64(got, wanted)


def test_the_reference_equals_scaled_dot_product_attention_of_each_sequence():
    (q, k, v), _, cu_seqlens = inputs(LENGTHS, 2, 32, torch.float64)
    out = reference.attention(q, k, v, cu_seqlens, as_seed(0, DEVICE), 130, 32**-0.5, 0)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q1, k1, v1 = (x[start:end].transpose(0, 1) for x in (q, k, v))
        wanted = torch.nn.functional.scaled_dot_product_attention(q1, k1, v1).transpose(0, 1)
        torch.testing.assert_close(out[start:end], wanted)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_the_reference_passes_gradcheck(dropout_p):
    qkv, _, cu_seqlens = inputs([3, 0, 1, 5], 2, 4, torch.float64, slack=2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: kernels.attention(q, k, v, cu_seqlens, 5, dropout_p=dropout_p, seed=3), qkv
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_head_size_and_dtype_matches_float64(backend, head_dim, dtype):
    check(backend, LENGTHS, 2, head_dim, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_matches_float64_under_the_same_mask(backend, dtype):
    check(backend, LENGTHS, 3, 64, dtype, dropout_p=0.3, seed=2**40 + 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_given_scale_is_used(backend):
    check(backend, [7, 20], 2, 16, torch.float32, scale=0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_sequences_match_float64(backend):
    check(backend, [1025, 3], 1, 64, torch.float32, dropout_p=0.1, seed=1)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 17, 33, 64, 65, 200]), max_size=6),
    head_dim=st.sampled_from(HEAD_DIMS),
    heads=st.integers(1, 3),
    slack=st.integers(0, 4),
    dropout_p=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_mix_of_lengths_matches_float64(backend, lengths, head_dim, heads, slack, dropout_p, dtype):
    check(backend, lengths, heads, head_dim, dtype, slack, dropout_p=dropout_p, seed=11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_ignores_tokens_of_other_sequences(backend):
    qkv, _, cu_seqlens = inputs([9, 33, 4], 2, 32, torch.float32, slack=3)
    with forced(backend):
        clean = kernels.attention(*qkv, cu_seqlens, 33)
        poisoned = [x.detach().clone() for x in qkv]
        for x in poisoned:
            x[9:42] = float("nan")
            x[46:] = float("inf")
        out = kernels.attention(*poisoned, cu_seqlens, 33)
    assert torch.equal(out[:9], clean[:9])
    assert torch.equal(out[42:46], clean[42:46])
    assert out[9:42].isnan().all()
    assert not out[46:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_slack_tokens_give_zeros_and_take_no_gradient(backend):
    qkv, dout, cu_seqlens = inputs([4, 6], 2, 16, torch.float32, slack=5)
    with forced(backend):
        for result in run(qkv, dout, cu_seqlens, 6, dropout_p=0.2, seed=1):
            assert not result[10:].any()
            assert result[:10].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
@pytest.mark.parametrize("slack", [0, 3])
def test_a_batch_with_no_tokens_gives_zeros(backend, lengths, slack):
    qkv, dout, cu_seqlens = inputs(lengths, 2, 16, torch.float32, slack)
    with forced(backend):
        for result in run(qkv, dout, cu_seqlens, 0):
            assert result.shape == (slack, 2, 16)
            assert not result.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    qkv, dout, cu_seqlens = inputs([5, 12], 2, 32, torch.float32)
    awkward = [
        x.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_() for x in qkv
    ]  # head elements far apart
    dout_strided = torch.stack([dout, dout], -1)[..., 0]
    with forced(backend):
        results = zip(run(qkv, dout, cu_seqlens, 12), run(awkward, dout_strided, cu_seqlens, 12), strict=True)
    for got, wanted in results:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpp_drops_exactly_what_the_reference_drops(dtype):
    """With V the identity, the output is the matrix of kept probabilities."""
    length, head_dim = 64, 64
    q, k = (torch.randn(length + 5, 3, head_dim, dtype=dtype) for _ in range(2))
    v = torch.zeros(length + 5, 3, head_dim, dtype=dtype)
    v[5:] = torch.eye(length, dtype=dtype)[:, None, :]
    cu_seqlens = boundaries([5, length], torch.device("cpu"))
    kept = []
    for backend in BACKENDS:
        with forced(backend, dtype):
            kept.append(kernels.attention(q, k, v, cu_seqlens, length, dropout_p=0.4, seed=-9)[5:] != 0)
    assert torch.equal(kept[0], kept[1])
    assert 0.35 < 1 - kept[0].float().mean().item() < 0.45


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_seed_and_an_integer_seed_are_the_same(backend):
    qkv, _, cu_seqlens = inputs([20], 2, 16, torch.float32)
    with forced(backend):
        one = kernels.attention(*qkv, cu_seqlens, 20, dropout_p=0.5, seed=77)
        other = kernels.attention(*qkv, cu_seqlens, 20, dropout_p=0.5, seed=torch.tensor([77], device=DEVICE))
        third = kernels.attention(*qkv, cu_seqlens, 20, dropout_p=0.5, seed=78)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_the_backward_is_the_same_bits_each_time_and_on_any_number_of_threads():
    qkv, dout, cu_seqlens = inputs([40, 3, 77], 4, 64, torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1, 3):
            torch.set_num_threads(count)
            with forced("cpp"):
                results.append(run(qkv, dout, cu_seqlens, 77, dropout_p=0.1))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_the_custom_op_passes_opcheck(dropout_p):
    qkv, _, cu_seqlens = inputs([4, 0, 9], 2, 16, torch.float32, slack=1)
    seed = as_seed(1, DEVICE)
    with forced("cpp"):
        arguments = (*qkv, cu_seqlens, seed, 9, 0.25, dropout_threshold(dropout_p), "cpp")
        torch.library.opcheck(torch.ops.bertfast.attention.default, arguments)
        out, lse = torch.ops.bertfast.attention(*arguments)
        backward = (
            torch.randn_like(out),
            *(x.detach() for x in (*qkv, out)),
            lse,
            cu_seqlens,
            seed,
            *arguments[5:],
        )
        torch.library.opcheck(torch.ops.bertfast.attention_backward.default, backward)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile_takes_it_without_a_graph_break(backend):
    qkv, dout, cu_seqlens = inputs([4, 9], 2, 16, torch.float32)

    def loss(q, k, v):
        return (kernels.attention(q, k, v, cu_seqlens, 9, dropout_p=0.1, seed=5) * dout).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*qkv), qkv)
        got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*qkv), qkv)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y)


def bad_calls():
    q = torch.randn(6, 2, 16)
    cu = boundaries([2, 4], torch.device("cpu"))
    yield "q is a list", TypeError, (([1.0], q, q, cu, 4), {})
    yield "q is torch.int64", TypeError, ((q.long(), q, q, cu, 4), {})
    yield "q has shape (6, 32)", ValueError, ((q.flatten(1), q, q, cu, 4), {})
    yield "k is torch.bfloat16 and q torch.float32", TypeError, ((q, q.bfloat16(), q, cu, 4), {})
    yield "v has shape (5, 2, 16)", ValueError, ((q, q, q[:5], cu, 4), {})
    yield "k is on meta", ValueError, ((q, q.to("meta"), q, cu, 4), {})
    yield "cu_seqlens is torch.int64", TypeError, ((q, q, q, cu.long(), 4), {})
    yield "cu_seqlens is on meta", ValueError, ((q, q, q, cu.to("meta"), 4), {})
    yield "cu_seqlens is empty", ValueError, ((q, q, q, cu[:0], 4), {})
    yield "cu_seqlens starts with 2", ValueError, ((q, q, q, cu[1:], 4), {})
    yield "cu_seqlens falls from 6 to 2", ValueError, ((q, q, q, cu[[0, 2, 1]], 6), {})
    yield "cu_seqlens ends at 6", ValueError, ((q[:5], q[:5], q[:5], cu, 4), {})
    yield "a sequence has 4 tokens and max_seqlen is 3", ValueError, ((q, q, q, cu, 3), {})
    yield "max_seqlen is -1", ValueError, ((q, q, q, cu, -1), {})
    yield "scale is nan", ValueError, ((q, q, q, cu, 4), {"scale": float("nan")})
    yield "dropout probability is 1", ValueError, ((q, q, q, cu, 4), {"dropout_p": 1})
    yield "seed is a str", TypeError, ((q, q, q, cu, 4), {"dropout_p": 0.1, "seed": "0"})


@pytest.mark.parametrize(("message", "error", "call"), list(bad_calls()), ids=lambda x: x if isinstance(x, str) else "")
def test_wrong_arguments_are_named(message, error, call):
    arguments, options = call
    with pytest.raises(error) as caught:
        kernels.attention(*arguments, **options)
    assert message in str(caught.value)


def test_a_head_size_that_the_forced_backend_lacks_is_named():
    q = torch.randn(3, 1, 24)
    with forced("cpp"), pytest.raises(kernels.BackendError, match="head size is 24, it takes 16, 32"):
        kernels.attention(q, q, q, boundaries([3], torch.device("cpu")), 3)
