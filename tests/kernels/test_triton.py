"""The Triton kernels keep the promises of the other backends: on a GPU compiled, elsewhere in
Triton's interpreter.
"""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels.attention.tile_list import TILE, tile_list
from bertfast.kernels.philox import as_seed, attention_threshold
from support import DEVICE, assert_close_to_float64, boundaries, missing_backend, random_positions

pytestmark = pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton"))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_run(backend, qkv, dout, cu_seqlens, max_seqlen, **options):
    leaves = [x.detach().requires_grad_() for x in qkv]
    positions = options.pop("positions", None)
    if positions:
        tables = [
            None if x is None else x.detach().to(qkv[0].dtype).requires_grad_()
            for x in positions.tables
        ]
        options["positions"] = kernels.RelativePositions(positions.buckets, *tables)
        leaves += [x for x in tables if x is not None]
    with kernels.use_backend(backend):
        out = kernels.attention(*leaves[:3], cu_seqlens, max_seqlen, **options)
        return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def attention_check(lengths, heads, head_dim, dtype, slack=0, tables="", buckets=7, **options):
    generator = torch.Generator().manual_seed(0)
    qkv = (
        torch.randn(sum(lengths) + slack, 3, heads, head_dim, generator=generator)
        .to(DEVICE, dtype)
        .unbind(1)
    )
    dout = torch.randn(sum(lengths) + slack, heads, head_dim, generator=generator).to(DEVICE, dtype)
    cu_seqlens, longest = boundaries(lengths), max(lengths, default=0)
    if tables:
        options["positions"] = random_positions(tables, len(dout), heads, longest, dtype, buckets)
    got = attention_run("triton", qkv, dout, cu_seqlens, longest, **options)
    wanted = attention_run(
        "reference", [x.double() for x in qkv], dout.double(), cu_seqlens, longest, **options
    )
    for mine, other in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        assert_close_to_float64(mine, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 128])
@pytest.mark.slow_unless(lambda head_dim, dtype: head_dim in (48, 64) and dtype != torch.float16)
def test_attention_matches_float64_at_every_head_size_and_dtype(head_dim, dtype):
    attention_check([5, 0, 1, 70], 1, head_dim, dtype, slack=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_dropout_matches_float64_under_the_same_mask(dtype):
    attention_check([3, 66], 2, 32, dtype, dropout_p=0.3, seed=2**40 + 7)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("longest", [1, 16, 17, 64, 65, 128, 129, 256, 257])
@pytest.mark.slow
def test_half_precision_matches_float64_at_the_borders_of_the_lengths_tiles(longest, dtype):
    attention_check([3, longest, 0], 1, 32, dtype, slack=1, dropout_p=0.1, seed=5)


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128])
@pytest.mark.slow_unless(lambda head_dim: head_dim == 64)
def test_one_pass_backward_matches_float64_for_sequences_of_every_length_at_once(head_dim):
    attention_check(
        [1, 64, 0, 65, 128, 30],
        2,
        head_dim,
        torch.bfloat16,
        slack=3,
        dropout_p=0.2,
        seed=6,
        scale=0.3,
    )


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [
        (1, [64]),
        (64, [64]),
        (65, [64, 128]),
        (128, [64, 128]),
        (129, [64, 128, 256]),
        (256, [64, 128, 256]),
        (257, [64, 128, 256]),
    ],
)
@pytest.mark.slow
def test_one_pass_serves_the_sequences_of_half_precision_that_fit(longest, lengths):
    module = import_module("bertfast.kernels.attention.backward_one_pass")
    for capability, dtype, head_dim, wanted in (
        ((9, 0), torch.bfloat16, 64, lengths),
        ((8, 0), torch.float16, 48, [x for x in lengths if x <= 128]),
        ((12, 0), torch.bfloat16, 64, [x for x in lengths if x <= 128]),
        ((9, 0), torch.float32, 16, []),
    ):
        tiles = module.one_pass_options(
            torch.empty(0, 1, head_dim, dtype=dtype), longest, capability
        )
        assert [x["BLOCK_N"] for x in tiles] == wanted


@pytest.mark.parametrize("head_dim", [16, 48])
@pytest.mark.slow_unless(lambda head_dim: head_dim == 16)
def test_a_sequence_is_served_by_its_own_length(head_dim):
    """One pass where it fits, two passes for the others of the batch."""
    lengths = [1, 260, 0, 64, 129, 256]
    attention_check(lengths, 1, head_dim, torch.bfloat16, slack=3, dropout_p=0.2, seed=6)


