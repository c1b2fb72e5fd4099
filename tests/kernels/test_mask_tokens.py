"""What `mask_tokens` promises: BERT's shares, no special token, whole words, and the same ids on
every backend.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels.philox import as_seed, token_words
from support import COMPILE_BACKEND, DEVICE, boundaries, forced, missing_backend

BACKENDS = [name for name in ("reference", "cpp", "triton") if not missing_backend(name)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
VOCAB, MASK = 1000, 4
TOKENS = 200_000


def ids_of(tokens, generator=None):
    return torch.randint(5, VOCAB, (tokens,), generator=generator).to(DEVICE)


def none_special(ids):
    return torch.zeros_like(ids, dtype=torch.bool)


def run(backend, ids, special=None, **options):
    settings = {"mask_id": MASK, "vocab_size": VOCAB, **options}
    with forced(backend):
        return kernels.mask_tokens(
            ids, none_special(ids) if special is None else special, **settings
        )


def within(count, total, share):
    """Whether so many of ``total`` are as good as ``share`` of them: 5 standard deviations of the
    binomial.
    """
    return abs(count - share * total) <= 5 * (share * (1 - share) * total) ** 0.5


shares = st.one_of(st.sampled_from([0.0, 0.15, 1.0]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=4),
    rate=shares,
    mask_share=shares,
    rest=shares,
    special_rate=st.sampled_from([0.0, 0.3, 1.0]),
    words=st.sampled_from(["none", "short", "long"]),
    split=st.booleans(),
    counted=st.booleans(),
    first=st.integers(0, VOCAB - 1),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_every_backend_gives_the_same_ids(
    lengths, rate, mask_share, rest, special_rate, words, split, counted, first, seed
):
    generator = torch.Generator().manual_seed(seed % 2**63)
    tokens = sum(lengths)
    ids = ids_of(tokens, generator)
    special = (torch.rand(tokens, generator=generator) < special_rate).to(DEVICE)
    options = {
        "rate": rate,
        "mask_share": mask_share,
        "random_share": rest * (1 - mask_share),
        "seed": seed,
    }
    if words != "none":
        grow = torch.rand(tokens, generator=generator) < {"short": 0.6, "long": 0.05}[words]
        options["word_ids"] = (grow.cumsum(0) - 1).to(DEVICE)
    if split:
        options["cu_seqlens"] = boundaries(lengths)
    if counted:
        options["counters"] = torch.randint(-(2**63), 2**63 - 1, (tokens,), generator=generator).to(
            DEVICE
        )
    results = [run(backend, ids, special, first_random_id=first, **options) for backend in BACKENDS]
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@each_backend
@pytest.mark.parametrize(
    ("rate", "mask_share", "random_share"),
    [(0.15, 0.8, 0.1), (0.4, 1.0, 0.0), (0.3, 0.0, 0.5), (0.9, 0.2, 0.8)],
)
@pytest.mark.slow
def test_the_rate_and_the_mix_are_those_asked_for(backend, rate, mask_share, random_share):
    ids = torch.full((TOKENS if backend != "triton" else 20_000,), 5, device=DEVICE)
    masked, labels = run(
        backend,
        ids,
        rate=rate,
        mask_share=mask_share,
        random_share=random_share,
        first_random_id=6,
        seed=3,
    )
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    count, now = int(chosen.sum()), masked[chosen]
    assert within(count, len(ids), rate)
    assert within(int((now == MASK).sum()), count, mask_share)
    assert within(int((now >= 6).sum()), count, random_share)
    drawn = torch.bincount(now[now >= 6], minlength=VOCAB)[6:].double()
    if random_share:  # uniform from first_random_id on: chi-squared
        expected = drawn.sum() / len(drawn)
        assert (
            abs(((drawn - expected) ** 2 / expected).sum() - len(drawn))
            < 5 * (2 * len(drawn)) ** 0.5
        )


def test_choice_and_fate_of_neighbours_are_independent():
    _, labels = run("reference", ids_of(TOKENS), rate=0.3, seed=8)
    chosen = labels != -100
    assert within(int((chosen[1:] & chosen[:-1]).sum()), TOKENS - 1, 0.09)


@each_backend
def test_the_bits_are_the_first_three_words_of_the_tokens_counter(backend):
    ids, seed, counters = ids_of(50), 2**40 + 1, torch.arange(50, device=DEVICE) * 2**34
    choice, action, draw, _ = (
        word.tolist() for word in token_words(as_seed(seed, DEVICE), counters)
    )
    masked, labels = run(
        backend, ids, seed=seed, counters=counters, rate=0.5, mask_share=0.25, random_share=0.5
    )
    for t, before in enumerate(ids.tolist()):
        chosen = choice[t] < 2**31
        after = (
            MASK
            if action[t] < 2**30
            else draw[t] * VOCAB >> 32
            if action[t] < 3 * 2**30
            else before
        )
        assert (masked[t], labels[t]) == ((after, before) if chosen else (before, -100))


@each_backend
def test_a_rate_of_one_chooses_all_and_of_none_nothing(backend):
    ids = ids_of(5000)
    special = torch.arange(5000, device=DEVICE) % 7 == 0
    masked, labels = run(
        backend, ids, special, rate=1.0, mask_share=1.0, random_share=0.0, ignore_index=-1
    )
    assert torch.equal(masked, torch.where(special, ids, MASK))
    assert torch.equal(labels, torch.where(special, -1, ids))
    masked, labels = run(backend, ids, special, rate=0.0)
    assert torch.equal(masked, ids)
    assert (labels == -100).all()


@each_backend
def test_special_tokens_are_never_chosen_and_those_below_the_first_random_id_never_drawn(backend):
    ids = ids_of(4000)
    special = torch.rand(4000, device=DEVICE) < 0.5
    ids[special] = 2
    masked, labels = run(
        backend, ids, special, rate=0.8, mask_share=0.0, random_share=1.0, first_random_id=5
    )
    assert (masked[special] == 2).all()
    assert (labels[special] == -100).all()
    assert (masked[~special] >= 5).all()


@each_backend
def test_a_word_is_chosen_whole_and_its_tokens_fare_each_by_itself(backend):
    lengths = torch.arange(3000) % 4 + 1
    word_ids = torch.arange(3000).repeat_interleave(lengths).to(DEVICE)
    special = torch.rand(len(word_ids), device=DEVICE) < 0.1
    ids = torch.full_like(word_ids, 5)
    masked, labels = run(
        backend, ids, special, word_ids=word_ids, rate=0.3, first_random_id=6, seed=5
    )
    chosen = labels != -100
    assert not chosen[special].any()
    for of_words in (
        chosen,
        chosen | special,
    ):  # a word is all chosen or not at all, but for its special tokens
        parts = torch.zeros(3000, dtype=torch.long, device=DEVICE).index_add(
            0, word_ids, of_words.long()
        )
        if of_words is chosen:
            touched = parts > 0
        else:
            assert (parts == lengths.to(DEVICE))[touched].all()
    ordinary = torch.ones(3000, dtype=torch.bool, device=DEVICE)
    ordinary[word_ids[special]] = False
    assert within(int((touched & ordinary).sum()), int(ordinary.sum()), 0.3)
    assert within(int((masked[chosen] == MASK).sum()), int(chosen.sum()), 0.8)


@each_backend
def test_a_words_choice_is_its_first_tokens_even_if_that_one_is_special(backend):
    word_ids = torch.arange(1000, device=DEVICE) // 2
    ids, first = ids_of(1000), torch.arange(1000, device=DEVICE) % 2 == 0
    alone = run(backend, ids, rate=0.4)[1] != -100
    words = run(backend, ids, first, word_ids=word_ids, rate=0.4)[1] != -100
    assert torch.equal(words[~first], alone[first])
    assert not words[first].any()


@each_backend
def test_words_end_at_a_boundary_and_where_a_token_is_of_none(backend):
    word_ids = torch.zeros(2000, dtype=torch.long, device=DEVICE)
    ids = ids_of(2000)

    def chosen(**options):
        return run(backend, ids, rate=0.5, seed=6, **options)[1] != -100

    assert chosen(word_ids=word_ids).unique().numel() == 1  # one word
    alone = chosen()
    assert torch.equal(chosen(word_ids=word_ids, cu_seqlens=boundaries([1] * 2000)), alone)
    split = chosen(
        word_ids=word_ids, cu_seqlens=boundaries([0, 700, 0, 600])
    )  # the slack is a sequence of its own
    assert torch.equal(
        split, alone[[0, 700, 1300]].repeat_interleave(torch.tensor([700, 600, 700], device=DEVICE))
    )
    word_ids[::2] = -1
    assert not chosen(word_ids=word_ids)[::2].any()
    assert torch.equal(chosen(word_ids=word_ids)[1::2], alone[1::2])


@each_backend
def test_the_seed_decides(backend):
    ids = ids_of(500)
    first, again = (run(backend, ids, seed=1)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, run(backend, ids, seed=torch.tensor([1], device=DEVICE))[0])
    assert not torch.equal(first, run(backend, ids, seed=2)[0])


@each_backend
def test_a_tokens_counter_goes_with_it(backend):
    ids = ids_of(300)
    order = torch.randperm(300, device=DEVICE)
    labels = run(backend, ids, rate=0.5)[1]
    assert torch.equal(run(backend, ids[order], counters=order, rate=0.5)[1], labels[order])


@each_backend
def test_no_token_and_one_token(backend):
    for tokens in (0, 1):
        ids = ids_of(tokens)
        masked, labels = run(
            backend,
            ids,
            word_ids=torch.zeros_like(ids),
            cu_seqlens=boundaries([tokens]),
            rate=1.0,
            mask_share=1.0,
            random_share=0.0,
        )
        assert masked.tolist() == [MASK] * tokens
        assert torch.equal(labels, ids)


@each_backend
def test_strided_input_gives_what_contiguous_input_gives(backend):
    ids, words = ids_of(900), torch.arange(900, device=DEVICE) // 5
    special = torch.rand(900, device=DEVICE) < 0.2
    strided = [x[::3] for x in (ids, special, words, words)]
    whole = [x.contiguous() for x in strided]
    results = [
        run(backend, a, b, word_ids=c, counters=d, rate=0.5, seed=9)
        for a, b, c, d in (strided, whole)
    ]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert all(x.is_contiguous() for x in results[0])


def test_any_number_of_threads_gives_the_same():
    ids = ids_of(20_001)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run("cpp", ids)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_the_mix_may_add_up_to_one_in_floating_point():
    for mask_share in (0.1, 0.3, 0.35, 0.55, 0.9):
        masked, _ = run(
            "reference",
            torch.full((2000,), 5, device=DEVICE),
            rate=1.0,
            mask_share=mask_share,
            random_share=1 - mask_share,
            first_random_id=6,
        )
        assert (masked != 5).all()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_the_custom_op_passes_opcheck(backend):
    ids, seed = ids_of(40), as_seed(3, DEVICE)
    numbers = (MASK, 5, VOCAB - 5, 2**31, 2**30, 2**32, -100, backend)
    counters = torch.arange(40, device=DEVICE)
    for given_ids, extra in (
        (ids, (None, None)),
        (ids, (counters, counters // 2)),
        (ids[:0], (None, None)),
        (ids[::2], (None, None)),
    ):
        arguments = (given_ids, none_special(given_ids), *extra, seed, *numbers)
        torch.library.opcheck(torch.ops.bertfast.mask_tokens.default, arguments)


@each_backend
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    ids, words, bounds = ids_of(60), torch.arange(60, device=DEVICE) // 3, boundaries([20, 0, 40])

    def call(ids, words, seed):
        return kernels.mask_tokens(
            ids,
            none_special(ids),
            mask_id=MASK,
            vocab_size=VOCAB,
            word_ids=words,
            cu_seqlens=bounds,
            rate=0.5,
            seed=seed,
        )

    seed = torch.tensor([4], device=DEVICE)
    with forced(backend):
        got = torch.compile(call, fullgraph=True, backend=COMPILE_BACKEND)(ids, words, seed)
        wanted = call(ids, words, seed)
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


IDS, NONE = torch.tensor([5, 6, 7]), torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": [5]}, TypeError, "input_ids is a list; it must be a tensor"),
        ({"input_ids": IDS.int()}, TypeError, "input_ids is torch.int32; it must be torch.int64"),
        (
            {"input_ids": IDS[None]},
            ValueError,
            r"input_ids has shape \(1, 3\); it must be \(tokens\)",
        ),
        (
            {"input_ids": torch.tensor([5, 1000, 7])},
            ValueError,
            "input_ids holds 1000; it must be from 0 to 999",
        ),
        ({"input_ids": torch.tensor([5, -1, 7])}, ValueError, "input_ids holds -1"),
        ({"special": None}, TypeError, "special is a NoneType"),
        ({"special": NONE.long()}, TypeError, "special is torch.int64; it must be torch.bool"),
        (
            {"special": NONE[:2]},
            ValueError,
            "special has 2 entries and there are 3 tokens; they must be the same",
        ),
        ({"special": NONE.to("meta")}, ValueError, "special is on meta and input_ids on cpu"),
        ({"word_ids": IDS.float()}, TypeError, "word_ids is torch.float32"),
        ({"word_ids": IDS[:1]}, ValueError, "word_ids has 1 entries"),
        ({"counters": IDS.int()}, TypeError, "counters is torch.int32"),
        ({"cu_seqlens": IDS}, TypeError, "cu_seqlens is torch.int64; it must be torch.int32"),
        (
            {"cu_seqlens": torch.tensor([1, 3], dtype=torch.int32)},
            ValueError,
            "cu_seqlens starts with 1",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)},
            ValueError,
            "cu_seqlens ends at 4",
        ),
        ({"rate": 1.1}, ValueError, "rate is 1.1; it must be from 0 to 1"),
        ({"rate": float("nan")}, ValueError, "rate is nan"),
        ({"mask_share": -0.1}, ValueError, "mask_share is -0.1"),
        (
            {"random_share": 0.3},
            ValueError,
            "mask_share is 0.8 and random_share 0.3; their sum must be at most 1",
        ),
        ({"vocab_size": 0}, ValueError, "vocab_size is 0; it must be above 0"),
        ({"vocab_size": 2**31 + 1}, ValueError, "vocab_size is 2147483649"),
        ({"mask_id": VOCAB}, ValueError, "mask_id is 1000; it must be from 0 to 999"),
        ({"first_random_id": -1}, ValueError, "first_random_id is -1"),
        ({"seed": 1.5}, TypeError, "seed is a float"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"input_ids": IDS, "special": NONE, "mask_id": MASK, "vocab_size": VOCAB} | change
    with pytest.raises(error, match=message):
        kernels.mask_tokens(**arguments)
