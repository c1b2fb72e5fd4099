"""Tokenizers: trained on text, saved as Hugging Face's folders are, and how they frame a sequence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import (
    NFKC,
    NFKD,
    BertNormalizer,
    Lowercase,
    Nmt,
    Replace,
    Strip,
    StripAccents,
)
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Pieces
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from bertfast.errors import BertfastError
from bertfast.files import make_folder, write_text
from bertfast.hub.tokenizer import (
    MPNET_TOKENS,
    ROBERTA_TOKENS,
    ROLES,
    SPECIAL_TOKENS,
    bert_template,
    byte_level_bpe_tokenizer,
    special_tokens,
    wordpiece_tokenizer,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
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
    texts = list(texts)
    # Continuation characters are numbered as a hash table yields them, and ties between merges go
    # by number: a first run without merges finds these characters, the second one gets them in
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


def _train(draft: Tokenizer, texts: list[str], vocab_size: int, first: list[str]) -> dict[str, int]:
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
    texts = _require_text(texts)
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
    texts = _require_text(tokenizer.normalizer.normalize_str(text) for text in texts)
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

    The trainer sums in a hash table's order, so that scores differ in their last bits, and
    characters which no kept piece is get the lowest scores, a ten-thousandth apart, in that order
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
            f"vocab-size is {vocab_size}; it must be above {len(SPECIAL_TOKENS)}, the special tokens"
        )


def _require_characters(
    vocab_size: int, needed: int, what: str = "the text's characters alone"
) -> None:
    if needed > vocab_size:
        raise BertfastError(f"vocab-size is {vocab_size} and {what} need {needed}; raise it")


def _require_text(texts: Iterable[str]) -> list[str]:
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise BertfastError("there is no text to learn a vocabulary from")
    return texts


def save_tokenizer(
    tokenizer: Tokenizer,
    folder: str | Path,
    model_max_length: int = 512,
    special: SpecialIds | None = None,
    segments: bool = True,
) -> None:
    """Writes what `transformers` loads to the same ids: tokenizer.json, tokenizer_config.json,
    special_tokens_map.json and the kind's own files.

    BERT's kind is written as BertTokenizer and MPNet's as MPNetTokenizer, with vocab.txt, RoBERTa's
    as RobertaTokenizer, with vocab.json and merges.txt. Every other one is a PreTrainedTokenizerFast, which takes
    tokenizer.json as it stands: the members' own classes clean text each in their way, and not
    alike in 4.x and 5.x.

    Args:
        tokenizer: to be saved.
        folder: made if need be.
        model_max_length: tokens of an input at most.
        special: its special tokens, where their names came with it.
        segments: False for a model without segment embeddings, whose inputs then have no
            token_type_ids.

    Raises:
        BertfastError: the folder cannot be written to, or the tokenizer lacks a special token.
    """
    folder = Path(folder)
    make_folder(folder)
    special = special or SpecialIds(tokenizer)
    names = {
        role: tokenizer.id_to_token(index) for role, index in zip(ROLES, special.all, strict=True)
    }
    kind, own = _own_files(tokenizer, special)
    settings = {**kind, "model_max_length": model_max_length, **names}
    if not segments:
        settings["model_input_names"] = [name for name in INPUTS if name != "token_type_ids"]
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(names, indent=2),
        **own,
    }
    for name, text in files.items():
        write_text(folder / name, text + "\n")


def _own_files(tokenizer: Tokenizer, special: SpecialIds) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that say the class, and the files that the class had before there was
    tokenizer.json.
    """
    normalizer, pieces = tokenizer.normalizer, tokenizer.pre_tokenizer
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    frames = (special.single, special.pair)
    wordpieces = {
        bert_frames(special.cls, special.sep): "BertTokenizer",
        roberta_frames(special.cls, special.sep): "MPNetTokenizer",
    }
    if (
        isinstance(tokenizer.model, WordPiece)
        and isinstance(normalizer, BertNormalizer)
        and isinstance(pieces, BertPreTokenizer)
        and frames in wordpieces
    ):
        settings = {
            "tokenizer_class": wordpieces[frames],
            "do_lower_case": normalizer.lowercase,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
            "strip_accents": normalizer.strip_accents,
        }
        return settings, {"vocab.txt": "\n".join(vocabulary)}
    if (
        isinstance(tokenizer.model, BPE)
        and normalizer is None
        and isinstance(pieces, ByteLevel)
        and frames == roberta_frames(special.cls, special.sep)
    ):
        bos, eos = tokenizer.id_to_token(special.cls), tokenizer.id_to_token(special.sep)
        settings = {
            "tokenizer_class": "RobertaTokenizer",
            "add_prefix_space": pieces.add_prefix_space,
            "bos_token": bos,
            "eos_token": eos,
        }
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        return settings, {
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "\n".join(lines),
        }
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS}, {}


