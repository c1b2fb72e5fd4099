"""Pretraining batches are packed, masked and paired as published, and are a function of seed and
step alone.
"""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import BertfastError
from bertfast.data.packing import Batches, deal
from bertfast.data.store import TokenStore
from bertfast.tokenization import (
    ROBERTA_TOKENS,
    SPECIAL_TOKENS,
    SpecialIds,
    byte_level_bpe_tokenizer,
    wordpiece_tokenizer,
)

VOCAB = 400
SPECIAL = SpecialIds(
    wordpiece_tokenizer(
        {t: i for i, t in enumerate([*SPECIAL_TOKENS, *map(str, range(VOCAB - 5))])}, True
    )
)


def make_store(documents=30, seed=0):
    """Token t of document d is 5 + d, so that a token tells its document."""
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(1, 12, rng.integers(2, 9)) for _ in range(documents)]
    ids = np.concatenate([np.full(sum(per), 5 + d, np.uint16) for d, per in enumerate(lengths)])
    sentences = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    counts = np.cumsum([0, *(len(per) for per in lengths)]).astype(np.int64)
    return TokenStore(ids, sentences, counts)


STORE = make_store()


def batches(store=STORE, **options):
    settings = {"seq_len": 32, "batch_tokens": 128, "seed": 3, **options}
    return Batches(store, SPECIAL, VOCAB, **settings)


def same(a, b):
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("masking", ["dynamic", "static"])
@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "mlm+sop"])
def test_a_start_anywhere_gives_what_the_whole_run_gave(objective, masking):
    run = batches(objective=objective, masking=masking)
    whole = list(islice(run.iterate(), 60))
    assert whole[-1][0] >= 2, "the run must cross epochs"
    for start in (0, 1, 17, 59):
        epoch, batch = next(batches(objective=objective, masking=masking).iterate(start))
        assert epoch == whole[start][0]
        assert same(batch, whole[start][1])


@pytest.mark.parametrize(("objective", "frame"), [("mlm", [2, 3]), ("mlm+nsp", [2, 3, 3, 3])])
def test_sequences_are_framed_as_robertas_tokenizer_frames_them(objective, frame):
    words = {
        token: index for index, token in enumerate([*ROBERTA_TOKENS, *map(str, range(VOCAB - 5))])
    }
    special = SpecialIds(byte_level_bpe_tokenizer(words, []))
    run = Batches(STORE, special, VOCAB, seq_len=32, batch_tokens=128, seed=3, objective=objective)
    for _, batch in islice(run.iterate(), 20):
        ids = batch.input_ids.clone()
        ids[batch.masked_positions] = batch.masked_labels
        assert not batch.segment_ids.any()
        assert batch.num_tokens <= 128
        for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            sequence = ids[start:end]
            assert len(sequence) <= 32
            assert sequence[sequence < 5].tolist() == frame
            assert (sequence[0], sequence[-1]) == (2, 3)
            if objective == "mlm+nsp":
                ends = (sequence == 3).nonzero().flatten()
                assert ends[1] == ends[0] + 1


