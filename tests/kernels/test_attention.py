"""What `attention` promises on the reference and the C++ backend; `test_triton.py` holds the same
for Triton.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels import dispatch, reference
from bertfast.kernels.philox import as_seed, attention_threshold
from support import (
    COMPILE_BACKEND,
    DEVICE,
    assert_close_to_float64,
    boundaries,
    forced,
    random_positions,
)

HEAD_DIMS = (16, 32, 48, 64, 80, 96, 128)
BACKENDS = ("reference", "cpp")
LENGTHS = [5, 0, 1, 37, 2, 130]


def inputs(lengths, heads, head_dim, dtype, slack=0, seed=0):
    """q, k, v as slices of one projection, the form in which an encoder has them, and the gradient
    of the output.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths) + slack
    qkv = torch.randn(tokens, 3, heads, head_dim, generator=generator).to(DEVICE, dtype)
    dout = torch.randn(tokens, heads, head_dim, generator=generator).to(DEVICE, dtype)
    return [x.detach().requires_grad_() for x in qkv.unbind(1)], dout, boundaries(lengths)


def tables_of(positions):
    return [x for x in positions.tables if x is not None] if positions else []


def run(qkv, dout, cu_seqlens, max_seqlen, **options):
    """The output, then the gradients of q, k, v and of the tables of the positions."""
    out = kernels.attention(*qkv, cu_seqlens, max_seqlen, **options)
    return [
        out.detach(),
        *torch.autograd.grad(out, [*qkv, *tables_of(options.get("positions"))], dout),
    ]


def float64_run(
    qkv,
    dout,
    cu_seqlens,
    max_seqlen,
    scale=None,
    dropout_p=0.0,
    seed=0,
    window=None,
    positions=None,
):
    qkv = [x.detach().double().requires_grad_() for x in qkv]
    scale = qkv[0].shape[2] ** -0.5 if scale is None else scale
    threshold = attention_threshold(dropout_p)
    window = -1 if window is None else window
    if positions is not None:
        wide = [
            None if x is None else x.detach().double().requires_grad_() for x in positions.tables
        ]
        positions = kernels.RelativePositions(positions.buckets, *wide)
    out = reference.attention(
        *qkv, cu_seqlens, as_seed(seed, DEVICE), max_seqlen, scale, threshold, window, positions
    )
    return [out.detach(), *torch.autograd.grad(out, [*qkv, *tables_of(positions)], dout.double())]


def check(backend, lengths, heads, head_dim, dtype, slack=0, tables="", **options):
    qkv, dout, cu_seqlens = inputs(lengths, heads, head_dim, dtype, slack)
    max_seqlen = max(lengths, default=0)
    if tables:
        options["positions"] = random_positions(
            tables, sum(lengths) + slack, heads, max_seqlen, dtype
        )
    with forced(backend, dtype):
        actual = run(qkv, dout, cu_seqlens, max_seqlen, **options)
    for number, (got, wanted) in enumerate(
        zip(actual, float64_run(qkv, dout, cu_seqlens, max_seqlen, **options), strict=True)
    ):
        assert got.dtype == dtype
        # A score's gradient is a difference of products over head_dim, whose size is that of the
        # errors where it cancels. A table's, behind those of q, k and v, sums them over tokens.
        terms = head_dim if number < 4 else head_dim * max(sum(lengths), 1)
        size = max(wanted.abs().max().item() if wanted.numel() else 0.0, terms**0.5)
        assert_close_to_float64(got, wanted, size)


def test_the_reference_equals_scaled_dot_product_attention_of_each_sequence():
    (q, k, v), _, cu_seqlens = inputs(LENGTHS, 2, 32, torch.float64)
    out = reference.attention(q, k, v, cu_seqlens, as_seed(0, DEVICE), 130, 32**-0.5, 0)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q1, k1, v1 = (x[start:end].transpose(0, 1) for x in (q, k, v))
        wanted = torch.nn.functional.scaled_dot_product_attention(q1, k1, v1).transpose(0, 1)
        torch.testing.assert_close(out[start:end], wanted)


def explicit_scores(q, k, positions, start, length, scale, window=None):
    """The formula of the scores of one sequence, an element at a time."""
    bias, query_scores, key_scores = positions.tables
    longest = (len(positions.buckets) + 1) // 2
    scores = torch.full((q.shape[1], length, length), float("-inf"), dtype=q.dtype)
    for i in range(length):
        for j in range(length):
            if window is None or abs(i - j) <= window:
                b = int(positions.buckets[i - j + longest - 1])
                terms = bias[:, b] + query_scores[start + i, :, b] + key_scores[start + j, :, b]
                scores[:, i, j] = scale * (q[start + i] * k[start + j]).sum(-1) + terms
    return scores


