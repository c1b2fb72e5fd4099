"""The token store holds the corpus, is made once, and is never half there."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bertfast import BertfastError
from bertfast.data.store import TokenStore
from bertfast.tokenization import train_byte_level_bpe, train_unigram, train_wordpiece

TEXT = "One fox. Two dens!\nThree dogs\n\nFour foxes? Five.\n"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path, train_wordpiece([TEXT], 60)


def test_sentences_and_documents_hold_the_text(corpus, tmp_path):
    path, tokenizer = corpus
    store = TokenStore.build([path], tokenizer, tmp_path / "store")
    assert store.ids.dtype == np.uint16
    sentences = [
        store.ids[start:end].tolist()
        for start, end in zip(store.sentences[:-1], store.sentences[1:], strict=True)
    ]
    texts = ["One fox.", "Two dens!", "Three dogs", "Four foxes?", "Five."]
    assert sentences == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert store.documents.tolist() == [0, 3, 5]


@pytest.mark.parametrize("train", [train_byte_level_bpe, train_wordpiece, train_unigram])
def test_the_sentences_of_a_document_make_its_text(train, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    tokenizer = train([TEXT], 300)
    store = TokenStore.build([tmp_path / "a.txt"], tokenizer, tmp_path / "store")
    bounds = store.sentences[store.documents]
    texts = ["One fox. Two dens! Three dogs", "Four foxes? Five."]
    for text, start, end in zip(texts, bounds[:-1], bounds[1:], strict=True):
        assert store.ids[start:end].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_ids_beyond_16_bits_are_kept_whole(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 3, "b": 1 << 16}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    assert TokenStore.build([tmp_path / "a.txt"], tokenizer, tmp_path / "store").ids.tolist() == [
        3,
        1 << 16,
    ]


def test_a_store_is_made_again_only_when_its_sources_change(corpus, tmp_path):
    path, tokenizer = corpus
    calls = []
    for _ in range(2):
        TokenStore.build([path], tokenizer, tmp_path / "store", on_progress=calls.append)
    assert len(calls) == 1
    path.write_text(TEXT + "\nSix.\n")
    assert (
        TokenStore.build(
            [path], tokenizer, tmp_path / "store", on_progress=calls.append
        ).num_documents
        == 3
    )
    assert len(calls) == 2


def test_many_documents_are_tokenised_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("bertfast.data.store.LINES_AT_A_TIME", 7)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"fox {n}\nden {n}" for n in range(50)))
    store = TokenStore.build(
        [path], train_wordpiece(["fox den 0123456789"], 60), tmp_path / "store"
    )
    assert (store.num_documents, len(store.sentences) - 1) == (50, 100)


@pytest.mark.parametrize("victim", ["ids.bin", "sentences.npy", "documents.npy"])
def test_a_store_cut_short_is_refused(corpus, tmp_path, victim):
    path, tokenizer = corpus
    TokenStore.build([path], tokenizer, tmp_path / "store")
    file = tmp_path / "store" / victim
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BertfastError, match="delete it to have it made again"):
        TokenStore.open(tmp_path / "store")


def test_a_flipped_bit_has_the_store_made_again(corpus, tmp_path, capsys):
    path, tokenizer = corpus
    whole = TokenStore.build([path], tokenizer, tmp_path / "store")
    ids, sentences, documents = (np.array(x) for x in (whole.ids, whole.sentences, whole.documents))
    draw = np.random.default_rng(0)
    for file in sorted((tmp_path / "store").iterdir()):
        for _ in range(12):
            content = bytearray(file.read_bytes())
            content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
            file.write_bytes(content)
            capsys.readouterr()
            store = TokenStore.build([path], tokenizer, tmp_path / "store")
            assert store.digest == whole.digest
            for found, wanted in zip(
                (store.ids, store.sentences, store.documents),
                (ids, sentences, documents),
                strict=True,
            ):
                assert np.array_equal(found, wanted)
            if file.name != "origin.json":
                assert f"{file.name}: is damaged" in capsys.readouterr().err


def test_a_failure_leaves_no_half_store(corpus, tmp_path, monkeypatch):
    path, tokenizer = corpus

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(BertfastError, match="cannot be written .*No space left"):
        TokenStore.build([path], tokenizer, tmp_path / "store")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.txt"]
