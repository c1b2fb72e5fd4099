"""WordPiece: trained on text, and saved as Hugging Face's folders are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.trainers import WordPieceTrainer

from bertfast.errors import BertfastError
from bertfast.hub import make_folder, write_atomically
from bertfast.hub.tokenizer import SPECIAL_TOKENS, wordpiece_tokenizer


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """BERT's tokenizer with a vocabulary learned from ``texts``; [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4.

    Raises:
        BertfastError: the size is too small for the characters that the texts hold, or there is no text.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise BertfastError(f"vocab-size is {vocab_size}; it must be above {len(SPECIAL_TOKENS)}, the special tokens")
    texts = list(texts)
    # Continuation characters are numbered as a hash table yields them, and ties between merges go by number: a first run without
    # merges finds these characters, the second one gets them in order, so that a rerun learns the same vocabulary.
    alphabet = _train(texts, len(SPECIAL_TOKENS) + 1, [], lowercase)
    if len(alphabet) == len(SPECIAL_TOKENS):
        raise BertfastError("there is no text to learn a vocabulary from")
    if len(alphabet) > vocab_size:
        raise BertfastError(
            f"vocab-size is {vocab_size} and the text's characters alone need {len(alphabet)}; raise it"
        )
    continuations = sorted(word for word in alphabet if word.startswith("##") and len(word) == 3)
    return wordpiece_tokenizer(_train(texts, vocab_size, continuations, lowercase), lowercase)


def _train(texts: list[str], vocab_size: int, first: list[str], lowercase: bool) -> dict[str, int]:
    draft = wordpiece_tokenizer({token: index for index, token in enumerate(SPECIAL_TOKENS)}, lowercase)
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *first],
        show_progress=False,
        continuing_subword_prefix="##",
    )
    draft.train_from_iterator(texts, trainer)
    return draft.get_vocab(with_added_tokens=False)


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, model_max_length: int = 512) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt, which `transformers` loads.

    Raises:
        BertfastError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    lowercase = getattr(tokenizer.normalizer, "lowercase", True)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "model_max_length": model_max_length,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        **names,
    }
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(names, indent=2),
        "vocab.txt": "\n".join(word for word, _ in vocabulary),
    }
    for name, text in files.items():
        write_atomically(folder / name, lambda path, text=text: path.write_text(text + "\n", encoding="utf-8"))  # type: ignore[misc]


class SpecialIds:
    """The ids of a BERT-like tokenizer's special tokens.

    Raises:
        BertfastError: one is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        missing = [token for token, index in zip(SPECIAL_TOKENS, ids, strict=True) if index is None]
        if missing:
            raise BertfastError(f"the tokenizer has no {', '.join(missing)}; a BERT tokenizer is wanted")
        self.all: tuple[int, ...] = tuple(index for index in ids if index is not None)
        self.pad, self.unk, self.cls, self.sep, self.mask = self.all