@pytest.mark.parametrize("masking", ["dynamic", "static"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_have_the_batches_of_one(ranks, masking):
    run = batches(objective="mlm", masking=masking, together=4)
    whole = list(islice(run.iterate(4), 60))
    assert whole[-1][0] >= 2, "the run must cross epochs"
    for rank in range(ranks):
        own = list(islice(run.iterate(4 + rank, ranks), 60 // ranks))
        assert all(
            epoch == other and same(batch, theirs)
            for (epoch, batch), (other, theirs) in zip(own, whole[rank::ranks], strict=True)
        )


def test_an_updates_sequences_are_dealt_out_whole():
    """Each example once an epoch, as where nothing is dealt; no batch beyond its tokens."""
    runs = {together: batches(objective="mlm", together=together) for together in (1, 3)}
    count = len(runs[1].plan(0)[1])
    made = {
        together: [batch for _, batch in islice(run.iterate(), count)]
        for together, run in runs.items()
    }
    ids = {
        together: sorted(
            tuple(batch.input_ids[a:b].tolist())
            for batch in own
            for a, b in pairwise(batch.cu_seqlens.tolist())
        )
        for together, own in made.items()
    }
    assert ids[1] == ids[3]
    assert all(batch.num_tokens <= 128 for batch in made[3])


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 512), max_size=300),
    parts=st.integers(1, 9),
)
def test_sequences_are_dealt_out_evenly(lengths, parts):
    lengths = np.array(lengths, np.int64)
    dealt = deal(lengths, parts)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    longest = max(lengths, default=0)
    for power in (1, 2):
        loads = [int((lengths[part] ** power).sum()) for part in dealt]
        assert max(loads) - min(loads) <= longest**power


def test_another_seed_gives_other_batches():
    assert not same(next(batches(seed=1).iterate())[1], next(batches(seed=2).iterate())[1])


@pytest.mark.parametrize("masking", ["dynamic", "static"])
@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "mlm+sop"])
def test_the_budget_holds_the_first_epochs_batches_and_most_of_the_others(objective, masking):
    run = batches(objective=objective, masking=masking)
    budget = run.budget()
    made = list(islice(run.iterate(), 100))
    fitting = [batch.fits(budget) for _, batch in made]
    assert all(fits for (epoch, _), fits in zip(made, fitting, strict=True) if epoch == 0)
    assert sum(fitting) >= 95
    largest = max(batch.sizes.masked for epoch, batch in made if epoch == 0)
    assert budget.masked <= largest + max(largest // 16, 8), (
        "the predicted rows are the dearest slack"
    )


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "mlm+sop"])
def test_batches_are_well_formed(objective):
    for _, batch in islice(batches(objective=objective).iterate(), 40):
        batch.check()
        lengths = batch.cu_seqlens.diff()
        assert batch.num_tokens <= 128
        assert lengths.max() <= 32
        original = batch.input_ids.clone()
        original[batch.masked_positions] = batch.masked_labels
        assert not any(special in batch.masked_labels for special in SPECIAL.all)
        for start, end in zip(
            batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True
        ):
            ids, segments = original[start:end].tolist(), batch.segment_ids[start:end].tolist()
            assert ids[0] == SPECIAL.cls
            assert ids[-1] == SPECIAL.sep
            assert ids.count(SPECIAL.sep) == (1 if objective == "mlm" else 2)
            assert batch.position_ids[start:end].tolist() == list(range(end - start))
            if objective != "mlm":
                first = ids.index(SPECIAL.sep)
                assert segments == [0] * (first + 1) + [1] * (len(ids) - first - 1)
            else:
                assert not any(segments)


def test_a_random_partner_comes_from_another_document_and_a_next_one_from_the_same():
    labels = []
    for _, batch in islice(batches().iterate(), 60):
        original = batch.input_ids.clone()
        original[batch.masked_positions] = batch.masked_labels
        for row, label in enumerate(batch.pair_labels.tolist()):
            ids = original[batch.cu_seqlens[row] : batch.cu_seqlens[row + 1]].tolist()
            first = ids.index(SPECIAL.sep)
            same_document = ids[1] == ids[first + 1]
            assert same_document == (label == 0)
            labels.append(label)
    assert 0.4 < np.mean(labels) < 0.75  # a lone last sentence always takes a random partner


UNITS = {
    "token": {},
    "whole-word": {"mask_unit": "whole-word", "continues": np.arange(VOCAB) % 3 == 0},
    "span": {"mask_unit": "span", "continues": np.arange(VOCAB) % 3 == 0},
}


@pytest.mark.parametrize("unit", ["whole-word", "span"])
def test_words_and_spans_are_hidden_the_same_from_any_start_within_the_budget(unit):
    run = batches(objective="mlm+sop", **UNITS[unit])
    budget = run.budget()
    whole = list(islice(run.iterate(), 20))
    assert same(next(batches(objective="mlm+sop", **UNITS[unit]).iterate(17))[1], whole[17][1])
    assert not same(whole[0][1], next(batches(objective="mlm+sop").iterate())[1])
    assert all(batch.fits(budget) for epoch, batch in whole if epoch == 0)


@pytest.mark.parametrize("unit", ["whole-word", "span"])
def test_a_sentence_starts_a_word_whatever_its_first_token(unit):
    """Where all tokens continue a word, each sentence, of two tokens here, is one."""
    store = TokenStore(np.arange(5, 305, dtype=np.uint16), np.arange(0, 301, 2), np.array([0, 150]))
    everything = {
        "objective": "mlm",
        "mask_unit": unit,
        "continues": np.ones(VOCAB, np.bool_),
        "seq_len": 80,
    }
    whole = 0
    for _, batch in islice(batches(store, **everything).iterate(), 20):
        original = batch.input_ids.clone()
        original[batch.masked_positions] = batch.masked_labels
        hidden = torch.zeros_like(original).index_fill(0, batch.masked_positions, 1)
        halves = (
            (original[:-1] % 2 == 1) & (original[1:] == original[:-1] + 1) & (original[:-1] >= 5)
        )
        assert torch.equal(hidden[:-1][halves], hidden[1:][halves])
        whole += int(hidden[:-1][halves].sum())
    assert whole > 50


