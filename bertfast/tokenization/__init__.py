"""Tokenizers: read from Hugging Face's folders, trained on text, saved, and how they frame text."""

from .build import byte_level_bpe_tokenizer, wordpiece_tokenizer
from .load import check_tokenizer_fits, load_tokenizer
from .save import TOKENIZER_FILES, save_tokenizer
from .special import MPNET_TOKENS, ROBERTA_TOKENS, SPECIAL_TOKENS, SpecialIds
from .train import train_byte_level_bpe, train_unigram, train_wordpiece

__all__ = [
    "MPNET_TOKENS",
    "ROBERTA_TOKENS",
    "SPECIAL_TOKENS",
    "TOKENIZER_FILES",
    "SpecialIds",
    "byte_level_bpe_tokenizer",
    "check_tokenizer_fits",
    "load_tokenizer",
    "save_tokenizer",
    "train_byte_level_bpe",
    "train_unigram",
    "train_wordpiece",
    "wordpiece_tokenizer",
]
