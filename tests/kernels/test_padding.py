"""What `pack` and `unpack` promise: any dtype, zeros at the padding, each the other's gradient, on
every backend.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from support import COMPILE_BACKEND, DEVICE, forced, missing_backend

BACKENDS = [name for name in ("reference", "cpp", "triton") if not missing_backend(name)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (
    *FLOATING,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def values(shape, dtype, generator=None):
    x = 4 * torch.randn(*shape, generator=generator)
    return (x > 0 if dtype == torch.bool else x.abs() if dtype == torch.uint8 else x).to(
        DEVICE, dtype
    )


def rows_of(places, tokens, slack, generator=None):
    """``tokens`` different places in any order, and slack among them."""
    chosen = torch.cat(
        [torch.randperm(places, generator=generator)[:tokens], torch.full((slack,), -1)]
    )
    return chosen[torch.randperm(len(chosen), generator=generator)].to(DEVICE)


def packed_by_hand(padded, rows):
    flat = padded.flatten(0, 1)
    out = flat.new_zeros(len(rows), *flat.shape[1:])
    for token, row in enumerate(rows.tolist()):
        if row >= 0:
            out[token] = flat[row]
    return out


def unpacked_by_hand(packed, rows, shape):
    out = packed.new_zeros(shape[0] * shape[1], *packed.shape[1:])
    for token, row in enumerate(rows.tolist()):
        if row >= 0:
            out[row] = packed[token]
    return out.unflatten(0, shape)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(0, 9)),
    rest=st.lists(st.sampled_from([0, 1, 3, 65]), max_size=2),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    slack=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_come_out_and_go_back_with_their_gradients(
    backend, shape, rest, share, slack, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    places = shape[0] * shape[1]
    rows = rows_of(places, round(share * places), slack, generator)
    padded, packed = (
        values((*shape, *rest), dtype, generator),
        values((len(rows), *rest), dtype, generator),
    )
    differentiable = dtype in FLOATING
    with forced(backend):
        out = kernels.pack(padded.requires_grad_(differentiable), rows)
        back = kernels.unpack(packed.requires_grad_(differentiable), rows, shape)
        assert out.dtype == back.dtype == dtype
        assert torch.equal(out, packed_by_hand(padded.detach(), rows))
        assert torch.equal(back, unpacked_by_hand(packed.detach(), rows, shape))
        assert out.requires_grad == back.requires_grad == differentiable
        if differentiable:
            (dpadded,) = torch.autograd.grad(out, padded, packed)
            (dpacked,) = torch.autograd.grad(back, packed, padded)
            assert torch.equal(dpadded, back)
            assert torch.equal(dpacked, out)


@each_backend
def test_a_row_longer_than_a_program_goes_over_whole(backend):
    padded = values((2, 3, 1030), torch.bfloat16)
    rows = torch.tensor([5, -1, 0, 2], device=DEVICE)
    with forced(backend):
        packed = kernels.pack(padded, rows)
        assert torch.equal(packed, packed_by_hand(padded, rows))
        assert torch.equal(
            kernels.unpack(packed, rows, (2, 3)), unpacked_by_hand(packed, rows, (2, 3))
        )


@each_backend
def test_bits_are_moved_as_they_are(backend):
    strange = torch.tensor(
        [0x7FC12345, -0x00012345, 0x7F812345, -(2**31)], dtype=torch.int32, device=DEVICE
    )
    with forced(backend):
        packed = kernels.pack(strange.view(torch.float32)[None], torch.arange(4, device=DEVICE))
    assert torch.equal(packed.view(torch.int32), strange)


@each_backend
def test_strided_input_gives_what_contiguous_input_gives(backend):
    x = values((6, 4, 10), torch.float32)
    rows = torch.tensor([7, 0, -1, 3, 11], device=DEVICE)
    with forced(backend):
        for padded in (x.transpose(0, 1), x[::2, :, 1:6], x[:1].expand(3, 4, 10), x[..., 3]):
            assert torch.equal(
                kernels.pack(padded, rows[::2]), kernels.pack(padded.contiguous(), rows[::2])
            )
        for packed in (x[:5, 0], x[1:, 2].T[:5], x[0, :1].expand(5, 10)):
            assert torch.equal(
                kernels.unpack(packed, rows, (3, 4)),
                kernels.unpack(packed.contiguous(), rows, (3, 4)),
            )


def test_the_reference_passes_gradcheck():
    rows = torch.tensor([4, -1, 0, -1], device=DEVICE)
    padded, packed = (
        torch.randn(*shape, 2, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4,))
    )
    with forced("reference"):
        assert torch.autograd.gradcheck(lambda x: kernels.pack(x, rows.cpu()), (padded,))
        assert torch.autograd.gradcheck(lambda x: kernels.unpack(x, rows.cpu(), (2, 3)), (packed,))


def test_any_number_of_threads_gives_the_same():
    padded = values((40, 20, 33), torch.float32)
    rows = rows_of(800, 500, 7)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with forced("cpp"):
                packed = kernels.pack(padded, rows)
                results.append((packed, kernels.unpack(packed, rows, (40, 20))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_the_custom_ops_pass_opcheck(backend, dtype):
    index = torch.tensor([2, -1, 0], device=DEVICE)
    x = values((5, 4), dtype).requires_grad_(dtype.is_floating_point)
    torch.library.opcheck(torch.ops.bertfast.gather_rows.default, (x, index, backend))
    torch.library.opcheck(
        torch.ops.bertfast.scatter_rows.default, (x[:3].detach(), index, 5, backend)
    )


@each_backend
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    rows = torch.tensor([4, -1, 0, 2], device=DEVICE)
    padded = values((2, 3, 8), torch.float32).requires_grad_()
    ids = torch.arange(6, device=DEVICE).view(2, 3)

    def call(padded, ids):
        packed = kernels.pack(padded, rows)
        return (kernels.unpack(packed.sin(), rows, (2, 3)) ** 2).sum(), kernels.pack(ids, rows)

    with forced(backend):
        got = torch.compile(call, fullgraph=True, backend=COMPILE_BACKEND)(padded, ids)
        wanted = call(padded, ids)
        gradients = [torch.autograd.grad(loss, padded)[0] for loss, _ in (got, wanted)]
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*gradients)


X, ROWS = torch.randn(2, 3, 4), torch.tensor([5, 0])
BAD_ROWS = [
    (ROWS.int(), TypeError, "rows is torch.int32; it must be torch.int64"),
    (ROWS[None], ValueError, r"rows has shape \(1, 2\)"),
    ([0, 1], TypeError, "rows is a list"),
    (
        torch.tensor([6, 0]),
        ValueError,
        "rows holds 6; the padded batch has 6 rows, so it must be from -1 to 5",
    ),
    (torch.tensor([0, -2]), ValueError, "rows holds -2; the padded batch has 6 rows"),
    (torch.tensor([3, 3]), ValueError, "rows holds 3 twice; the rows must be unique"),
    (ROWS.to("meta"), ValueError, "rows is on meta and pa"),
]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
@pytest.mark.parametrize(("rows", "error", "message"), BAD_ROWS)
def test_wrong_rows_are_named(backend, rows, error, message):
    with forced(backend):
        with pytest.raises(error, match=message):
            kernels.pack(X, rows)
        with pytest.raises(error, match=message):
            kernels.unpack(X.flatten(0, 1)[:2], rows, (2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: kernels.pack(X[0, 0], ROWS),
            ValueError,
            r"padded has shape \(4,\); it must be \(sequences, positions, ...\)",
        ),
        (lambda: kernels.pack(None, ROWS), TypeError, "padded is a NoneType; it must be a tensor"),
        (
            lambda: kernels.unpack(X[0, 0, 0], ROWS, (2, 3)),
            ValueError,
            r"packed has shape \(\); it must be \(tokens, ...\)",
        ),
        (
            lambda: kernels.unpack(X[0], ROWS, (2, 3)),
            ValueError,
            "packed has 3 tokens and rows 2; they must be the same",
        ),
        (
            lambda: kernels.unpack(X, ROWS, (2, 3, 4)),
            ValueError,
            r"shape is \(2, 3, 4\); it must be \(sequences, positions\)",
        ),
        (lambda: kernels.unpack(X, ROWS, (-2, 3)), ValueError, r"shape is \(-2, 3\)"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
