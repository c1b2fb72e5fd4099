"""Trained tokenizers: the same vocabulary each time, and a folder that `transformers` reads alike;
how they frame text.
"""

import json
import subprocess
import sys

import pytest
from tiny import run_cli
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from bertfast import BertfastError
from bertfast.tokenization import (
    SpecialIds,
    load_tokenizer,
    save_tokenizer,
    train_byte_level_bpe,
    train_unigram,
    train_wordpiece,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Café naïve — the fox's dens, 1234!",
    "quickly quicker quickest",
] * 3
TRAINERS = {
    "wordpiece": lambda texts=TEXTS, size=150: train_wordpiece(texts, size),
    "wordpiece-cased": lambda texts=TEXTS, size=150: train_wordpiece(texts, size, lowercase=False),
    "bpe": lambda texts=TEXTS, size=330: train_byte_level_bpe(texts, size),
    "unigram": lambda texts=TEXTS, size=90: train_unigram(texts, size),
    "unigram-cased": lambda texts=TEXTS, size=90: train_unigram(texts, size, lowercase=False),
}
HARD_TEXTS = (
    "The Café's fox — unseen wörds!",
    "",
    "  ",
    " a\tquick\n\nfox ",
    "\uff21\uff22\uff23 \ufb01ne 東京 😀 e\u0301\u200b\u00a0x",
    "``quoted'' text, 1234",
    "a [MASK] den and <mask> den",
    "[CLS] over </s>",
)
each = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)


@each
def test_special_tokens_come_first(train):
    tokenizer = train()
    assert sorted(SpecialIds(tokenizer).all) == [0, 1, 2, 3, 4]
    assert len(TEXTS) < tokenizer.get_vocab_size() <= 330
    assert len(tokenizer.encode("quickly quicker", add_special_tokens=False).ids) < len(
        "quickly quicker"
    )


@each
def test_a_rerun_learns_the_same_tokenizer(train):
    assert train().to_str() == train().to_str()


@pytest.mark.slow
def test_another_process_learns_the_same_scores():
    # A process of its own has its own hash keys; rare characters, many ties.
    script = "import sys, hashlib; from bertfast.tokenization import train_unigram; " + (
        "words = [a + b for a in 'abcdefgh' for b in 'ijklmnop']; texts = [' '.join(words), "
        "'é ß ø å 1 2 3 quick quicker'] * 4; print(hashlib.sha256(train_unigram(texts, "
        "60).to_str().encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in "ab"
    }
    assert len(printed) == 1


def test_lower_case_and_accents_go_unless_they_are_kept():
    assert "cafe" in "".join(
        train_wordpiece(TEXTS, 150).encode("CAFÉ", add_special_tokens=False).tokens
    ).replace("##", "")
    cased = train_wordpiece(TEXTS, 150, lowercase=False)
    assert (
        cased.encode("Café", add_special_tokens=False).ids
        != cased.encode("cafe", add_special_tokens=False).ids
    )


@each
def test_a_saved_tokenizer_comes_back(tmp_path, train):
    tokenizer = train()
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("kind", ["wordpiece", "wordpiece-cased", "bpe"])
def test_the_kinds_own_files_are_enough(tmp_path, kind):
    tokenizer = TRAINERS[kind]()
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    again = load_tokenizer(tmp_path)
    for text in HARD_TEXTS:
        assert again.encode(text, "dens").ids == tokenizer.encode(text, "dens").ids


