"""Pooling of a packed batch, against a loop over its sequences."""

import pytest
import torch

from bertfast.model.pooling import MODES, mean_pooled, pool
from support import boundaries

LENGTHS = [3, 1, 0, 7]
ONE = {
    "cls": lambda x: x[0],
    "lasttoken": lambda x: x[-1],
    "max": lambda x: x.amax(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (
        (torch.arange(1, len(x) + 1)[:, None] * x).sum(0) / (len(x) * (len(x) + 1) / 2)
    ),
}


def by_loop(x, lengths, mode):
    parts = x[: sum(lengths)].split(lengths)
    return torch.stack([ONE[mode](part) if len(part) else 0 * x[0] for part in parts])


@pytest.mark.parametrize("slack", [0, 4])
@pytest.mark.parametrize("mode", MODES)
def test_each_way_and_its_gradient_equal_a_loop_over_the_sequences(mode, slack):
    x = torch.randn(sum(LENGTHS) + slack, 5, requires_grad=True)
    got, wanted = pool(x, boundaries(LENGTHS, "cpu"), (mode,)), by_loop(x, LENGTHS, mode)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn(got.shape)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (got, wanted)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][sum(LENGTHS) :].any()


def test_several_ways_stand_side_by_side_in_their_order():
    x, cu_seqlens = torch.randn(11, 5), boundaries(LENGTHS, "cpu")
    wanted = torch.cat([pool(x, cu_seqlens, (mode,)) for mode in ("mean", "cls")], -1)
    assert torch.equal(pool(x, cu_seqlens, ("mean", "cls")), wanted)


@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
def test_sums_of_half_precision_are_kept_in_float32(mode):
    x = torch.full((4000, 1), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum stands still at 256
    got = pool(x, boundaries([4000], "cpu"), (mode,))
    assert got.dtype == torch.bfloat16
    assert got.item() == 1


def test_no_sequences_give_no_vectors():
    assert mean_pooled(torch.zeros(0, 5), torch.zeros(1, dtype=torch.int32)).shape == (0, 5)