@pytest.mark.parametrize("window", [None, 0, 2])
def test_the_reference_adds_the_terms_of_the_formula_and_sees_the_window(window):
    (q, k, v), _, cu_seqlens = inputs([3, 6], 2, 4, torch.float64)
    positions = random_positions("bqk", 9, 2, 7, torch.float64)
    out = kernels.attention(q, k, v, cu_seqlens, 7, scale=0.3, window=window, positions=positions)
    for start, length in ((0, 3), (3, 6)):
        scores = explicit_scores(q, k, positions, start, length, 0.3, window)
        wanted = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[start : start + length])
        torch.testing.assert_close(out[start : start + length], wanted)


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("tables", ["b", "q", "k", "bqk"])
@pytest.mark.slow_unless(lambda window: window is None)
def test_the_reference_passes_gradcheck_with_positions(tables, window):
    qkv, _, cu_seqlens = inputs([3, 0, 1, 4], 2, 2, torch.float64, slack=1)
    positions = random_positions(tables, 9, 2, 4, torch.float64, buckets=3)
    given = iter(range(3, 6))
    places = [None if x is None else next(given) for x in positions.tables]

    def function(*leaves):
        tables = (None if place is None else leaves[place] for place in places)
        moved = kernels.RelativePositions(positions.buckets, *tables)
        return kernels.attention(
            *leaves[:3], cu_seqlens, 4, window=window, positions=moved, dropout_p=0.2, seed=1
        )

    assert torch.autograd.gradcheck(function, (*qkv, *tables_of(positions)))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_the_reference_passes_gradcheck(dropout_p):
    qkv, _, cu_seqlens = inputs([3, 0, 1, 5], 2, 4, torch.float64, slack=2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: kernels.attention(q, k, v, cu_seqlens, 5, dropout_p=dropout_p, seed=3), qkv
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend, dtype: backend == "cpp" and dtype != torch.float16)
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
@pytest.mark.slow
def test_long_sequences_match_float64(backend):
    check(backend, [1025, 3], 1, 64, torch.float32, dropout_p=0.1, seed=1)


@pytest.mark.parametrize("window", [0, 1, 16, 63, 64, 100, 128, 129, 2**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend, dtype: backend == "cpp" and dtype == torch.float32)
def test_every_window_matches_float64(backend, dtype, window):
    check(backend, [*LENGTHS, 200], 2, 32, dtype, slack=1, window=window, dropout_p=0.2, seed=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tables", ["b", "q", "k", "bq", "bk", "qk", "bqk"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend, dtype: backend == "cpp" and dtype != torch.float16)
def test_every_table_matches_float64(backend, tables, dtype):
    check(backend, LENGTHS, 3, 32, dtype, slack=2, tables=tables)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 16, 17, 64, 65, 150]), max_size=5),
    head_dim=st.sampled_from(HEAD_DIMS),
    heads=st.integers(1, 3),
    slack=st.integers(0, 4),
    dropout_p=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from(dispatch.DTYPES),
    tables=st.sampled_from(["", "b", "q", "k", "bqk"]),
    window=st.one_of(st.none(), st.integers(0, 160)),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_positions_and_window_match_float64(
    backend, lengths, head_dim, heads, slack, dropout_p, dtype, tables, window
):
    check(
        backend,
        lengths,
        heads,
        head_dim,
        dtype,
        slack,
        tables,
        dropout_p=dropout_p,
        seed=11,
        window=window,
    )


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 17, 33, 64, 65, 200]), max_size=6),
    head_dim=st.sampled_from(HEAD_DIMS),
    heads=st.integers(1, 3),
    slack=st.integers(0, 4),
    dropout_p=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from(dispatch.DTYPES),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_mix_of_lengths_matches_float64(
    backend, lengths, head_dim, heads, slack, dropout_p, dtype
):
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
def test_slack_rows_of_the_tables_are_not_read_and_take_no_gradient(backend):
    qkv, dout, cu_seqlens = inputs([4, 6], 2, 16, torch.float32, slack=5)
    clean = random_positions("bqk", 15, 2, 6)
    poisoned = random_positions("bqk", 15, 2, 6)
    for x in poisoned.tables[1:]:
        x.data[10:] = float("nan")
    with forced(backend):
        wanted, got = (
            run(qkv, dout, cu_seqlens, 6, positions=positions) for positions in (clean, poisoned)
        )
    for x, y in zip(got, wanted, strict=True):
        assert torch.equal(x, y)
    for gradient in got[5:]:
        assert not gradient[10:].any()
        assert gradient[:10].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lengths", "slack"), [([], 0), ([], 3), ([0, 0], 0), ([0, 0], 3)])
