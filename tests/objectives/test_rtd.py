"""Sampled replacements follow the generator's distribution, from counted bits; the discriminator is
asked about every real token.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.objectives.rtd import discriminator_inputs, sample_tokens
from bertfast.packed import PackedBatch


def make(masked=40, vocab=120, hidden=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, table = (
        torch.randn(n, hidden, generator=generator, dtype=dtype) for n in (masked, vocab)
    )
    return rows, table, torch.randn(vocab, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_samples_follow_the_softmax(dtype, with_bias):
    row, table, bias = make(1, 50, dtype=dtype)
    bias = bias if with_bias else None
    draws = 100_000
    sampled = sample_tokens(row.expand(draws, -1), table, bias, 3, torch.arange(draws))
    wanted = F.linear(row[0], table, bias).softmax(0) * draws
    counts = torch.bincount(sampled, minlength=50)
    common = wanted > 5
    chi_square = float(((counts - wanted)[common] ** 2 / wanted[common]).sum())
    freedom = int(common.sum()) - 1
    assert freedom > 20
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    assert int(counts[~common].sum()) < 5 * 50


def test_bfloat16_samples_follow_their_logits():
    row, table, bias = make(1, 50, dtype=torch.bfloat16)
    sampled = sample_tokens(row.expand(20_000, -1), table, bias, 3, torch.arange(20_000))
    wanted = F.linear(row[0], table, bias).float().softmax(0)
    share = torch.bincount(sampled, minlength=50) / 20_000
    assert (share - wanted).abs().max() < 5 * 0.5 / 20_000**0.5


def test_the_bits_are_a_rows_own_however_rows_are_blocked(monkeypatch):
    rows, table, bias = make(60)
    whole = sample_tokens(rows, table, bias, 5, torch.arange(60))
    order = torch.randperm(60)
    assert torch.equal(sample_tokens(rows[order], table, bias, 5, order), whole[order])
    monkeypatch.setattr(
        "bertfast.objectives.rtd.row_blocks", lambda *_: [slice(i, i + 7) for i in range(0, 60, 7)]
    )
    assert torch.equal(sample_tokens(rows, table, bias, torch.tensor([5]), torch.arange(60)), whole)
    assert not torch.equal(sample_tokens(rows, table, bias, 6, torch.arange(60)), whole)


def test_ids_without_probability_are_never_drawn():
    rows, table = torch.ones(5000, 1), torch.tensor([[-1e4], [0.0], [-1e4], [0.0], [-1e4]])
    assert sample_tokens(rows, table, None, 0, torch.arange(5000)).unique().tolist() == [1, 3]


def test_no_rows_give_no_ids_and_bad_logits_give_ids_that_exist():
    rows, table, bias = make(3)
    assert sample_tokens(rows[:0], table, bias, 0, torch.arange(0)).tolist() == []
    found = sample_tokens(rows * torch.nan, table, bias, 0, torch.arange(3))
    assert ((found >= 0) & (found < len(table))).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=5), st.integers(0, 1000), st.integers(0, 4))
def test_a_token_is_replaced_where_the_sample_differs_from_it(lengths, seed, slack):
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    batch = PackedBatch.from_sequences([rng.integers(5, 8, length).tolist() for length in lengths])
    original = batch.input_ids.clone()
    positions = torch.from_numpy(rng.random(tokens) < 0.4).nonzero().squeeze(1)
    batch.masked_positions, batch.masked_labels = positions, original[positions]
    batch.input_ids = original.index_fill(0, positions, 4)
    batch = batch.pad_to(tokens + slack, len(lengths) + slack, len(positions) + slack, 12)
    sampled = torch.from_numpy(rng.integers(5, 8, len(positions) + slack))

    ids, labels = discriminator_inputs(batch, sampled)
    wanted = original.index_copy(0, positions, sampled[: len(positions)])
    assert torch.equal(ids, F.pad(wanted, (0, slack)))
    assert torch.equal(labels, F.pad((wanted != original).long(), (0, slack), value=-100))
