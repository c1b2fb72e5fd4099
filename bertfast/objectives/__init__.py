"""What to hide and what to predict."""

from .mlm import mask_tokens, most_masked
from .nsp import Spans, document_spans, sentence_pairs

__all__ = ["Spans", "document_spans", "mask_tokens", "most_masked", "sentence_pairs"]