def test_tables_of_a_batch_with_no_tokens_get_zeros(backend, lengths, slack):
    qkv, dout, cu_seqlens = inputs(lengths, 2, 16, torch.float32, slack)
    for max_seqlen in (0, 4):
        positions = random_positions("bqk", slack, 2, max_seqlen)
        with forced(backend):
            results = run(qkv, dout, cu_seqlens, max_seqlen, positions=positions, window=1)
        for result, like in zip(results[4:], positions.tables, strict=True):
            assert result.shape == like.shape
            assert not result.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trained", range(3))
def test_a_table_that_needs_no_gradient_changes_no_other_gradient(backend, trained):
    qkv, dout, cu_seqlens = inputs([5, 12], 2, 32, torch.float32)
    positions = random_positions("bqk", 17, 2, 12)
    with forced(backend):
        wanted = run(qkv, dout, cu_seqlens, 12, positions=positions)
        for place, table in enumerate(positions.tables):
            table.requires_grad_(place == trained)
        out = kernels.attention(*qkv, cu_seqlens, 12, positions=positions)
        got = torch.autograd.grad(out, [*qkv, positions.tables[trained]], dout)
    for x, y in zip(got, [*wanted[1:4], wanted[4 + trained]], strict=True):
        assert torch.equal(x, y)


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
    positions = random_positions("bqk", 17, 2, 12)
    # The scores as a batched product by head leaves them; a bias with its buckets apart; every
    # other distance of a longer list.
    by_head = [
        x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        for x in positions.tables[1:]
    ]
    bias = positions.bias.detach().T.contiguous().T.requires_grad_()
    strided = kernels.RelativePositions(positions.buckets.repeat_interleave(2)[::2], bias, *by_head)
    with forced(backend):
        wanted_results = run(qkv, dout, cu_seqlens, 12, positions=positions)
        results = zip(
            run(awkward, dout_strided, cu_seqlens, 12, positions=strided),
            wanted_results,
            strict=True,
        )
    for got, wanted in results:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
def test_boundaries_may_be_every_other_element_of_a_longer_list(backend):
    qkv, dout, cu_seqlens = inputs([4, 0, 4, 1], 1, 16, torch.float32, slack=2)
    strided = torch.stack([cu_seqlens, torch.full_like(cu_seqlens, 9)], 1).flatten()[::2]
    assert not strided.is_contiguous()
    with forced(backend):
        results = zip(
            run(qkv, dout, strided, 4), run(qkv, dout, cu_seqlens.clone(), 4), strict=True
        )
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
            kept.append(
                kernels.attention(q, k, v, cu_seqlens, length, dropout_p=0.4, seed=-9)[5:] != 0
            )
    assert torch.equal(kept[0], kept[1])
    assert 0.35 < 1 - kept[0].float().mean().item() < 0.45


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_seed_and_an_integer_seed_are_the_same(backend):
    qkv, _, cu_seqlens = inputs([20], 2, 16, torch.float32)
    with forced(backend):
        one = kernels.attention(*qkv, cu_seqlens, 20, dropout_p=0.5, seed=77)
        other = kernels.attention(
            *qkv, cu_seqlens, 20, dropout_p=0.5, seed=torch.tensor([77], device=DEVICE)
        )
        third = kernels.attention(*qkv, cu_seqlens, 20, dropout_p=0.5, seed=78)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


