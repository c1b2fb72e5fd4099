"""Masked-token selection keeps BERT's shares, never touches special tokens, and is a function of
its bits.
"""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.objectives import mask_tokens

WORDS = np.arange(10, 1000)
MASK = 4


def run(lengths, special_rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    special = rng.random(tokens) < special_rate
    ids = np.where(special, 2, rng.integers(10, 1000, tokens))
    cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
    arrays = (torch.from_numpy(x) for x in (ids, cu_seqlens, special, WORDS))
    found = mask_tokens(*arrays, MASK, torch.arange(tokens), seed)
    return ids, special, cu_seqlens, tuple(x.numpy() for x in found)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=8), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0])
)
def test_each_sequence_hides_fifteen_percent_of_its_words(lengths, seed, special_rate):
    ids, special, cu_seqlens, (hidden, positions, labels) = run(lengths, special_rate, seed)
    assert np.array_equal(positions, np.unique(positions))
    assert not special[positions].any()
    assert np.array_equal(labels, ids[positions])
    untouched = np.setdiff1d(np.arange(len(ids)), positions)
    assert np.array_equal(hidden[untouched], ids[untouched])
    for start, end in itertools.pairwise(cu_seqlens):
        words = int((~special[start:end]).sum())
        chosen = int(((positions >= start) & (positions < end)).sum())
        assert chosen == (min(max(round(0.15 * words), 1), words))


def test_of_the_chosen_eighty_percent_are_masked_ten_random_and_ten_kept():
    _ids, _, _, (hidden, positions, labels) = run([100] * 4000, 0.0)
    now = hidden[positions]
    masked, kept = (now == MASK).mean(), (now == labels).mean()
    deviation = (0.8 * 0.2 / len(positions)) ** 0.5
    assert abs(masked - 0.8) < 5 * deviation
    assert abs(kept - 0.1 - 0.1 / len(WORDS)) < 5 * deviation
    others = now[(now != MASK) & (now != labels)]
    assert others.min() >= 10
    counts = np.bincount(others, minlength=1000)[10:]
    assert counts.std() < 2 * counts.mean() ** 0.5  # uniform over the words


def test_every_position_is_chosen_as_often():
    _, _, _, (_, positions, _) = run([20] * 20000, 0.0)
    counts = np.bincount(positions % 20, minlength=20)
    assert np.abs(counts / 20000 - 0.15).max() < 5 * (0.15 * 0.85 / 20000) ** 0.5


def test_the_same_bits_give_the_same_masks_on_every_backend():
    first, second = run([30, 5], seed=4)[3], run([30, 5], seed=4)[3]
    with kernels.use_backend("reference"):
        third = run([30, 5], seed=4)[3]
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_a_sequences_masks_go_with_its_counters_wherever_it_stands():
    ids = torch.randint(10, 1000, (50,))
    special, words = torch.zeros(50, dtype=torch.bool), torch.from_numpy(WORDS)
    counters = torch.arange(50) + 2**33

    def masked(places, bounds):
        found = mask_tokens(
            ids[places],
            torch.tensor(bounds, dtype=torch.int32),
            special,
            words,
            MASK,
            counters[places],
            1,
        )
        return torch.stack((found[0], torch.zeros_like(ids).index_fill(0, found[1], 1)))

    here, there = (
        torch.arange(50),
        torch.arange(50).roll(20),
    )  # sequences of 30 and 20, then of 20 and 30
    assert torch.equal(masked(here, [0, 30, 50]).roll(20, 1), masked(there, [0, 20, 50]))


def test_words_may_be_any_ids():
    words = torch.tensor([7, 900, 12])
    ids = torch.full((20000,), 500)
    bounds, special = (
        torch.tensor([0, 20000], dtype=torch.int32),
        torch.zeros(20000, dtype=torch.bool),
    )
    hidden, _, _ = mask_tokens(ids, bounds, special, words, MASK, torch.arange(20000), 0)
    assert hidden.unique().tolist() == [4, 7, 12, 500, 900]
