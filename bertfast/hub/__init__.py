"""Hugging Face folders in and out."""

from .checkpoint import (
    file_sha256,
    load,
    load_config,
    load_weights,
    make_folder,
    read_weights,
    save_pretrained,
    write_atomically,
)
from .tokenizer import check_tokenizer_fits, load_tokenizer

__all__ = [
    "check_tokenizer_fits",
    "file_sha256",
    "load",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "make_folder",
    "read_weights",
    "save_pretrained",
    "write_atomically",
]
