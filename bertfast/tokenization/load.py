"""Reads a folder's tokenizer, and checks that it fits the model beside it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.files import VOCABULARY, check_file, read_text

from .build import byte_level_bpe_tokenizer, wordpiece_tokenizer
from .patterns import check_patterns
from .special import (
    ROBERTA_TOKENS,
    ROLES,
    SPECIAL_TOKENS,
    WORDPIECE_TOKENS,
    named_class,
    read_settings,
    special_names,
    tokenizer_class,
)

# A SentencePiece model does not say how its tokenizer cleans and frames text: the class that the
# file is named for does.
SENTENCEPIECE_FILES = {
    "spiece.model": "AlbertTokenizer",
    "spm.model": "DebertaV2Tokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
}
SENTENCEPIECE_CLASSES = (*SENTENCEPIECE_FILES.values(), "CamembertTokenizer")
# What a folder's tokenizer_config.json overrides in its tokenizer.json, as in `transformers`.
BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of any member's folder, the same ids as `transformers`.

    It comes from ``tokenizer.json``, or else from a member's own files. Those are BERT's
    ``vocab.txt``, RoBERTa's ``vocab.json`` and ``merges.txt``, or a SentencePiece model, which is
    read through `transformers`. BERT's is lower-casing, unless the folder's tokenizer_config.json
    says otherwise.

    Raises:
        BertfastError: the folder has none of these, the file cannot be read, or it is a
            SentencePiece model and the extra is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(
            f"{folder}: no such folder; a tokenizer is a folder with tokenizer.json or vocab.txt"
        )
    settings = read_settings(folder)
    try:
        tokenizer = _read(folder, settings, special_names(folder))
        _add_tokens(tokenizer, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BertfastError(
            f"{folder}: its tokenizer_config.json has a setting that cannot be used ({error})"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    check_patterns(tokenizer, folder)
    return tokenizer


def _read(folder: Path, settings: dict[str, Any], names: dict[str, str]) -> Tokenizer:
    """From the first kind of file that the folder has."""
    if os.path.lexists(folder / "tokenizer.json"):
        return _read_tokenizer_json(folder / "tokenizer.json", settings)
    if os.path.lexists(folder / "vocab.txt"):
        return _read_wordpiece(folder / "vocab.txt", settings, names, tokenizer_class(folder))
    if os.path.lexists(folder / "vocab.json"):
        return _read_byte_level_bpe(folder, settings, names)
    for name in SENTENCEPIECE_FILES:
        if os.path.lexists(folder / name):
            return _read_sentencepiece(folder / name, tokenizer_class(folder))
    raise BertfastError(
        f"{folder}: holds neither tokenizer.json nor vocab.txt, vocab.json or a SentencePiece "
        f"model ({', '.join(SENTENCEPIECE_FILES)})"
    )


def _read_tokenizer_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    text = read_text(path, VOCABULARY)
    try:
        tokenizer = Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exceptions, and panics that are none
        raise BertfastError(f"{path}: cannot be read as a tokenizer ({error})") from error
    if named_class(settings) not in ("PreTrainedTokenizer", "TokenizersBackend"):
        if isinstance(tokenizer.normalizer, BertNormalizer):
            for setting, attribute in BERT_SETTINGS.items():
                if setting in settings:
                    setattr(tokenizer.normalizer, attribute, settings[setting])
        if isinstance(tokenizer.pre_tokenizer, ByteLevel) and "add_prefix_space" in settings:
            tokenizer.pre_tokenizer.add_prefix_space = bool(settings["add_prefix_space"])
    return tokenizer


def _read_wordpiece(
    path: Path, settings: dict[str, Any], names: dict[str, str], kind: str | None
) -> Tokenizer:
    words = read_text(path, VOCABULARY).split("\n")
    words = words[:-1] if words and not words[-1] else words
    tokenizer = wordpiece_tokenizer(
        {word: index for index, word in enumerate(words)},
        bool(settings.get("do_lower_case", True)),
        str(path),
        tuple(names.get(role, token) for role, token in zip(ROLES, SPECIAL_TOKENS, strict=True)),
        as_roberta=kind in WORDPIECE_TOKENS,
    )
    tokenizer.normalizer.strip_accents = settings.get("strip_accents")
    tokenizer.normalizer.handle_chinese_chars = bool(settings.get("tokenize_chinese_chars", True))
    return tokenizer


def _read_byte_level_bpe(
    folder: Path, settings: dict[str, Any], names: dict[str, str]
) -> Tokenizer:
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not os.path.lexists(merges):
        raise BertfastError(
            f"{folder}: holds vocab.json without merges.txt; a byte-level BPE is both"
        )
    for path in (vocabulary, merges):
        _check_size(path)
    try:
        words, pairs = BPE.read_file(str(vocabulary), str(merges))
        return byte_level_bpe_tokenizer(
            words,
            pairs,
            str(vocabulary),
            tuple(
                names.get(role, token) for role, token in zip(ROLES, ROBERTA_TOKENS, strict=True)
            ),
            bool(settings.get("add_prefix_space", False)),
        )
    except BertfastError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise BertfastError(
            f"{folder}: vocab.json and merges.txt cannot be read as a BPE ({error})"
        ) from error


def _read_sentencepiece(path: Path, kind: str | None) -> Tokenizer:
    missing = [
        name
        for name in ("transformers", "sentencepiece", "google.protobuf")
        if not _installed(name)
    ]
    if missing:
        raise BertfastError(
            f"{path}: a SentencePiece model is read through transformers, and {', '.join(missing)} "
            "is not installed: pip install 'bertfast[hf]'"
        )
    import transformers

    _check_size(path)
    for file in path.parent.iterdir():  # any of which transformers may open
        if not file.is_dir() and file.suffix in (".json", ".model", ".jinja", ".txt"):
            _check_size(file)
    name = kind if kind in SENTENCEPIECE_CLASSES else SENTENCEPIECE_FILES[path.name]
    try:
        # 4.x converts in the class whose name ends in Fast; to 5.x the two names are one class.
        loaded = getattr(transformers, f"{name}Fast").from_pretrained(
            str(path.parent), local_files_only=True
        )
    except Exception as error:  # of the converter, of protobuf or of tokenizers
        reason = " ".join(str(error).split())[:200]
        raise BertfastError(
            f"{path}: cannot be read as the SentencePiece model of a {name} ({reason})"
        ) from error
    return loaded.backend_tokenizer


def _check_size(path: Path) -> None:
    size = check_file(path)
    if size > VOCABULARY:
        raise BertfastError(
            f"{path}: has {size:,} bytes; a file of this kind has at most {VOCABULARY:,}"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _add_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json lists beyond the vocabulary, where the ids come
    out as it says.
    """
    listed = settings.get("added_tokens_decoder")
    for index, token in (
        sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else ()
    ):
        if (
            tokenizer.token_to_id(token["content"]) is None
            and int(index) == tokenizer.get_vocab_size()
        ):
            flags = {
                name: bool(token.get(name))
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])


def check_tokenizer_fits(
    tokenizer: Tokenizer, config: EncoderConfig, source: str = "the tokenizer"
) -> None:
    """Raises BertfastError if the tokenizer can give an id that the model's word embeddings do not
    have.

    Says on standard error if a word of the tokenizer has the id that the model keeps for padding.
    That row is not trained, and a RoBERTa in `transformers` counts no position there. It is no
    error, since such a checkpoint still gives the numbers that it gives. Another special token may
    have that id, as in the published multilingual MiniLMs.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= config.vocab_size:
        raise BertfastError(
            f"{source} gives ids up to {largest} and the model has {config.vocab_size} word "
            "embeddings; use the tokenizer that the model was trained with"
        )
    word = tokenizer.id_to_token(config.pad_token_id) if config.pad_token_id is not None else None
    added = tokenizer.get_added_tokens_decoder()
    if (
        word is not None
        and config.pad_token_id not in added
        and word not in (*SPECIAL_TOKENS, *ROBERTA_TOKENS)
    ):
        print(
            f"bertfast: {source} gives {word!r} the id {config.pad_token_id}, "
            "which the model keeps for padding (pad_token_id); is it the model's own tokenizer?",
            file=sys.stderr,
        )
