"""What to hide and what to predict."""

from .mlm import mask_tokens, most_masked
from .nsp import Spans, document_spans, sentence_pairs
from .sop import ordered_pairs

__all__ = [
    "Spans",
    "document_spans",
    "mask_tokens",
    "most_masked",
    "ordered_pairs",
    "sentence_pairs",
]
