"""What `rotary` promises on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from support import BACKENDS, COMPILE_BACKEND, DEVICE, assert_matches_float64, differentiate, forced

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
POSITIONS = 50


def parts(tokens, heads, head_dim):
    """q and k, what comes after them, and their outputs' gradients."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(tokens, heads, head_dim, generator=generator).to(DEVICE) for _ in range(4)
    ]
    ids = torch.randint(POSITIONS, (tokens,), generator=generator).to(DEVICE)
    return (
        tensors[:2],
        (ids, *kernels.rotary_tables(POSITIONS, head_dim, 100.0, DEVICE)),
        tensors[2:],
    )


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 5, 40]),
    heads=st.sampled_from([0, 1, 3]),
    head_dim=st.sampled_from([2, 6, 16, 34, 64, 80, 128]),
    dtype=st.sampled_from(DTYPES),
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend: backend != "triton")
def test_any_shape_matches_float64(backend, tokens, heads, head_dim, dtype):
    leaves, rest, douts = parts(tokens, heads, head_dim)
    assert_matches_float64(lambda q, k: kernels.rotary(q, k, *rest), leaves, douts, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_turns_each_pair_by_its_own_angle(backend):
    """As a product of complex numbers, position m turns pair i by m theta^(-2 i / head_dim):
    equation 34's angles.
    """
    (q, k), (ids, cos, sin), _ = parts(9, 2, 12)
    angles = ids.double()[:, None, None] * 100.0 ** (
        -torch.arange(0, 12, 2, dtype=torch.float64, device=DEVICE) / 12
    )
    with forced(backend):
        outs = kernels.rotary(q, k, ids, cos, sin)
    for x, out in zip((q, k), outs, strict=True):
        first, second = x.double().chunk(2, -1)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        torch.testing.assert_close(
            out, torch.cat([turned.real, turned.imag], -1).float(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_depend_on_distances_alone(backend):
    (q, k), (ids, cos, sin), _ = parts(20, 1, 32)
    ids = torch.arange(20, device=DEVICE)
    with forced(backend):
        one, other = (kernels.rotary(q, k, ids + shift, cos, sin) for shift in (0, 23))
    torch.testing.assert_close(
        *(q[:, 0] @ k[:, 0].T for q, k in (one, other)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_it_is_what_transformers_applies_in_modernbert(backend, dtype):
    modernbert = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    leaves, (ids, cos, sin), douts = parts(30, 3, 64)

    def theirs(q, k):
        wide = [torch.cat([table[ids]] * 2, -1) for table in (cos, sin)]
        outs = modernbert.apply_rotary_pos_emb(q.float(), k.float(), *wide, unsqueeze_dim=1)
        return tuple(out.to(q.dtype) for out in outs)

    ours = differentiate(
        lambda q, k: kernels.rotary(q, k, ids, cos, sin), leaves, douts, backend, dtype
    )
    torch.testing.assert_close(ours, differentiate(theirs, leaves, douts, backend, dtype))


@pytest.mark.parametrize("theta", [10000.0, 160000.0])
def test_the_tables_are_the_bits_of_transformers_modernbert(theta):
    modernbert = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    config = modernbert.ModernBertConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=8192
    )
    ids, x = torch.arange(8192)[None], torch.zeros(1)
    if hasattr(config, "rope_parameters"):  # transformers 5
        config.rope_parameters["full_attention"]["rope_theta"] = theta
        wanted = modernbert.ModernBertRotaryEmbedding(config)(x, ids, "full_attention")
    else:
        wanted = modernbert.ModernBertRotaryEmbedding(config, 64, theta)(x, ids)
    for mine, other in zip(kernels.rotary_tables(8192, 64, theta), wanted, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(torch.cat([mine, mine], -1), other[0])


def test_the_tables_do_not_depend_on_the_default_dtype():
    wanted = kernels.rotary_tables(9, 16, 100.0, "cpu")
    torch.set_default_dtype(torch.float64)
    try:
        got = kernels.rotary_tables(9, 16, 100.0, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(
        torch.equal(mine, other) and mine.dtype == other.dtype
        for mine, other in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_of_a_fused_projection_and_other_strides_give_the_same_bits(backend):
    (q, k), rest, douts = parts(12, 3, 16)
    fused = torch.stack([q, k, k], 1)
    by_head = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k)]
    awkward = [torch.stack([x] * 2, -1)[..., 0] for x in (q, k)]
    spread = tuple(torch.stack([x] * 2, -1)[..., 0] for x in rest)
    call = lambda *a: kernels.rotary(*a, *rest)  # noqa: E731
    wanted = differentiate(call, [q, k], douts, backend, torch.float32)
    for inputs in ([fused[:, 0], fused[:, 1]], by_head, awkward):
        got = differentiate(call, inputs, douts, backend, torch.float32)
        assert all(torch.equal(mine, other) for mine, other in zip(got, wanted, strict=True))
    got = differentiate(
        lambda *a: kernels.rotary(*a, *spread), [q, k], douts, backend, torch.float32
    )
    assert all(torch.equal(mine, other) for mine, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fused_projection_takes_its_gradient_from_both(backend):
    (q, k), (ids, cos, sin), (dq, dk) = parts(7, 2, 16)
    qkv = torch.stack([q, k, k], 1).requires_grad_()
    with forced(backend):
        outs = kernels.rotary(*qkv.unbind(1)[:2], ids, cos, sin)
        (dqkv,) = torch.autograd.grad(outs, qkv, (dq, dk))
        back = kernels.rotary(dq, dk, ids, cos, -sin)
    torch.testing.assert_close(dqkv, torch.stack([*back, torch.zeros_like(dq)], 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_output_alone_gives_its_input_a_gradient(backend):
    (q, k), rest, (dq, _) = parts(5, 2, 16)
    q.requires_grad_()
    with forced(backend):
        outs = kernels.rotary(q, k, *rest)
        outs[0].backward(dq)
        (wanted,) = torch.autograd.grad(kernels.rotary(q, k, *rest)[0], q, dq)
    assert not k.requires_grad
    assert wanted.abs().sum() > 0
    assert torch.equal(q.grad, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tables_are_constants(backend):
    (q, k), (ids, cos, sin), _ = parts(5, 2, 16)
    for x in (q, cos, sin):
        x.requires_grad_()
    with forced(backend):
        out, _ = kernels.rotary(q, k, ids, cos, sin)
        out.sum().backward()
    assert cos.grad is None
    assert sin.grad is None
    assert q.grad is not None


def test_the_same_bits_come_on_any_number_of_threads():
    leaves, rest, douts = parts(300, 3, 34)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            call = lambda *a: kernels.rotary(*a, *rest)  # noqa: E731
            results.append(differentiate(call, leaves, douts, "cpp", torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True)
    )


def test_the_reference_passes_gradcheck():
    leaves, rest, _ = parts(4, 2, 6)
    leaves, rest = [x.cpu().double().requires_grad_() for x in leaves], [x.cpu() for x in rest]
    assert torch.autograd.gradcheck(lambda *a: kernels.rotary(*a, *rest), leaves)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_the_custom_op_passes_opcheck(backend, inverse):
    leaves, rest, _ = parts(5, 2, 12)
    with forced(backend):
        for q, k in (
            [x.requires_grad_() for x in leaves],
            torch.randn(5, 3, 2, 12, device=DEVICE).unbind(1)[:2],
        ):
            torch.library.opcheck(
                torch.ops.bertfast.rotary.default, (q, k, *rest, inverse, backend)
            )


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    leaves, rest, (dq, dk) = parts(6, 2, 16)
    leaves = [x.requires_grad_() for x in leaves]

    def loss(*a):
        q, k = kernels.rotary(*a, *rest)
        return (q * dq + k * dk).sum()

    with forced(backend):
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*leaves), leaves
        )
    torch.testing.assert_close(got, wanted)


Q = torch.randn(4, 2, 6)
IDS = torch.arange(4)
TABLE = torch.randn(4, 3)
RIGHT = {"q": Q, "k": Q, "position_ids": IDS, "cos": TABLE, "sin": TABLE}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"q": Q.long()}, TypeError, "q is torch.int64"),
        ({"q": Q[0]}, ValueError, r"q has shape \(2, 6\); it must be \(tokens, heads, head_dim\)"),
        ({"k": Q.bfloat16()}, TypeError, "k is torch.bfloat16 and q torch.float32"),
        ({"k": Q[:, :1]}, ValueError, r"k has shape \(4, 1, 6\) and q \(4, 2, 6\)"),
        ({"k": Q.to("meta")}, ValueError, "k is on meta and q on cpu"),
        ({"q": Q[..., :5], "k": Q[..., :5]}, ValueError, "head_dim is 5; it must be even"),
        (
            {"q": Q[..., :0], "k": Q[..., :0]},
            ValueError,
            "head_dim is 0; it must be even and at least 2",
        ),
        ({"position_ids": [0, 1]}, TypeError, "position_ids is a list"),
        (
            {"position_ids": IDS.int()},
            TypeError,
            "position_ids is torch.int32; it must be torch.int64",
        ),
        ({"position_ids": IDS[:3]}, ValueError, "position_ids has 3 entries and q 4 tokens"),
        ({"position_ids": IDS.to("meta")}, ValueError, "position_ids is on meta"),
        (
            {"position_ids": IDS + 1},
            ValueError,
            "position_ids holds 4; cos has 4 rows, so it must be from 0 to 3",
        ),
        ({"position_ids": IDS - 1}, ValueError, "position_ids holds -1; cos has 4 rows"),
        (
            {"cos": TABLE.double()},
            TypeError,
            r"cos is torch.float64; it must be torch.float32 \(rotary_tables",
        ),
        ({"sin": TABLE.half()}, TypeError, "sin is torch.float16"),
        (
            {"cos": TABLE[0]},
            ValueError,
            r"cos has shape \(3,\); it must be \(positions, head_dim // 2\)",
        ),
        (
            {"sin": TABLE.repeat(1, 2)},
            ValueError,
            "sin has 6 columns; q's head_dim is 6, it must have half",
        ),
        ({"sin": TABLE[:3]}, ValueError, "sin has 3 positions and cos 4"),
        ({"sin": TABLE.to("meta")}, ValueError, "sin is on meta"),
    ],
)
def test_wrong_arguments_are_named(wrong, error, message):
    with pytest.raises(error, match=message):
        kernels.rotary(**(RIGHT | wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 16, 1e4), "positions is -1; it must be at least 0"),
        ((8, 15, 1e4), "head_dim is 15; it must be even"),
        ((8, 16, 0.0), r"theta is 0.0; it must be above 0 and finite"),
        ((8, 16, float("nan")), "theta is nan"),
    ],
)
def test_wrong_arguments_of_the_tables_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.rotary_tables(*arguments)