@pytest.mark.parametrize("scale", [-0.7, 0.0])
@pytest.mark.slow
def test_a_scale_that_is_not_positive_is_used(scale):
    for dtype in DTYPES[:2]:
        attention_check([3, 130], 1, 16, dtype, dropout_p=0.2, scale=scale)


@pytest.mark.parametrize("longest", [30, 150, 300])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.slow_unless(lambda longest, dtype: longest == 150 or dtype == torch.bfloat16)
def test_slack_is_zero_where_memory_was_not(longest, dtype):
    lengths, slack = [5, 0, longest], 140
    qkv, dout = torch.randn(4, sum(lengths) + slack, 2, 16, device=DEVICE).to(dtype).split([3, 1])
    torch.use_deterministic_algorithms(True)  # PyTorch then fills new memory with NaN
    try:
        results = attention_run("triton", qkv, dout[0], boundaries(lengths), longest)
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results:
        assert not result[-slack:].any()
        assert result[:-slack].isfinite().all()


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), max_size=40),
    slack=st.integers(0, 300),
    more=st.booleans(),
)
def test_the_list_of_tiles_has_every_block_once_and_the_longest_sequences_first(
    lengths, slack, more
):
    longest, tokens, tile = max(lengths, default=0), sum(lengths) + slack, TILE.value
    found = tile_list(boundaries(lengths), tokens, longest + more).tolist()
    assert len(found) <= tokens // tile + len(lengths)
    real = [(sequence, first) for sequence, first in found if first < lengths[sequence]]
    wanted = [(s, first) for s, length in enumerate(lengths) for first in range(0, length, tile)]
    assert sorted(real) == wanted
    assert found[: len(real)] == [list(entry) for entry in real]
    assert all(first >= longest for _, first in found[len(real) :])
    tiles = [-(-lengths[sequence] // tile) for sequence, _ in real]
    if longest <= 8 * tile:  # a class a count of tiles
        assert tiles == sorted(tiles, reverse=True)


def test_the_list_of_many_sequences_takes_more_than_one_round():
    lengths = [1, 200, 0] * 1000
    found = tile_list(boundaries(lengths), sum(lengths), 200).tolist()
    assert sorted(map(tuple, found[:3000])) == [
        (s, first) for s, length in enumerate(lengths) for first in range(0, length, TILE.value)
    ]
    assert all(lengths[sequence] == 200 for sequence, _ in found[:2000])


def test_calls_may_share_a_list_of_blocks():
    q, k, v, dout = (torch.randn(306, 1, 16, device=DEVICE) for _ in range(4))
    cu_seqlens = boundaries([300, 0, 5])
    with kernels.use_backend("triton"):
        blocks = kernels.attention_blocks(q, cu_seqlens, 300)
        for fault in (blocks[:2], torch.cat([blocks, blocks])):
            with pytest.raises(ValueError, match="blocks has shape"):
                kernels.attention(q, k, v, cu_seqlens, 300, blocks=fault)
        with pytest.raises(TypeError, match="blocks is torch.int64"):
            kernels.attention(q, k, v, cu_seqlens, 300, blocks=blocks.long())
    alone = attention_run("triton", [q, k, v], dout, cu_seqlens, 300)
    shared = attention_run("triton", [q, k, v], dout, cu_seqlens, 300, blocks=blocks.T.clone().T)
    assert all(torch.equal(x, y) for x, y in zip(alone, shared, strict=True))
    for backend in ("cpp", "reference"):
        if not missing_backend(backend):
            with kernels.use_backend(backend):
                assert kernels.attention_blocks(q.cpu(), cu_seqlens.cpu(), 300) is None


@pytest.mark.parametrize("window", [0, 1, 31, 64, 69])
@pytest.mark.slow_unless(lambda window: window in (0, 31))
def test_every_window_matches_float64(window):
    attention_check(
        [5, 0, 1, 70], 1, 16, torch.float32, slack=2, window=window, dropout_p=0.2, seed=4
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tables", ["b", "q", "k", "bk", "bqk"])
@pytest.mark.slow_unless(lambda tables, dtype: tables == "bqk" and dtype != torch.float16)
def test_every_table_matches_float64(tables, dtype):
    attention_check([5, 0, 1, 40], 2, 16, dtype, slack=2, tables=tables)


def test_more_buckets_than_distances_and_fewer_match_float64():
    for buckets in (1, 33, 200):
        attention_check([20, 3], 1, 16, torch.float32, slack=1, tables="bqk", buckets=buckets)


@pytest.mark.parametrize("tables", ["b", "q", "k"])
@pytest.mark.slow_unless(lambda tables: tables == "b")
def test_each_table_alone_matches_float64(tables):
    attention_check([20, 3], 1, 16, torch.float32, slack=1, tables=tables)


@pytest.mark.parametrize("tables", ["b", "q", "k"])
@pytest.mark.slow_unless(lambda tables: tables == "b")
def test_a_table_that_needs_no_gradient_changes_no_other_gradient(tables):
    leaves = [torch.randn(20, 2, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    positions = random_positions("bqk", 20, 2, 15)
    results = []
    for trained in ("bqk", tables):
        for name, table in zip("bqk", positions.tables, strict=True):
            table.requires_grad_(name in trained)
        with kernels.use_backend("triton"):
            out = kernels.attention(*leaves, boundaries([15, 5]), 15, positions=positions)
            results.append(
                torch.autograd.grad(out.sum(), [*leaves, positions.tables["bqk".index(tables)]])
            )
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_tables_of_strided_scores_and_of_no_tokens():
    qkv = [torch.randn(20, 2, 16, device=DEVICE) for _ in range(3)]
    dout, cu_seqlens = torch.randn(20, 2, 16, device=DEVICE), boundaries([15, 5])
    positions = random_positions("bqk", 20, 2, 15)
    by_head = [
        x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in positions.tables[1:]
    ]
    strided = kernels.RelativePositions(
        positions.buckets, positions.bias.detach().T.contiguous().T, *by_head
    )
    one, other = (
        attention_run("triton", qkv, dout, cu_seqlens, 15, positions=x)
        for x in (positions, strided)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    for lengths, longest in (([0, 0], 4), ([], 0)):
        empty = random_positions("bqk", 20, 2, longest)
        results = attention_run(
            "triton", qkv, dout, boundaries(lengths), longest, positions=empty, window=1
        )
        assert [x.shape for x in results[4:]] == [x.shape for x in empty.tables]
        assert not any(x.any() for x in results)


def test_tables_too_large_to_count_are_refused():
    q = torch.zeros(1, 1, 16, device=DEVICE)
    scores = torch.zeros(2, device=DEVICE).as_strided((1, 1, 2), (2**30, 2, 1))
    positions = kernels.RelativePositions(
        torch.zeros(3, dtype=torch.int32, device=DEVICE), query_scores=scores
    )
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match=r"2147483648 elements; .* below 2\*\*31"),
    ):
        kernels.attention(q, q, q, boundaries([1]), 2, positions=positions)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 33, 65]), max_size=3),
    slack=st.integers(0, 3),
    dropout_p=st.sampled_from([0.0, 0.5]),
    tables=st.sampled_from(["", "b", "qk", "bqk"]),
    window=st.one_of(st.none(), st.integers(0, 66)),
    buckets=st.sampled_from([3, 40]),
)
@pytest.mark.slow
def test_attention_matches_float64_for_any_positions_and_window(
    lengths, slack, dropout_p, tables, window, buckets
):
    attention_check(
        lengths,
        1,
        16,
        torch.float32,
        slack,
        tables,
        buckets,
        window=window,
        dropout_p=dropout_p,
        seed=3,
    )


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 33, 65]), max_size=4),
    slack=st.integers(0, 3),
    dropout_p=st.sampled_from([0.0, 0.5]),
)
@pytest.mark.slow
def test_attention_matches_float64_for_any_mix_of_lengths(lengths, slack, dropout_p):
    attention_check(lengths, 1, 16, torch.float32, slack, dropout_p=dropout_p, seed=3)


