"""What `embed` promises on every backend."""

from importlib import import_module

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
    assert_matches_float64,
    boundaries,
    differentiate,
    forced,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def parts(tokens, hidden, vocab=11, positions=7, segments=2):
    """ids of the three tables, the tables, the norm's weight and bias, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    ids = [
        torch.randint(size, (tokens,), generator=generator).to(DEVICE)
        for size in (vocab, positions, segments)
    ]
    shapes = (
        (vocab, hidden),
        (positions, hidden),
        (segments, hidden),
        (hidden,),
        (hidden,),
        (tokens, hidden),
    )
    *tensors, dout = [torch.randn(*shape, generator=generator).to(DEVICE) for shape in shapes]
    return [*ids, *tensors], dout


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 5, 40]),
    hidden=st.sampled_from([1, 7, 16, 24, 100]),
    dtype=st.sampled_from(DTYPES),
    p=st.sampled_from([0.0, 0.3]),
    has_position=st.booleans(),
    has_segment=st.booleans(),
    has_bias=st.booleans(),
    segments=st.sampled_from([1, 2, 3]),
    cut=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_any_form_matches_float64(
    backend, tokens, hidden, dtype, p, has_position, has_segment, has_bias, segments, cut
):
    leaves, dout = parts(tokens, hidden, segments=segments)
    if not has_position:
        leaves[1] = leaves[4] = None
    if not has_segment:
        leaves[2] = leaves[5] = None
    if not has_bias:
        leaves[7] = None
    options = {"eps": 1e-3, "dropout_p": p, "seed": -3}
    if cut:
        options["cu_seqlens"] = boundaries([tokens // 2, 0, tokens // 3])
    assert_matches_float64(lambda *a: kernels.embed(*a, **options), leaves, [dout], backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_normalised_sum_then_dropout(backend):
    leaves, _ = parts(9, 24)
    ids, pos, seg, word, position, segment, weight, bias = leaves
    with forced(backend):
        out = kernels.embed(*leaves, eps=1e-5, dropout_p=0.4, seed=11)
        total = F.layer_norm(word[ids] + position[pos] + segment[seg], (24,), weight, bias, 1e-5)
        torch.testing.assert_close(out, kernels.dropout(total, 0.4, seed=11), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_bias_it_is_what_a_bias_of_zeros_gives(backend):
    leaves, dout = parts(9, 24)
    zeros = differentiate(
        kernels.embed, [*leaves[:7], torch.zeros_like(leaves[7])], [dout], backend, torch.float32
    )
    none = differentiate(kernels.embed, [*leaves[:7], None], [dout], backend, torch.float32)
    torch.testing.assert_close(none, zeros[:-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 300])
def test_a_row_that_many_tokens_share_gets_the_sum_of_their_gradients(monkeypatch, backend, tokens):
    # Triton's runs: more to a row than are added up at once, and rows across their borders.
    monkeypatch.setattr(import_module("bertfast.kernels.embed"), "RUN", 4)
    leaves, dout = parts(tokens, 16, vocab=3)
    assert_matches_float64(kernels.embed, leaves, [dout], backend, torch.float32)


@pytest.mark.parametrize(
    ("lengths", "slack", "offset"), [([9, 1, 0, 5], 0, 0), ([2] * 6, 3, 2), ([], 5, 0)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow_unless(lambda dtype: dtype == torch.float32)
def test_positions_that_count_up_need_no_sort(monkeypatch, lengths, slack, offset, dtype):
    module = import_module("bertfast.kernels.embed")
    monkeypatch.setattr(module, "SCAN", 8)
    monkeypatch.setattr(module, "SEQUENCES", 4)
    leaves, dout = parts(sum(lengths) + slack, 24, positions=33)
    counted = [offset + torch.arange(length) for length in lengths]
    leaves[1] = torch.cat([*counted, torch.zeros(slack, dtype=torch.int64)]).to(DEVICE)
    call = lambda *a: kernels.embed(*a, cu_seqlens=boundaries(lengths))  # noqa: E731
    assert_matches_float64(call, leaves, [dout], "triton", dtype)
    sorts = sorted_sizes(monkeypatch)
    differentiate(call, leaves, [dout], "triton", dtype)
    assert sorts == [len(dout)], "the words' alone"


def sorted_sizes(monkeypatch):
    """A list that `Tensor.sort` writes the size of what it sorts to."""
    sizes, sort = [], torch.Tensor.sort

    def noted(x, *arguments, **options):
        sizes.append(x.numel())
        return sort(x, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "sort", noted)
    return sizes


@settings(max_examples=12, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(0, 12), max_size=6), slack=st.integers(0, 9))
@pytest.mark.slow
def test_positions_in_any_order_match_float64_beside_boundaries(data, lengths, slack):
    leaves, dout = parts(sum(lengths) + slack, 24)
    for b, length in enumerate(lengths):
        if data.draw(st.booleans()):
            start, count = sum(lengths[:b]), min(length, 7)
            leaves[1][start : start + count] = torch.arange(count)
    call = lambda *a: kernels.embed(*a, cu_seqlens=boundaries(lengths))  # noqa: E731
    assert_matches_float64(call, leaves, [dout], "triton", torch.float32)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_position_tables_padding_row_takes_no_gradient(backend, cut):
    leaves, dout = parts(30, 16)
    options = {"cu_seqlens": boundaries([10, 20])} if cut else {}
    plain = differentiate(kernels.embed, leaves, [dout], backend, torch.float32)
    call = lambda *a: kernels.embed(*a, position_padding_idx=1, **options)  # noqa: E731
    got = differentiate(call, leaves, [dout], backend, torch.float32)
    assert plain[2][1].abs().sum() > 0
    plain[2][1] = 0
    torch.testing.assert_close(got, plain)


@pytest.mark.slow
def test_the_triton_backward_is_the_same_bits_each_time():
    leaves, dout = parts(120, 48)
    call = lambda *a: kernels.embed(*a, dropout_p=0.1, cu_seqlens=boundaries([70, 50]))  # noqa: E731
    one, other = (differentiate(call, leaves, [dout], "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sparse_gradient_is_the_dense_one(backend):
    leaves, dout = parts(30, 16, vocab=50)
    dense = differentiate(kernels.embed, leaves, [dout], backend, torch.float32)
    sparse = differentiate(
        lambda *a: kernels.embed(*a, sparse_grad=True), leaves, [dout], backend, torch.float32
    )
    assert sparse[1].is_sparse
    assert sparse[1].coalesce().indices().shape[1] == leaves[0].unique().numel()
    torch.testing.assert_close([x.to_dense() for x in sparse], dense)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_padding_row_takes_no_gradient(backend, sparse):
    leaves, dout = parts(30, 16, vocab=4)
    call = lambda *a: kernels.embed(*a, padding_idx=2, sparse_grad=sparse)  # noqa: E731
    plain = differentiate(kernels.embed, leaves, [dout], backend, torch.float32)
    got = differentiate(call, leaves, [dout], backend, torch.float32)
    assert plain[1][2].abs().sum() > 0
    plain[1][2] = 0
    torch.testing.assert_close([x.to_dense() for x in got], plain)


def test_autograd_adds_the_sparse_gradient_to_the_dense_one_of_a_tied_layer():
    leaves, _ = parts(30, 16, vocab=50)
    table = leaves[3].cpu().requires_grad_()
    gradients = []
    for sparse in (False, True):
        inputs = [leaf.cpu() for leaf in leaves]
        inputs[3] = table
        hidden = kernels.embed(*inputs, sparse_grad=sparse)
        table.grad = None
        (hidden @ table.T).square().sum().backward()
        assert not table.grad.is_sparse
        gradients.append(table.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_backward_is_the_same_bits_on_any_number_of_threads():
    leaves, dout = parts(500, 300)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            call = lambda *a: kernels.embed(*a, dropout_p=0.1)  # noqa: E731
            results.append(differentiate(call, leaves, [dout], "cpp", torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    leaves, dout = parts(12, 20)
    awkward = [torch.stack([x] * 2, -1)[..., 0] for x in leaves]
    one, other = (
        differentiate(kernels.embed, x, [dout], backend, torch.float32) for x in (leaves, awkward)
    )
    torch.testing.assert_close(other, one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_table_takes_no_gradient(backend):
    leaves, dout = parts(6, 16)
    leaves[6].requires_grad_()
    with forced(backend):
        kernels.embed(*leaves).backward(dout)
    assert leaves[3].grad is None
    assert leaves[6].grad is not None


def test_the_reference_passes_gradcheck():
    leaves, _ = parts(4, 5)
    ids, tensors = (
        [x.cpu() for x in leaves[:3]],
        [x.cpu().double().requires_grad_() for x in leaves[3:]],
    )
    assert torch.autograd.gradcheck(
        lambda *a: kernels.embed(*ids, *a, eps=1e-3, dropout_p=0.2), tensors
    )


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("threshold", [0, 6554])
def test_the_custom_ops_pass_opcheck(threshold, has_bias):
    leaves, dout = parts(5, 12)
    leaves = [x.cpu().requires_grad_() if x.is_floating_point() else x.cpu() for x in leaves]
    if not has_bias:
        leaves[7] = None
    seed = torch.tensor([5])
    with forced("cpp"):
        boundaries = torch.tensor([0, 2, 5], dtype=torch.int32)
        arguments = (*leaves, seed, 1e-5, threshold, 2, 1, boundaries, False, "cpp")
        torch.library.opcheck(torch.ops.bertfast.embed.default, arguments)
        _, mean, rstd = torch.ops.bertfast.embed(*arguments)
        tensors = [x.detach() for x in leaves[:7]]
        backward = (dout.cpu(), *tensors, mean.detach(), rstd.detach(), seed, threshold, "cpp")
        torch.library.opcheck(torch.ops.bertfast.embed_backward.default, backward)
        rows = (torch.randn(5, 12), leaves[0], None, 11, 2, torch.bfloat16, "cpp")
        torch.library.opcheck(torch.ops.bertfast.sum_rows.default, rows)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    leaves, dout = parts(6, 16)
    ids, tensors = leaves[:3], [x.requires_grad_() for x in leaves[3:]]

    def loss(*a):
        return (kernels.embed(*ids, *a, dropout_p=0.1, seed=5) * dout).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*tensors), tensors)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*tensors), tensors
        )
    torch.testing.assert_close(got, wanted)


def wrong(place, value):
    leaves, _ = parts(4, 3)
    leaves = [x.cpu() for x in leaves]
    leaves[place] = value(leaves[place]) if callable(value) else value
    return leaves


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (wrong(0, lambda x: x.int()), {}, TypeError, "input_ids is torch.int32"),
        (wrong(0, lambda x: x + 11), {}, ValueError, r"input_ids holds \d+; word has 11 rows"),
        (wrong(1, lambda x: x - 8), {}, ValueError, r"position_ids holds -\d; position has 7 rows"),
        (
            wrong(1, None),
            {},
            ValueError,
            "position_ids and the position table go together; one is None",
        ),
        (wrong(5, None), {}, ValueError, "segment_ids and the segment table go together"),
        (wrong(2, lambda x: x[:2]), {}, ValueError, "segment_ids has 2 entries and input_ids 4"),
        (wrong(3, lambda x: x[0]), {}, ValueError, r"word has shape \(3,\)"),
        (wrong(3, lambda x: x.long()), {}, TypeError, "word is torch.int64"),
        (wrong(4, lambda x: x[:, :2]), {}, ValueError, "position has 2 columns and word 3"),
        (
            wrong(5, lambda x: x.bfloat16()),
            {},
            TypeError,
            "segment is torch.bfloat16 and word torch.float32",
        ),
        (wrong(6, lambda x: x[:2]), {}, ValueError, "weight has 2 entries"),
        (wrong(7, lambda x: x.to("meta")), {}, ValueError, "bias is on meta"),
        (
            wrong(0, lambda x: x),
            {"padding_idx": 11},
            ValueError,
            "padding_idx is 11; word has 11 rows",
        ),
        (
            wrong(0, lambda x: x),
            {"position_padding_idx": 7},
            ValueError,
            "position_padding_idx is 7; position has 7 rows",
        ),
        (
            [None if i in (1, 4) else x for i, x in enumerate(wrong(0, lambda x: x))],
            {"position_padding_idx": 0},
            ValueError,
            "there is no position table",
        ),
        (
            wrong(0, lambda x: x),
            {"cu_seqlens": torch.tensor([0, 4])},
            TypeError,
            "cu_seqlens is torch.int64",
        ),
        (
            wrong(0, lambda x: x),
            {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)},
            ValueError,
            "cu_seqlens ends at 5|a sequence has 5 tokens",
        ),
        (wrong(0, lambda x: x), {"eps": -1.0}, ValueError, "eps is -1.0"),
        (wrong(0, lambda x: x), {"dropout_p": -0.1}, ValueError, "dropout probability is -0.1"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        kernels.embed(*arguments, **options)
