"""Saves a tokenizer as Hugging Face's folders have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from bertfast.files import make_folder, write_text

from .special import ROLES, SpecialIds, bert_frames, roberta_frames

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


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
    as RobertaTokenizer, with vocab.json and merges.txt. Every other one is a
    PreTrainedTokenizerFast, which takes tokenizer.json as it stands. The members' own classes clean
    text each in their way, and not alike in 4.x and 5.x.

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
