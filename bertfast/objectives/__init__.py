"""What to hide and what to predict."""

from .mlm import MASK_RATE, mask_tokens, most_masked
from .nsp import Spans, document_spans, sentence_pairs
from .registry import OBJECTIVES, Objective, default_objective, register_objective
from .sop import ordered_pairs

__all__ = [
    "MASK_RATE",
    "OBJECTIVES",
    "Objective",
    "Spans",
    "default_objective",
    "document_spans",
    "mask_tokens",
    "most_masked",
    "ordered_pairs",
    "register_objective",
    "sentence_pairs",
]