def test_distillation_takes_the_batches_of_mlm():
    made, wanted = batches(objective="distill").iterate(), batches(objective="mlm").iterate()
    assert all(same(next(made)[1], next(wanted)[1]) for _ in range(3))


def test_a_generator_is_shown_masks_and_original_words_alone():
    made, wanted = batches(objective="rtd").iterate(), batches(objective="mlm").iterate()
    masked = kept = 0
    for (_, batch), (_, other) in islice(zip(made, wanted, strict=True), 20):
        assert torch.equal(batch.masked_positions, other.masked_positions)
        shown = batch.input_ids[batch.masked_positions]
        stays = shown == batch.masked_labels
        assert ((shown == SPECIAL.mask) | stays).all()
        masked, kept = masked + int((~stays).sum()), kept + int(stays.sum())
    assert masked / (masked + kept) == pytest.approx(0.85, abs=0.05)


def test_a_swapped_pair_is_labelled_so():
    whole = TokenStore(
        np.arange(5, 305, dtype=np.uint16), np.arange(0, 301, 10), np.arange(0, 31, 10)
    )
    labels = []
    for _, batch in islice(batches(whole, objective="mlm+sop").iterate(), 20):
        original = batch.input_ids.clone()
        original[batch.masked_positions] = batch.masked_labels
        for row, label in enumerate(batch.pair_labels.tolist()):
            start, end = batch.cu_seqlens[row : row + 2].tolist()
            assert label == (original[start + 1] > original[end - 2])
            labels.append(label)
    assert 0 < sum(labels) < len(labels)


def test_an_epoch_of_mlm_covers_every_token_once():
    spans, rows, *_ = batches(objective="mlm").plan()
    covered = np.concatenate(
        [np.arange(a, b) for a, b in zip(spans.a_start, spans.a_end, strict=True)]
    )
    assert sorted(covered.tolist()) == list(range(STORE.num_tokens))
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(spans)))


def test_static_masking_hides_the_same_in_every_epoch_and_dynamic_does_not():
    def hidden(masking):
        found: dict[int, set] = {}
        for epoch, batch in batches(masking=masking, objective="mlm").iterate():
            if epoch == 2:
                return found
            for row in range(batch.num_sequences):
                start, end = batch.cu_seqlens[row : row + 2].tolist()
                found.setdefault(epoch, set()).add(tuple(batch.input_ids[start:end].tolist()))
        return None

    static, dynamic = hidden("static"), hidden("dynamic")
    assert static[0] == static[1]
    assert dynamic[0] != dynamic[1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), seq_len=st.integers(5, 64), documents=st.integers(2, 12))
def test_any_corpus_packs_within_its_limits(seed, seq_len, documents):
    store = make_store(documents, seed)
    for _, batch in islice(
        batches(store, seq_len=seq_len, batch_tokens=seq_len * 2, seed=seed).iterate(), 10
    ):
        batch.check()
        assert batch.cu_seqlens.diff().max() <= seq_len
        assert batch.num_tokens <= 2 * seq_len
        assert len(batch.masked_positions) >= batch.num_sequences


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objective": "sop"},
            "objective is 'sop'; it must be one of mlm, mlm.nsp, mlm.sop, rtd, distill",
        ),
        ({"masking": "none"}, "masking is 'none'"),
        (
            {"mask_unit": "phrase"},
            "mask-unit is 'phrase'; it must be one of token, whole-word, span",
        ),
        ({"mask_unit": "span"}, "which tokens continue a word"),
        ({"seq_len": 4}, "seq-len is 4; it must be at least 5"),
        ({"seq_len": 200}, "a batch must hold a whole sequence"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(BertfastError, match=message):
        batches(**options)


def test_a_single_document_cannot_give_random_partners():
    with pytest.raises(BertfastError, match="a single document.*--objective mlm"):
        batches(make_store(1)).plan(0)
