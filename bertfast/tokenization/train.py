"""Learns a tokenizer's vocabulary from text; a rerun learns the same.

Texts that can be read again, as a list or an object that opens its files anew, are never held in
memory whole. What is held is each word that they have, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import NFKC, NFKD, Lowercase, Nmt, Replace, Strip, StripAccents
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Pieces
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from bertfast.errors import BertfastError

from .build import bert_template, byte_level_bpe_tokenizer, wordpiece_tokenizer
from .special import MPNET_TOKENS, ROBERTA_TOKENS, SPECIAL_TOKENS

SCORE_DIGITS = 4  # of a Unigram's log probabilities


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, lowercase: bool = True, mpnet: bool = False
) -> Tokenizer:
    """BERT's tokenizer with a vocabulary learned from ``texts``; [PAD] [UNK] [CLS] [SEP] [MASK] are
    0 to 4. Or MPNet's, framed as RoBERTa's; <s> <pad> </s> [UNK] <mask> are 0 to 4.

    Raises:
        BertfastError: the size is too small for the characters that the texts hold, or there is no
            text.
    """
    _require_size(vocab_size)
    texts = _Texts(texts)
    # Continuation characters are numbered as a hash table yields them, and ties between merges go
    # by number. A first run without merges finds these characters. The second one gets them in
    # order, so that a rerun learns the same vocabulary.
    names = MPNET_TOKENS if mpnet else SPECIAL_TOKENS
    pad, unk, cls, sep, mask = names
    first = [cls, pad, sep, unk, mask] if mpnet else list(names)
    draft = wordpiece_tokenizer(
        {token: index for index, token in enumerate(first)},
        lowercase,
        names=names,
        as_roberta=mpnet,
    )
    alphabet = _train(draft, texts, len(first) + 1, first)
    if len(alphabet) == len(SPECIAL_TOKENS):
        raise BertfastError("there is no text to learn a vocabulary from")
    _require_characters(vocab_size, len(alphabet))
    continuations = sorted(word for word in alphabet if word.startswith("##") and len(word) == 3)
    vocabulary = _train(draft, texts, vocab_size, [*first, *continuations])
    return wordpiece_tokenizer(vocabulary, lowercase, names=names, as_roberta=mpnet)


def _train(draft: Tokenizer, texts: _Texts, vocab_size: int, first: list[str]) -> dict[str, int]:
    """The vocabulary that ``draft``, a WordPiece, learns; it starts with ``first``."""
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        show_progress=False,
        continuing_subword_prefix="##",
    )
    draft.train_from_iterator(texts, trainer)
    return draft.get_vocab(with_added_tokens=False)


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """RoBERTa's tokenizer with merges learned from ``texts``; <s> <pad> </s> <unk> <mask> are 0 to
    4, the 256 bytes come next.

    Raises:
        BertfastError: the size is too small for the bytes, or there is no text.
    """
    pad, unk, cls, sep, mask = ROBERTA_TOKENS
    names = (
        cls,
        pad,
        sep,
        unk,
        mask,
    )  # their order in RoBERTa's vocabulary, but that the mask comes last there
    alphabet = sorted(ByteLevel.alphabet())
    _require_size(vocab_size)
    _require_characters(vocab_size, len(names) + len(alphabet), "256 bytes and 5 special tokens")
    texts = _require_text(_Texts(texts))
    draft = Tokenizer(BPE())
    draft.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(names),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer)
    model = json.loads(draft.to_str())["model"]
    return byte_level_bpe_tokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]])


def train_unigram(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A Unigram tokenizer as ALBERT's and DeBERTa v3's, learned from ``texts``; [PAD] [UNK] [CLS]
    [SEP] [MASK] are 0 to 4.

    Kudo, "Subword Regularization", section 3.2. Text is cleaned as SentencePiece does, by NFKC;
    lower case goes with the loss of accents.

    Raises:
        BertfastError: the size is too small for the characters that the texts hold, or there is no
            text.
    """
    _require_size(vocab_size)
    tokenizer = Tokenizer(Unigram())
    fold = [NFKD(), StripAccents(), Lowercase()] if lowercase else []
    tokenizer.normalizer = Normalizers([Nmt(), *fold, NFKC(), Replace(Regex(r"\s+"), " "), Strip()])
    # No piece has both letters and punctuation, as in the published vocabularies.
    tokenizer.pre_tokenizer = Pieces([Metaspace(), Split(Regex(r"▁?\p{P}"), "isolated")])
    tokenizer.decoder = MetaspaceDecoder()
    texts = _require_text(_Texts(texts, tokenizer.normalizer.normalize_str))
    characters = {"▁", *(character for text in texts for character in set(text))} - {" "}
    _require_characters(vocab_size, len(SPECIAL_TOKENS) + len(characters))
    trainer = UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token="[UNK]",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = _in_order(json.loads(tokenizer.to_str())["model"]["vocab"])
    tokenizer.model = Unigram(pieces, unk_id=SPECIAL_TOKENS.index("[UNK]"))
    *others, mask = SPECIAL_TOKENS
    tokenizer.add_special_tokens(
        [*others, AddedToken(mask, lstrip=True, normalized=False, special=True)]
    )
    tokenizer.post_processor = bert_template("[CLS]", "[SEP]", tokenizer.get_vocab())
    return tokenizer


def _in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """A trained Unigram's pieces with scores that a rerun learns too.

    The trainer sums in a hash table's order, so that scores differ in their last bits. Characters
    that are no kept piece get the lowest scores. Those are a ten-thousandth apart, in that order
    too. Scores are rounded here, and single characters near the lowest one all get that.
    """
    head, rest = pieces[: len(SPECIAL_TOKENS)], pieces[len(SPECIAL_TOKENS) :]
    lowest = min(score for _, score in rest)
    reach = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in rest)
    fixed = [
        (piece, round(lowest if len(piece) == 1 and score <= reach else score, SCORE_DIGITS))
        for piece, score in rest
    ]
    return [
        *((piece, 0.0) for piece, _ in head),
        *sorted(fixed, key=lambda item: (-item[1], item[0])),
    ]


def _require_size(vocab_size: int) -> None:
    if vocab_size <= len(SPECIAL_TOKENS):
        raise BertfastError(
            f"vocab-size is {vocab_size}; it must be above {len(SPECIAL_TOKENS)}, "
            "the special tokens"
        )


def _require_characters(
    vocab_size: int, needed: int, what: str = "the text's characters alone"
) -> None:
    if needed > vocab_size:
        raise BertfastError(f"vocab-size is {vocab_size} and {what} need {needed}; raise it")


class _Texts:
    """Texts with something on them, to be read more than once.

    Args:
        texts: an iterator is read whole.
        change: what is done to each first.
    """

    def __init__(self, texts: Iterable[str], change: Callable[[str], str] = str) -> None:
        self.texts = list(texts) if isinstance(texts, Iterator) else texts
        self.change = change

    def __iter__(self) -> Iterator[str]:
        return (text for text in map(self.change, self.texts) if text.strip())


def _require_text(texts: _Texts) -> _Texts:
    if next(iter(texts), None) is None:
        raise BertfastError("there is no text to learn a vocabulary from")
    return texts
