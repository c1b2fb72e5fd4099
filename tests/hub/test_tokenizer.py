"""A folder's tokenizer: from either kind of file, the same ids as `transformers`, and refused where it does not fit."""

import json

import pytest

from bertfast import BertConfig, BertfastError
from bertfast.hub import check_tokenizer_fits, load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "Cafe", "walk", "##ing", ".", "東", "京"]
TEXT = "The Cafés walking . 東京 [MASK] zebra"


def folder_with(tmp_path, words=WORDS, **settings):
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_vocabulary_makes_berts_tokenizer(tmp_path):
    encoding = load_tokenizer(folder_with(tmp_path)).encode(TEXT, "walk")
    assert encoding.tokens == (
        ["[CLS]", "the", "cafe", "##s", "walk", "##ing", ".", "東", "京", "[MASK]", "[UNK]", "[SEP]", "walk", "[SEP]"]
    )
    assert encoding.type_ids == [0] * 12 + [1] * 2
    assert encoding.ids == [WORDS.index(token) for token in encoding.tokens]


def test_a_cased_vocabulary_keeps_its_case(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path, do_lower_case=False))
    assert tokenizer.encode("Cafe cafe", add_special_tokens=False).tokens == ["Cafe", "cafe"]


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_ids_equal_those_of_transformers(tmp_path, lowercase):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra: pip install 'bertfast[hf]'")
    folder = folder_with(tmp_path, do_lower_case=lowercase, tokenizer_class="BertTokenizer")
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in (TEXT, "", "  ", "walking" * 30, "Cafe\tcafés\u00a0the."):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_a_tokenizer_file_comes_first_and_neither_pads_nor_truncates(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("not read")
    assert len(load_tokenizer(tmp_path).encode("the the the the").ids) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe\x00", b"[1, 2]"])
def test_a_broken_tokenizer_file_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BertfastError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "cannot be read"), (b"the\ncafe\n", r"has no \[PAD\]"), (b"", r"has no \[PAD\]")],
)
def test_a_broken_vocabulary_is_one_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(BertfastError, match=message):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(BertfastError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(BertfastError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_beyond_the_models_vocabulary_does_not_fit(tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path))
    check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS)))
    with pytest.raises(BertfastError, match="ids up to 13 and the model has 13 word embeddings"):
        check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS) - 1))
    tokenizer.add_tokens(["[NEW]"])
    with pytest.raises(BertfastError, match="ids up to 14"):
        check_tokenizer_fits(tokenizer, BertConfig(vocab_size=len(WORDS)))