def test_attention_drops_exactly_what_the_reference_drops():
    """With V the identity, the output is the matrix of kept probabilities."""
    length = 64
    q, k = (torch.randn(length + 5, 2, length, device=DEVICE) for _ in range(2))
    v = torch.zeros(length + 5, 2, length, device=DEVICE)
    v[5:] = torch.eye(length, device=DEVICE)[:, None, :]
    cu_seqlens = boundaries([5, length])
    kept = []
    for backend in ("reference", "triton"):
        with kernels.use_backend(backend):
            kept.append(
                kernels.attention(q, k, v, cu_seqlens, length, dropout_p=0.4, seed=-9)[5:] != 0
            )
    assert torch.equal(kept[0], kept[1])


def test_the_one_pass_backward_drops_exactly_what_the_reference_drops():
    """With the identity for the output's gradient, V's is the transposed matrix of kept
    probabilities.
    """
    length = 64
    q, k, v, dout = (
        torch.zeros(length + 5, 2, length, dtype=torch.bfloat16, device=DEVICE) for _ in range(4)
    )
    dout[5:] = torch.eye(length, device=DEVICE)[:, None, :]
    options = {"dropout_p": 0.4, "seed": -9}
    kept = [
        attention_run(x, (q, k, v), dout, boundaries([5, length]), length, **options)[3] != 0
        for x in ("reference", "triton")
    ]
    assert torch.equal(kept[0], kept[1])
    assert 0 < kept[0][5:].float().mean() < 1