@dataclass(frozen=True)
class Frame:
    """What stands around the token sequences of an input.

    Attributes:
        ids: special tokens in order, -1 where a sequence goes.
        segments: of each of these.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...]

    @property
    def added(self) -> int:
        """How many special tokens there are."""
        return sum(index >= 0 for index in self.ids)

    def around(
        self, *sequences: Sequence | NDArray, special: Sequence | None = None
    ) -> list[Sequence | NDArray]:
        """The parts of the input of these sequences, one after the other; ``special`` in place of
        each special token if it is given.
        """
        left = iter(sequences)
        return [next(left) if index < 0 else special or [index] for index in self.ids]

    def segment_ids(self, *lengths: int) -> NDArray[np.int64]:
        """(tokens,) of the input of sequences of these lengths."""
        left = iter(lengths)
        return np.repeat(
            np.asarray(self.segments, np.int64),
            [1 if index >= 0 else next(left) for index in self.ids],
        )


def bert_frames(cls: int, sep: int) -> tuple[Frame, Frame]:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] with segment 1 from B on."""
    return Frame((cls, -1, sep), (0, 0, 0)), Frame((cls, -1, sep, -1, sep), (0, 0, 0, 1, 1))


def roberta_frames(cls: int, sep: int) -> tuple[Frame, Frame]:
    """<s> A </s>, and <s> A </s></s> B </s>, all of one segment."""
    return Frame((cls, -1, sep), (0, 0, 0)), Frame((cls, -1, sep, sep, -1, sep), (0, 0, 0, 0, 0, 0))


class SpecialIds:
    """The ids of an encoder's special tokens, and how its tokenizer frames one sequence and a pair.

    [CLS] and [SEP] are the first and the last token of what the tokenizer makes of a sequence,
    whatever their names (<s> and </s>). A tokenizer that adds nothing gets BERT's frames.

    Attributes:
        pad, unk, cls, sep, mask: the ids; ``all`` has them in this order.
        single, pair: the frames.

    Args:
        tokenizer: of any member.
        folder: that it came from, if its files are to name the tokens.

    Raises:
        BertfastError: one is missing.
    """

    def __init__(self, tokenizer: Tokenizer, folder: str | Path | None = None) -> None:
        ids = special_tokens(tokenizer, folder)
        text = str(
            tokenizer.id_to_token(ids["mask_token"] or 0)
        )  # a token that every tokenizer here has whole
        self.single, self.pair = (
            _probe(tokenizer.encode(text)),
            _probe(tokenizer.encode(text, text)),
        )
        if self.single.added > 1:
            ids["cls_token"], ids["sep_token"] = self.single.ids[0], self.single.ids[-1]
        missing = [
            (SPECIAL_TOKENS[place], ROBERTA_TOKENS[place])
            for place, role in enumerate(ROLES)
            if ids[role] is None
        ]
        if missing:
            brackets, angles = (", ".join(names) for names in zip(*missing, strict=True))
            raise BertfastError(
                f"the tokenizer has no {brackets} (nor {angles}); an encoder's tokenizer is wanted"
            )
        self.all: tuple[int, ...] = tuple(index for index in ids.values() if index is not None)
        self.pad, self.unk, self.cls, self.sep, self.mask = self.all
        if not self.single.added:
            self.single, self.pair = bert_frames(self.cls, self.sep)


def _probe(encoding: Encoding) -> Frame:
    """What the post-processor put around the sequences."""
    slots, before = [], None
    for index, segment, sequence in zip(
        encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
    ):
        if sequence is None or sequence != before:
            slots.append((index if sequence is None else -1, segment))
        before = sequence
    return Frame(tuple(index for index, _ in slots), tuple(segment for _, segment in slots))