@each
@pytest.mark.parametrize(
    "model_type", [None, "bert", "roberta", "albert", "deberta-v2", "modernbert"]
)
def test_transformers_reads_the_folder_alike(tmp_path, train, model_type):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    tokenizer = train()
    save_tokenizer(tokenizer, tmp_path, 64)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD_TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
        pair = theirs(text, "Brown dens", return_token_type_ids=True)
        assert pair["input_ids"] == tokenizer.encode(text, "Brown dens").ids
        assert pair["token_type_ids"] == tokenizer.encode(text, "Brown dens").type_ids
    special = SpecialIds(tokenizer)
    assert special.all == tuple(
        getattr(theirs, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")
    )
    assert len(theirs) == tokenizer.get_vocab_size()
    assert theirs.model_max_length == 64


@each
@pytest.mark.parametrize("segments", [True, False])
def test_transformers_gives_the_inputs_that_the_model_takes(tmp_path, train, segments):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    tokenizer = train()
    save_tokenizer(tokenizer, tmp_path, segments=segments)
    two_segments = segments and max(tokenizer.encode("a", "a").type_ids) > 0
    assert (
        "token_type_ids" in transformers.AutoTokenizer.from_pretrained(tmp_path)("a", "a")
    ) == two_segments


def test_unigram_text_is_cleaned_as_sentencepiece_does():
    uncased, cased = (
        train_unigram(["abc fine cafe ABC é"] * 5, 60, lowercase) for lowercase in (True, False)
    )
    assert (
        uncased.encode(" \uff21\uff22\uff23\u00a0\t\ufb01ne   café\n").ids
        == uncased.encode("abc fine cafe").ids
    )
    assert (
        cased.encode("\uff21\uff22\uff23 \ufb01ne").ids
        == cased.encode("ABC fine").ids
        != cased.encode("abc fine").ids
    )
    assert uncased.decode(uncased.encode("abc fine").ids) == "abc fine"


def test_no_unigram_piece_has_letters_and_punctuation():
    text = "the fox's den, the dog's den, dens, (dens) foxes, (foxes) dogs, (dogs)!"
    tokenizer = train_unigram([text] * 9, 100)
    pieces = [piece.removeprefix("▁") for piece in tokenizer.get_vocab() if piece[0] != "["]
    assert sum(len(piece) > 1 for piece in pieces) > 2
    assert all(piece.isalpha() or len(piece) < 2 for piece in pieces)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bytes_spell_what_was_never_seen():
    tokenizer = train_byte_level_bpe(TEXTS, 330)
    text = "Zürich 東京 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (TEXTS, 5, "vocab-size is 5; it must be above 5"),
        (TEXTS, -1, "vocab-size is -1"),
        (TEXTS, 20, r"vocab-size is 20 and .* need \d+; raise it"),
        ([], 300, "no text to learn"),
        (["  ", ""], 300, "no text to learn"),
    ],
)
def test_a_vocabulary_that_cannot_be_made_says_why(kind, texts, size, message):
    with pytest.raises(BertfastError, match=message):
        TRAINERS[kind](texts, size)


@pytest.mark.parametrize(
    "text", ["a", "a b", "\u0301x", "x" * 5000], ids=["letter", "letters", "accent", "long"]
)
def test_a_unigram_learns_from_next_to_nothing(text):
    assert 5 < train_unigram([text], 40).get_vocab_size() <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--type", "gpt"), "wordpiece, bpe, unigram"),
        (("--type", "bpe", "--vocab-size", 100), "256 bytes"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capfd, options, message):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    done = run_cli(
        monkeypatch,
        capfd,
        "tokenizer",
        "--data",
        tmp_path / "text.txt",
        "--out",
        tmp_path / "tok",
        *options,
    )
    assert done.code == 2
    assert len(done.errors) == 1
    assert message in done.errors[0]
    assert not (tmp_path / "tok").exists()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_command_trains_each_kind(tmp_path, monkeypatch, capfd, kind):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    done = run_cli(
        monkeypatch, capfd, "tokenizer", "--data", tmp_path / "text.txt", "--out", tmp_path / "tok",
        "--type", kind, "--vocab-size", 330,
    )  # fmt: skip
    assert done.code == 0
    assert load_tokenizer(tmp_path / "tok").to_str() == TRAINERS[kind](TEXTS, 330).to_str()


@each
def test_frames_are_what_the_tokenizer_makes(train):
    tokenizer = train()
    special = SpecialIds(tokenizer)
    a, b = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in ("the quick fox", "dens")
    )
    for frame, sequences, whole in (
        (special.single, (a,), tokenizer.encode("the quick fox")),
        (special.pair, (a, b), tokenizer.encode("the quick fox", "dens")),
    ):
        assert [index for part in frame.around(*sequences) for index in part] == whole.ids
        assert frame.segment_ids(*map(len, sequences)).tolist() == whole.type_ids
        assert frame.added == len(whole.ids) - sum(map(len, sequences))


def test_a_tokenizer_that_frames_nothing_gets_berts_frames():
    tokenizer = train_wordpiece(TEXTS, 120)
    wanted = SpecialIds(tokenizer)
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert (SpecialIds(tokenizer).single, SpecialIds(tokenizer).pair) == (
        wanted.single,
        wanted.pair,
    )


def test_the_folder_names_tokens_that_are_spelt_otherwise(tmp_path):
    words = {"<|pad|>": 0, "?": 1, "^": 2, "$": 3, "_": 4, "[MASK]": 5, "a": 6}
    names = {
        "pad_token": "<|pad|>",
        "unk_token": "?",
        "cls_token": "^",
        "sep_token": "$",
        "mask_token": {"content": "_"},
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({**names, "cls_token": "a"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "^"}))
    special = SpecialIds(tokenizer, tmp_path)
    assert special.all == (0, 1, 2, 3, 4)
    save_tokenizer(tokenizer, tmp_path / "saved", special=special)
    assert SpecialIds(load_tokenizer(tmp_path / "saved"), tmp_path / "saved").all == (0, 1, 2, 3, 4)


def test_a_tokenizer_without_special_tokens_is_refused():
    with pytest.raises(BertfastError, match=r"no \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        SpecialIds(Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
