"""Live models of `transformers`, and the tokenizers of Hugging Face's folders."""

from .tokenizer import check_tokenizer_fits, load_tokenizer

__all__ = ["check_tokenizer_fits", "load_tokenizer"]
