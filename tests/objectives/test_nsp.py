"""Segment pairs: truncation keeps both sides, lengths aim as published, single segments cover
documents.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.objectives import document_spans, sentence_pairs
from bertfast.objectives.nsp import truncate


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 100), st.integers(0, 1000))
def test_truncation_fits_and_keeps_a_token_of_each(left, right, limit, seed):
    a0, a1, b0, b1 = truncate((0, left), (500, 500 + right), limit, np.random.default_rng(seed))
    assert 0 <= a0 < a1 <= left
    assert 500 <= b0 < b1 <= 500 + right
    kept = (a1 - a0) + (b1 - b0)
    assert kept == min(left + right, limit)
    if (
        left + right > limit
    ):  # the longer side was cut, down to the shorter one's length before both were
        assert abs((a1 - a0) - (b1 - b0)) <= 1 or min(a1 - a0, b1 - b0) == min(left, right)


def corpus(documents=200, sentences=20, length=10):
    bounds = np.arange(documents * sentences + 1) * length
    return bounds.astype(np.int64), (np.arange(documents + 1) * sentences).astype(np.int64)


def test_most_pairs_fill_the_length_and_some_are_short():
    spans = sentence_pairs(*corpus(), 100, np.random.default_rng(0))
    lengths = (spans.a_end - spans.a_start) + (spans.b_end - spans.b_start)
    assert lengths.max() <= 100
    assert 0.05 < (lengths < 70).mean() < 0.5
    assert (lengths >= 90).mean() > 0.4


@pytest.mark.parametrize("max_tokens", [8, 29, 61, 400])
def test_half_of_the_partners_are_random_whatever_the_sentences_length(max_tokens):
    sentences, documents = corpus(300, 20, 30)
    spans = sentence_pairs(sentences, documents, max_tokens, np.random.default_rng(3))
    # A document's last sentence, where it stands alone, can only have a random one.
    assert 0.45 < spans.label.mean() < 0.55 + 1 / 20
    following = spans.label == 0
    a, b = (
        np.searchsorted(sentences[documents], start, "right")
        for start in (spans.a_start, spans.b_start)
    )
    assert (a == b)[following].all()
    assert (a != b)[~following].all()


def test_sentences_displaced_by_a_random_partner_come_again():
    sentences, documents = corpus(50)
    spans = sentence_pairs(sentences, documents, 60, np.random.default_rng(1))
    seen = np.zeros(sentences[-1], bool)
    for start, end in zip(spans.a_start, spans.a_end, strict=True):
        seen[start:end] = True
    for start, end, label in zip(spans.b_start, spans.b_end, spans.label, strict=True):
        if label == 0:
            seen[start:end] = True
    assert seen.mean() > 0.95  # all but what truncation took off


def test_single_segments_never_cross_documents():
    sentences, documents = corpus(20, 7, 13)
    spans = document_spans(sentences, documents, 32, np.random.default_rng(2))
    bounds = sentences[documents]
    assert (
        np.searchsorted(bounds, spans.a_start, "right")
        == np.searchsorted(bounds, spans.a_end, "left")
    ).all()
    assert (spans.a_end - spans.a_start).max() <= 32
