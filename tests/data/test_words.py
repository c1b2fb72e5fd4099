"""Which tokens continue a word, for each kind of tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bertfast import BertfastError
from bertfast.data.words import continuations
from bertfast.tokenization import SPECIAL_TOKENS, wordpiece_tokenizer

TEXT = "play playing a cat"


def wordpiece():
    words = [*SPECIAL_TOKENS, "play", "##ing", "a", "c", "##at"]
    return wordpiece_tokenizer({word: index for index, word in enumerate(words)}, True)


def byte_level():
    pieces = ["<s>", "play", "Ġplay", "ing", "Ġa", "Ġc", "at", "Ġ", *"playingct"]
    merges = [("Ġ", "a"), ("Ġ", "c")]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram():
    pieces = ["<unk>", "▁play", "ing", "▁a", "▁c", "at", "ĠT"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("make", [wordpiece, byte_level, unigram])
def test_the_tokens_that_start_no_word_continue_one(make):
    tokenizer = make()
    found = continuations(tokenizer, tokenizer.get_vocab_size())
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    starts = np.flatnonzero(~found[ids]).tolist()
    words = [
        tokenizer.decode(ids[start:end]).strip()
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    assert words == TEXT.split()


def test_the_table_is_as_long_as_the_models_vocabulary():
    for size in (3, 10, 64):
        assert continuations(wordpiece(), size).shape == (size,)
    assert not continuations(wordpiece(), 64)[10:].any()


def test_tokens_without_marks_are_refused():
    with pytest.raises(BertfastError, match="where words start.*--mask-unit token"):
        continuations(Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")), 2)
