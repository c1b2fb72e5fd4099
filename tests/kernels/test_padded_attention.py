"""Attention of sequences that keep tokens which no one sees, or that had tokens left out."""

from __future__ import annotations

import pytest
import torch

from bertfast.kernels import reference
from bertfast.kernels.padded_attention import padded_attention
from bertfast.kernels.philox import as_seed
from support import DEVICE, boundaries, random_positions

LENGTHS = [5, 0, 1, 9]
LONGEST = 9


def inputs() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """q, k and v, their boundaries, and which tokens stay."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, sum(LENGTHS) + 2, 2, 16, dtype=torch.float64, generator=generator)
    stays = torch.rand(sum(LENGTHS) + 2, generator=generator) < 0.6
    stays[[0, 5, 6]] = True
    return list(qkv.to(DEVICE)), boundaries(LENGTHS), stays.to(DEVICE)


@pytest.mark.parametrize("tables", ["", "bqk"])
@pytest.mark.parametrize("window", [-1, 2])
def test_it_is_the_reference_where_all_tokens_are_seen(tables: str, window: int) -> None:
    qkv, cu_seqlens, _ = inputs()
    positions = random_positions(tables, len(qkv[0]), 2, LONGEST, torch.float64) if tables else None
    arguments = (*qkv, cu_seqlens, as_seed(3, DEVICE), LONGEST, 0.3, 9000, window, positions)
    out = padded_attention(*arguments, columns=None, visible=None)
    assert torch.equal(out, reference.attention(*arguments))


@pytest.mark.parametrize("window", [-1, 2])
def test_tokens_that_are_not_seen_count_for_the_others_as_if_left_out(window: int) -> None:
    qkv, cu_seqlens, stays = inputs()
    seed = as_seed(0, DEVICE)
    kept = padded_attention(
        *qkv, cu_seqlens, seed, LONGEST, 0.3, 0, window, None, columns=None, visible=stays
    )
    counts = torch.cat([stays.new_zeros(1), stays]).cumsum(0)
    fewer = counts[cu_seqlens.long()].int()
    places = [torch.arange(length, device=DEVICE) for length in (*LENGTHS, 2)]
    columns = torch.cat(places)
    left = padded_attention(
        *(x[stays] for x in qkv), fewer, seed, LONGEST, 0.3, 0, window, None,
        columns=columns[stays], visible=None,
    )  # fmt: skip
    torch.testing.assert_close(kept[stays], left)


def test_a_token_that_sees_nothing_gets_the_mean() -> None:
    qkv, cu_seqlens, stays = inputs()
    unseen = torch.zeros_like(stays)
    out = padded_attention(
        *qkv,
        cu_seqlens,
        as_seed(0, DEVICE),
        LONGEST,
        0.3,
        0,
        -1,
        None,
        columns=None,
        visible=unseen,
    )
    torch.testing.assert_close(out[6:15], qkv[2][6:15].mean(0).expand(9, -1, -1))
    assert not out[15:].any()
