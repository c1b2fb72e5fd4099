"""Whole words and spans of them are hidden as published, never split, within the same budget."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels.philox import token_words
from bertfast.objectives import mask_tokens, most_masked
from bertfast.objectives.mlm import span_lengths

WORDS = torch.arange(10, 1000)
MASK = 4


def make(lengths, special_rate=0.1, start_rate=0.7, seed=0):
    """Packed sequences as arguments of mask_tokens, by name."""
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    special = torch.from_numpy(rng.random(tokens) < special_rate)
    return {
        "ids": torch.where(special, 2, torch.from_numpy(rng.integers(10, 1000, tokens))),
        "cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        "special": special,
        "replacements": WORDS,
        "mask_id": MASK,
        "counters": torch.arange(tokens) * 3 + (seed << 32),
        "seed": seed,
        "word_starts": torch.from_numpy(rng.random(tokens) < start_rate),
    }


def words_of(case):
    """Of each sequence, its words as lists of tokens, in stretches that no special token
    interrupts.
    """
    found = []
    for start, end in itertools.pairwise(case["cu_seqlens"].tolist()):
        stretches = [[]]
        for token in range(start, end):
            if case["special"][token]:
                stretches.append([])
            elif case["word_starts"][token] or not stretches[-1]:
                stretches[-1].append([token])
            else:
                stretches[-1][-1].append(token)
        found.append(stretches)
    return found


def one_by_one(case, spans):
    """The tokens that the published loops choose, given the order of the words and the spans'
    lengths.
    """
    choice, _, _, extent = token_words(torch.tensor([case["seed"]]), case["counters"])
    chosen = set()
    for stretches in words_of(case):
        eligible = sum(len(word) for stretch in stretches for word in stretch)
        budget = int(most_masked(np.array([eligible]))[0])
        places = [(stretch, number) for stretch in stretches for number in range(len(stretch))]
        covered = set()
        for stretch, number in sorted(places, key=lambda place: int(choice[place[0][place[1]][0]])):
            length = int(span_lengths(extent[stretch[number][0]])) if spans else 1
            if stretch[number][0] in covered:
                continue
            open_ = True
            for word in stretch[number : number + length]:
                if word[0] in covered:
                    continue
                covered.add(word[0])
                open_ = open_ and len(word) <= budget
                if open_:
                    chosen.update(word)
                    budget -= len(word)
    return sorted(chosen)


CASES = st.builds(
    make,
    st.lists(st.integers(0, 70), max_size=6),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.integers(0, 10_000),
)


@settings(deadline=None)
@given(CASES, st.booleans())
def test_the_choice_is_that_of_the_published_loop(case, spans):
    hidden, positions, labels = mask_tokens(**case, spans=spans)
    assert positions.tolist() == one_by_one(case, spans)
    assert torch.equal(labels, case["ids"][positions])
    untouched = torch.ones_like(hidden, dtype=torch.bool).index_fill(0, positions, False)
    assert torch.equal(hidden[untouched], case["ids"][untouched])


@settings(deadline=None)
@given(CASES, st.booleans())
def test_words_are_hidden_whole_specials_never_and_the_budget_holds(case, spans):
    _, positions, _ = mask_tokens(**case, spans=spans)
    chosen = set(positions.tolist())
    assert not case["special"][positions].any()
    for stretches in words_of(case):
        words = [word for stretch in stretches for word in stretch]
        counts = [len(chosen.intersection(word)) for word in words]
        assert all(count in (0, len(word)) for count, word in zip(counts, words, strict=True))
        eligible = sum(map(len, words))
        assert sum(counts) <= most_masked(np.array([eligible]))[0]


@pytest.mark.parametrize("spans", [False, True])
def test_fifteen_percent_are_hidden_where_words_are_short(spans):
    case = make([128] * 300, 0.02)
    _, positions, _ = mask_tokens(**case, spans=spans)
    eligible = int((~case["special"]).sum())
    assert 0.148 < len(positions) / eligible < 0.151


@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 50])
def test_a_sequence_of_one_word_hides_it_only_if_the_budget_holds_it(length, spans):
    case = make([length, 0], 0.0, 0.0)
    hidden, positions, labels = mask_tokens(**case, spans=spans)
    assert (len(hidden), len(positions), len(labels)) == (length, length == 1, length == 1)


@pytest.mark.parametrize("spans", [False, True])
def test_no_sequences_at_all_hide_nothing(spans):
    assert [len(x) for x in mask_tokens(**make([]), spans=spans)] == [0, 0, 0]


@pytest.mark.parametrize("spans", [False, True])
def test_a_sequences_masks_go_with_its_counters_wherever_it_stands(spans):
    case = make([40, 25, 60], seed=5)
    parts = [slice(0, 40), slice(40, 65), slice(65, 125)]
    whole = mask_tokens(**case, spans=spans)[0]
    for order in itertools.permutations(range(3)):
        pick = torch.cat([torch.arange(125)[parts[part]] for part in order])
        bounds = torch.tensor(
            [0, *itertools.accumulate(parts[part].stop - parts[part].start for part in order)]
        )
        moved = {name: case[name][pick] for name in ("ids", "special", "counters", "word_starts")}
        again = mask_tokens(**{**case, **moved, "cu_seqlens": bounds.int()}, spans=spans)[0]
        assert torch.equal(again, whole[pick])


def test_span_lengths_are_geometric_given_that_they_are_at_most_ten():
    words = token_words(torch.tensor([7]), torch.arange(200_000))[3]
    lengths = span_lengths(words)
    wanted = 0.2 * 0.8 ** np.arange(10)
    wanted /= wanted.sum()
    share = torch.bincount(lengths, minlength=11)[1:].numpy() / len(lengths)
    assert np.abs(share - wanted).max() < 5 * 0.5 / len(lengths) ** 0.5
    assert abs(float(lengths.double().mean()) - 3.797) < 0.03  # the paper's 3.8
    assert span_lengths(torch.tensor([0, 2**32 - 1])).tolist() == [1, 10]


def runs(case, positions):
    """(start, end) of the tokens chosen side by side in a sequence."""
    sequence = torch.bucketize(positions, case["cu_seqlens"].long(), right=True)
    cuts = ((positions.diff() != 1) | (sequence.diff() != 0)).nonzero().squeeze(1) + 1
    starts = [0, *cuts.tolist()]
    return [(a, b) for a, b in zip(starts, [*starts[1:], len(positions)], strict=True)]


def test_spans_are_longer_than_words_and_few_are_at_their_longest():
    case = make([500] * 200, 0.0, 1.0)
    lengths = np.array(
        [end - start for start, end in runs(case, mask_tokens(**case, spans=True)[1])]
    )
    assert (
        3.8 < lengths.mean() < 5.2
    )  # spans that meet are one run, and the last one of a sequence is cut
    assert 0.1 < (lengths == 1).mean() < 0.25
    singly = np.array([end - start for start, end in runs(case, mask_tokens(**case)[1])])
    assert singly.mean() < 1.3


def test_what_becomes_of_a_span_is_decided_for_all_of_it():
    case = make([128] * 3000, 0.0, 0.8)
    hidden, positions, labels = mask_tokens(**case, spans=True)
    now = hidden[positions]
    kinds = torch.where(now == MASK, 0, torch.where(now == labels, 2, 1))
    bounds = runs(case, positions)
    first = torch.tensor([start for start, _ in bounds])
    decided = kinds[first]
    for (start, end), kind in zip(bounds, decided.tolist(), strict=True):
        of_run = kinds[start:end]
        # A random word is now and then the one that stood there.
        assert (of_run == 0).all() if kind == 0 else (of_run != 0).all()
        assert kind == 0 or (of_run == 2).all() or (of_run == 2).sum() <= 1 + (end - start) // 4
    deviation = (0.8 * 0.2 / len(bounds)) ** 0.5
    assert abs(float((decided == 0).double().mean()) - 0.8) < 5 * deviation
    assert abs(float((decided == 2).double().mean()) - 0.1) < 5 * deviation
    drawn = now[kinds == 1]
    assert len(drawn.unique()) > 0.95 * min(len(drawn), len(WORDS)), (
        "each token of a span draws its own word"
    )


@pytest.mark.parametrize("words", [False, True])
def test_what_becomes_of_a_token_or_a_words_piece_is_the_ops_to_say(words):
    case = make([100] * 20, 0.1, seed=3)
    if not words:
        case["word_starts"] = None
    hidden, positions, _ = mask_tokens(**case)
    kept = torch.ones_like(case["special"]).index_fill(0, positions, False)
    wanted, _ = kernels.mask_tokens(
        case["ids"],
        kept,
        mask_id=MASK,
        vocab_size=1000,
        first_random_id=10,
        rate=1.0,
        seed=3,
        counters=case["counters"],
    )
    assert torch.equal(hidden, wanted)