@pytest.mark.parametrize(
    ("tables", "dtype"), [("", torch.float32), ("bqk", torch.float32), ("", torch.bfloat16)]
)
@pytest.mark.slow_unless(lambda tables: tables == "bqk")
def test_the_backward_is_the_same_bits_each_time(tables, dtype):
    q, k, v, dout = (torch.randn(40, 2, 32, device=DEVICE, dtype=dtype) for _ in range(4))
    options = {"dropout_p": 0.1, "seed": 1, "positions": random_positions(tables, 40, 2, 33)}
    one, other = (
        attention_run("triton", (q, k, v), dout, boundaries([33, 7]), 33, **options)
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 1025, 3000])
@pytest.mark.slow_unless(lambda size: size in (0, 1025))
def test_dropout_gives_the_bits_of_the_reference(size, dtype):
    x = torch.randn(size, dtype=dtype, device=DEVICE)
    results = []
    for backend in ("reference", "triton"):
        with kernels.use_backend(backend):
            results.append(kernels.dropout(x, 0.3, seed=-5))
    torch.testing.assert_close(results[1], results[0])
    assert torch.equal(results[1] == 0, results[0] == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 16, 1030])
def test_rows_come_out_and_gradients_go_back(hidden, dtype):
    x = torch.randn(9, hidden, dtype=dtype, device=DEVICE, requires_grad=True)
    index = torch.tensor([8, -1, 0, 3], device=DEVICE)
    dout = torch.randn(4, hidden, dtype=dtype, device=DEVICE)
    with kernels.use_backend("triton"):
        out = kernels.gather_rows(x, index)
        (dx,) = torch.autograd.grad(out, x, dout)
        empty = kernels.gather_rows(x, index[:0])
    real = index >= 0
    wanted = torch.zeros_like(x)
    wanted[index[real]] = dout[real]
    assert torch.equal(out, torch.where(real[:, None], x[index], 0))
    assert torch.equal(dx, wanted)
    assert empty.shape == (0, hidden)


@pytest.mark.slow
def test_the_custom_ops_pass_opcheck():
    q, k, v = (torch.randn(9, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    cu_seqlens, seed = boundaries([4, 5]), as_seed(1, DEVICE)
    arguments = (
        q,
        k,
        v,
        cu_seqlens,
        seed,
        *(None,) * 5,
        5,
        0.25,
        attention_threshold(0.2),
        -1,
        "triton",
    )
    torch.library.opcheck(torch.ops.bertfast.attention.default, arguments)
    positions = random_positions("bqk", 9, 1, 5)
    blocks = kernels.attention_blocks(q, cu_seqlens, 5)
    tables = (blocks, positions.buckets, *positions.tables)
    placed = (*arguments[:5], *tables, *arguments[10:13], 2, "triton")
    torch.library.opcheck(torch.ops.bertfast.attention.default, placed)
    listing = (q.detach(), cu_seqlens, 5, "triton")
    torch.library.opcheck(torch.ops.bertfast.attention_blocks.default, listing)
    x = torch.randn(5, 4, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.bertfast.dropout.default, (x, seed, 6554, "triton"))
    index = torch.tensor([2, -1], device=DEVICE)
    torch.library.opcheck(torch.ops.bertfast.gather_rows.default, (x, index, "triton"))
    h, w, b = (
        torch.randn(*s, device=DEVICE, requires_grad=True) for s in ((5, 16), (30, 16), (30,))
    )
    labels = torch.tensor([1, 2, -100, 3, 4], device=DEVICE)
    for now in (False, True):
        options = (-100, 0.1, 0.0, "mean", now, "triton")
        torch.library.opcheck(
            torch.ops.bertfast.linear_cross_entropy.default, (h, w, b, labels, *options)
        )
