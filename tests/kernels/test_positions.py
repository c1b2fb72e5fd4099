"""The makers of relative positions: equal to the papers' and to transformers', and with gradients
to what they are made of.
"""

import pytest
import torch

from bertfast import kernels
from bertfast.kernels import alibi, alibi_slopes, deberta_buckets, t5_buckets
from support import COMPILE_BACKEND, assert_close_to_float64, boundaries, forced

BACKENDS = ("reference", "cpp")
LENGTHS = [7, 1, 40]


def distances(max_seqlen):
    """i - j at each place of the buckets."""
    return torch.arange(1 - max_seqlen, max_seqlen)


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    torch.testing.assert_close(
        alibi_slopes(16)[:4], torch.tensor([2**-0.5, 2**-1.0, 2**-1.5, 2**-2.0])
    )
    # Twelve heads: those of eight, then every other one of sixteen.
    assert torch.equal(alibi_slopes(12), torch.cat([alibi_slopes(8), alibi_slopes(16)[::2][:4]]))
    with pytest.raises(ValueError, match="heads is 0"):
        alibi_slopes(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alibi_takes_the_slope_times_the_distance_off_each_score(backend):
    q, k, v = (torch.randn(48, 3, 16) for _ in range(3))
    slopes = alibi_slopes(3).requires_grad_()
    cu_seqlens = boundaries(LENGTHS, torch.device("cpu"))
    with forced(backend):
        out = kernels.attention(q, k, v, cu_seqlens, 40, positions=alibi(slopes, 40))
        (got,) = torch.autograd.grad(out.square().sum(), slopes)
    other, outs = slopes.detach().double().requires_grad_(), []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q1, k1, v1 = (x[start:end].transpose(0, 1).double() for x in (q, k, v))
        place = torch.arange(end - start)
        mask = -other[:, None, None] * (place[:, None] - place).abs()
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(q1, k1, v1, attn_mask=mask).transpose(
                0, 1
            )
        )
    wanted = torch.cat(outs)
    assert_close_to_float64(out, wanted)
    assert_close_to_float64(got, torch.autograd.grad(wanted.square().sum(), other)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_alibi_has_the_dtype_of_its_slopes_rounded_once(dtype):
    positions = alibi(torch.tensor([0.7], dtype=dtype), 300)
    wanted = -torch.tensor([[0.7]], dtype=dtype).double() * torch.arange(300)
    assert positions.bias.dtype == dtype
    torch.testing.assert_close(positions.bias.double(), wanted, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.slow
def test_torch_compile_makes_alibi_and_its_gradient_inside_the_graph():
    q, k, v = (torch.randn(9, 2, 16) for _ in range(3))
    slopes, cu_seqlens = alibi_slopes(2).requires_grad_(), boundaries([4, 5], torch.device("cpu"))

    def loss(slopes):
        return kernels.attention(q, k, v, cu_seqlens, 5, positions=alibi(slopes, 5)).square().sum()

    wanted = torch.autograd.grad(loss(slopes), slopes)[0]
    got = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(slopes), slopes
    )[0]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (64, 256), (8, 20), (4, 2), (33, 100), (20, 1000)]
)
def test_t5_buckets_equal_transformers(num_buckets, max_distance):
    modeling_t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    wanted = modeling_t5.T5Attention._relative_position_bucket(
        -distances(1500), bidirectional=True, num_buckets=num_buckets, max_distance=max_distance
    )
    got = t5_buckets(1500, num_buckets, max_distance)
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), wanted)


def transformers_deberta_buckets(max_seqlen, position_buckets, max_position):
    modeling = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    relative = distances(max_seqlen)
    if position_buckets > 0:
        relative = modeling.make_log_bucket_position(
            relative, position_buckets, max_position
        ).long()
    span = position_buckets if position_buckets > 0 else max_position
    return (relative + span).clamp(0, 2 * span - 1)


@pytest.mark.parametrize(
    ("position_buckets", "max_position"),
    [(256, 512), (-1, 512), (0, 7), (32, 128), (2, 3), (3, 40), (16, 2000)],
)
def test_deberta_buckets_equal_transformers(position_buckets, max_position):
    got = deberta_buckets(1500, position_buckets, max_position)
    assert got.dtype == torch.int32
    assert torch.equal(
        got.long(), transformers_deberta_buckets(1500, position_buckets, max_position)
    )


@pytest.mark.parametrize("max_seqlen", [0, 1, 2])
def test_short_sequences_have_their_distances(max_seqlen):
    for buckets in (
        t5_buckets(max_seqlen),
        deberta_buckets(max_seqlen, 16, 64),
        alibi(torch.ones(2), max_seqlen).buckets,
    ):
        assert buckets.shape == (max(2 * max_seqlen - 1, 0),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t5_buckets(-1), "max_seqlen is -1"),
        (lambda: t5_buckets(5, 3), "num_buckets is 3"),
        (lambda: t5_buckets(5, 32, 8), "max_distance 8"),
        (lambda: deberta_buckets(5, 1, 10), "position_buckets is 1"),
        (lambda: deberta_buckets(5, 256, 129), "max_position 129"),
        (lambda: deberta_buckets(5, -1, 0), "max_position is 0"),
        (lambda: alibi(torch.ones(2, 2), 5), r"slopes has shape \(2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("types", [["c2p"], ["p2c"], ["c2p", "p2c"]], ids="+".join)
@pytest.mark.parametrize("position_buckets", [8, -1])
def test_deberta_attention_equals_transformers(backend, types, position_buckets):
    """The whole of transformers' disentangled attention and every gradient, from its own
    projections.
    """
    modeling = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    torch.manual_seed(0)
    heads, head_dim, length, max_position = 2, 16, 40, 24
    config = modeling.DebertaV2Config(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        relative_attention=True,
        position_buckets=position_buckets,
        max_relative_positions=max_position,
        pos_att_type=types,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    module = modeling.DisentangledSelfAttention(config)
    span = position_buckets if position_buckets > 0 else max_position
    hidden = torch.randn(1, length, config.hidden_size, requires_grad=True)
    embeddings = torch.randn(2 * span, config.hidden_size, requires_grad=True)
    leaves = [hidden, embeddings, *module.parameters()]
    wanted = module(hidden, torch.ones(1, 1, length, length), rel_embeddings=embeddings)[0][0]
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), leaves)

    def split(x):
        return x.unflatten(-1, (heads, head_dim))

    q, k, v = (split(f(hidden[0])) for f in (module.query_proj, module.key_proj, module.value_proj))
    scale = (head_dim * (1 + len(types))) ** -0.5
    query_scores = key_scores = None
    if "c2p" in types:
        query_scores = scale * torch.einsum(
            "thd,bhd->thb", q, split(module.pos_key_proj(embeddings))
        )
    if "p2c" in types:
        key_scores = scale * torch.einsum(
            "thd,bhd->thb", k, split(module.pos_query_proj(embeddings))
        )
    positions = kernels.RelativePositions(
        deberta_buckets(length, position_buckets, max_position),
        query_scores=query_scores,
        key_scores=key_scores,
    )
    with forced(backend):
        got = kernels.attention(
            q,
            k,
            v,
            boundaries([length], torch.device("cpu")),
            length,
            scale=scale,
            positions=positions,
        ).flatten(1)
        gradients = torch.autograd.grad(got.square().sum(), leaves)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(
            mine, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item())
        )