@pytest.mark.parametrize("tables", ["", "bqk"])
def test_the_backward_is_the_same_bits_each_time_and_on_any_number_of_threads(tables):
    qkv, dout, cu_seqlens = inputs([40, 3, 77], 4, 64, torch.float32)
    positions = random_positions(tables, 120, 4, 77)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1, 3):
            torch.set_num_threads(count)
            with forced("cpp"):
                results.append(run(qkv, dout, cu_seqlens, 77, dropout_p=0.1, positions=positions))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("dropout_p", "tables", "window"),
    [(0.0, "", -1), (0.25, "", 2), (0.25, "bqk", -1), (0.0, "k", 3)],
)
def test_the_custom_op_passes_opcheck(dropout_p, tables, window):
    qkv, _, cu_seqlens = inputs([4, 0, 9], 2, 16, torch.float32, slack=1)
    seed, positions = as_seed(1, DEVICE), random_positions(tables, 14, 2, 9)
    options = (9, 0.25, attention_threshold(dropout_p), window, "cpp")
    with forced("cpp"):
        arguments = (
            *qkv,
            cu_seqlens,
            seed,
            None,
            positions.buckets if tables else None,
            *positions.tables,
        )
        torch.library.opcheck(torch.ops.bertfast.attention.default, (*arguments, *options))
        out, lse = torch.ops.bertfast.attention(*arguments, *options)
        q, k, v, *rest = (x if x is None else x.detach() for x in arguments)
        wanted = [x is not None for x in positions.tables]
        backward = (torch.randn_like(out), q, k, v, out.detach(), lse, *rest, wanted, *options)
        torch.library.opcheck(torch.ops.bertfast.attention_backward.default, backward)


@pytest.mark.parametrize("tables", ["", "b", "bqk"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend, tables):
    qkv, dout, cu_seqlens = inputs([4, 9], 2, 16, torch.float32)
    positions = random_positions(tables, 13, 2, 9)
    leaves = [*qkv, *tables_of(positions)]

    def loss(q, k, v):
        options = {"positions": positions, "window": 4} if tables else {}
        return (
            kernels.attention(q, k, v, cu_seqlens, 9, dropout_p=0.1, seed=5, **options) * dout
        ).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*qkv), leaves)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*qkv), leaves
        )
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
    yield "window is -1", ValueError, ((q, q, q, cu, 4), {"window": -1})
    yield "positions is a Tensor", TypeError, ((q, q, q, cu, 4), {"positions": q})
    buckets, bias, scores = (
        torch.zeros(7, dtype=torch.int32),
        torch.randn(2, 3),
        torch.randn(6, 2, 3),
    )
    for message, error, fields in (
        ("positions.buckets is torch.int64", TypeError, (buckets.long(), bias)),
        (
            "positions.buckets holds 6 distances; max_seqlen 4 has 7",
            ValueError,
            (buckets[1:], bias),
        ),
        ("positions.buckets has shape (7, 1)", ValueError, (buckets[:, None], bias)),
        ("positions.buckets is on meta", ValueError, (buckets.to("meta"), bias)),
        (
            "positions.buckets goes from 0 to 3 and the tables have 3",
            ValueError,
            (buckets + torch.tensor([0] * 6 + [3]).int(), bias),
        ),
        ("positions.buckets goes from -1 to -1", ValueError, (buckets - 1, bias)),
        (
            "positions.bias is torch.bfloat16 and q torch.float32",
            TypeError,
            (buckets, bias.bfloat16()),
        ),
        ("positions.bias is torch.int64", TypeError, (buckets, bias.long())),
        ("positions.bias has shape (3, 3)", ValueError, (buckets, torch.randn(3, 3))),
        ("positions.bias has shape (6, 2, 3)", ValueError, (buckets, scores)),
        ("positions.query_scores has shape (5, 2, 3)", ValueError, (buckets, None, scores[:5])),
        (
            "positions.key_scores has shape (6, 1, 3)",
            ValueError,
            (buckets, None, None, scores[:, :1]),
        ),
        ("positions.key_scores is on meta", ValueError, (buckets, None, None, scores.to("meta"))),
        ("the tables differ in buckets", ValueError, (buckets, bias, scores[..., :2])),
    ):
        yield message, error, ((q, q, q, cu, 4), {"positions": kernels.RelativePositions(*fields)})


@pytest.mark.parametrize(
    ("message", "error", "call"), list(bad_calls()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_wrong_arguments_are_named(message, error, call):
    arguments, options = call
    with pytest.raises(error) as caught:
        kernels.attention(*arguments, **options)
    assert message in str(caught.value)


def test_a_head_size_that_the_forced_backend_lacks_is_named():
    q = torch.randn(3, 1, 24)
    with (
        forced("cpp"),
        pytest.raises(kernels.BackendError, match="head size is 24, it takes 16, 32"),
    ):
        kernels.attention(q, q, q, boundaries([3], torch.device("cpu")), 3)
