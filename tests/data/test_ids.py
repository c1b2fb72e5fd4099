"""Remembered words give the tokenizer's own ids, one for one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from bertfast.data import ids as module
from bertfast.data.ids import IdsOfText
from bertfast.tokenization import train_byte_level_bpe, train_wordpiece

TEXT = "One fox, two Dens! It's caf\u00e9 \u201cfour\u201d \u2014 5,000 foxes\u2026 x-y_z"
WORDS = {cased: train_wordpiece([TEXT], 90, lowercase=not cased) for cased in (False, True)}
BYTES = train_byte_level_bpe([TEXT], 300)
PIECES = st.sampled_from(
    [*TEXT.split(), "[MASK]", "[mask]", "\u4e2d", "a\u0301", "\x07", "\u00a0", "\t", "q" * 120]
)


@pytest.mark.parametrize("tokenizer", [*WORDS.values(), BYTES], ids=["lower", "cased", "bytes"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_ids_are_the_tokenizers(tokenizer, data):
    texts = data.draw(st.lists(st.lists(st.one_of(PIECES, st.text(max_size=5))).map(" ".join)))
    ids, counts = IdsOfText(tokenizer)(texts)
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert counts.tolist() == [len(each) for each in wanted]
    assert ids.tolist() == [token for each in wanted for token in each]


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_WORDS", 4)
    ids_of = IdsOfText(WORDS[False])
    texts = [f"fox {letter}" for letter in "onefxtwds"]
    for _ in range(2):
        ids, counts = ids_of(texts, np.uint16)
        wanted = [WORDS[False].encode(text, add_special_tokens=False).ids for text in texts]
        assert ids.tolist() == [token for each in wanted for token in each]
        assert counts.tolist() == [len(each) for each in wanted]
    assert len(ids_of.words) <= 4


def test_an_added_token_without_regard_to_case_is_left_to_the_tokenizer():
    tokenizer = train_wordpiece([TEXT], 90)
    tokenizer.add_tokens([AddedToken("two Dens", normalized=True)])
    ids, _ = IdsOfText(tokenizer)(["one TWO dens"])
    assert ids.tolist() == tokenizer.encode("one TWO dens", add_special_tokens=False).ids
