"""Sentence-order pairs: consecutive segments of one document, half of them swapped, and no cut that
tells which.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast import BertfastError
from bertfast.objectives import ordered_pairs


def corpus(lengths):
    """Offsets of documents given as lists of sentence lengths."""
    sentences = np.cumsum([0, *(length for document in lengths for length in document)])
    return sentences.astype(np.int64), np.cumsum([0, *map(len, lengths)]).astype(np.int64)


DOCUMENTS = st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=8), min_size=1, max_size=6)


@given(DOCUMENTS, st.integers(2, 40), st.integers(0, 1000))
def test_the_segments_are_neighbours_in_a_document_and_the_label_tells_their_order(
    lengths, max_tokens, seed
):
    sentences, documents = corpus([*lengths, [1, 1]])
    spans = ordered_pairs(sentences, documents, max_tokens, np.random.default_rng(seed))
    assert (spans.tokens <= max_tokens).all()
    assert (np.minimum(spans.a_end - spans.a_start, spans.b_end - spans.b_start) >= 1).all()
    assert np.array_equal(spans.label, spans.a_start > spans.b_start)
    first, second = (
        np.minimum(spans.a_start, spans.b_start),
        np.maximum(spans.a_start, spans.b_start),
    )
    bounds = sentences[documents]
    assert np.array_equal(
        np.searchsorted(bounds, first, "right"), np.searchsorted(bounds, second, "right")
    )
    assert (np.diff(first) > 0).all(), "one pass over the corpus"


@given(DOCUMENTS, st.integers(0, 1000))
def test_where_nothing_is_too_long_every_token_of_documents_of_two_is_used_once(lengths, seed):
    sentences, documents = corpus([*lengths, [1, 1]])
    spans = ordered_pairs(sentences, documents, 1000, np.random.default_rng(seed))
    assert np.array_equal(
        np.where(spans.label, spans.b_end, spans.a_end), np.maximum(spans.a_start, spans.b_start)
    )
    assert spans.tokens.sum() == sum(
        sum(document) for document in [*lengths, [1, 1]] if sum(document) > 1
    )


def test_half_of_the_pairs_are_swapped():
    labels = ordered_pairs(*corpus([[10] * 20] * 500), 60, np.random.default_rng(0)).label
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / len(labels) ** 0.5


def test_where_segments_are_cut_does_not_tell_the_order():
    sentences, documents = corpus([[30] * 20] * 500)
    spans = ordered_pairs(sentences, documents, 58, np.random.default_rng(1))
    starts_whole, ends_whole = (np.isin(x, sentences) for x in (spans.a_start, spans.b_end))
    for whole in (starts_whole, ends_whole):
        shares = [whole[spans.label == label].mean() for label in (0, 1)]
        assert 0.05 < shares[0] < 0.95
        assert abs(shares[0] - shares[1]) < 5 * (0.5 / len(spans)) ** 0.5


def test_most_pairs_fill_the_length_and_some_are_short():
    lengths = ordered_pairs(*corpus([[10] * 20] * 200), 100, np.random.default_rng(0)).tokens
    assert 0.05 < (lengths < 70).mean() < 0.5
    assert (lengths >= 90).mean() > 0.4


def test_documents_of_a_single_token_cannot_be_put_in_order():
    with pytest.raises(BertfastError, match="no pair to put in order.*--objective mlm"):
        ordered_pairs(*corpus([[1], [1]]), 10, np.random.default_rng(0))
