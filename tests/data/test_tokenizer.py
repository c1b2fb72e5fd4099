"""WordPiece: the same vocabulary each time, and a folder that `transformers` reads alike."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bertfast import BertfastError
from bertfast.data.tokenizer import SpecialIds, save_tokenizer, train_wordpiece
from bertfast.hub import load_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Café naïve — the fox's dens, 1234!",
    "quickly quicker quickest",
] * 3


def test_special_tokens_come_first():
    tokenizer = train_wordpiece(TEXTS, 120)
    assert SpecialIds(tokenizer).all == (0, 1, 2, 3, 4)
    assert tokenizer.get_vocab_size() <= 120


def test_a_rerun_learns_the_same_vocabulary():
    assert train_wordpiece(TEXTS, 120).get_vocab() == train_wordpiece(TEXTS, 120).get_vocab()


def test_lower_case_and_accents_go_unless_they_are_kept():
    assert "cafe" in "".join(train_wordpiece(TEXTS, 150).encode("CAFÉ", add_special_tokens=False).tokens).replace(
        "##", ""
    )
    cased = train_wordpiece(TEXTS, 150, lowercase=False)
    assert cased.encode("Café", add_special_tokens=False).ids != cased.encode("cafe", add_special_tokens=False).ids


def test_a_saved_tokenizer_comes_back(tmp_path):
    tokenizer = train_wordpiece(TEXTS, 120)
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    (tmp_path / "tokenizer.json").unlink()  # vocab.txt alone
    assert load_tokenizer(tmp_path).encode("the fox", "dens").ids == tokenizer.encode("the fox", "dens").ids


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_reads_the_folder_alike(tmp_path, lowercase):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    tokenizer = train_wordpiece(TEXTS, 150, lowercase)
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, pair in (("The Café's fox — unseen wörds!", None), ("quick", "Brown dens [MASK]")):
        wanted = tokenizer.encode(text, pair)
        got = theirs(text, pair)
        assert got["input_ids"] == wanted.ids
        assert got["token_type_ids"] == wanted.type_ids
    assert theirs.mask_token_id == 4


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (TEXTS, 5, "vocab-size is 5; it must be above 5"),
        (TEXTS, -1, "vocab-size is -1"),
        (TEXTS, 20, "the text's characters alone need"),
        ([], 100, "no text to learn"),
        (["  "], 100, "no text to learn"),
    ],
)
def test_a_vocabulary_that_cannot_be_made_says_why(texts, size, message):
    with pytest.raises(BertfastError, match=message):
        train_wordpiece(texts, size)


def test_a_tokenizer_without_special_tokens_is_refused():
    with pytest.raises(BertfastError, match=r"no \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        SpecialIds(Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
