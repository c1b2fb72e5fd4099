"""The likeliest words for the masks of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bertfast.data.tokenizer import SpecialIds
from bertfast.errors import BertfastError
from bertfast.hub import check_tokenizer_fits, load, load_tokenizer
from bertfast.model.models import MaskedLMModel
from bertfast.packed import PackedBatch


@dataclass(frozen=True)
class Filler:
    """A word for a mask, its probability, and the text with it filled in."""

    word: str
    probability: float
    text: str


class MaskFiller:
    """A masked-LM model with its tokenizer.

    Raises:
        BertfastError: the folder cannot be read, or its model has no masked-LM head.
    """

    def __init__(self, folder: str | Path) -> None:
        model = load(folder)
        if not isinstance(model, MaskedLMModel):
            raise BertfastError(
                f"{folder}: is a {type(model).__name__}, which has no masked-LM head to fill a mask with"
            )
        self.model = model
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(self.tokenizer, model.config, f"{folder}: the tokenizer")
        self.special = SpecialIds(self.tokenizer)

    @torch.no_grad()
    def fill(self, text: str, top: int = 5) -> tuple[list[list[Filler]], bool]:
        """For each [MASK] its ``top`` likeliest words, and whether the text was cut at the model's positions.

        Raises:
            BertfastError: the text has no [MASK], or none before the cut; or ``top`` is out of range.
        """
        if not 1 <= top <= self.model.config.vocab_size:
            raise BertfastError(f"top is {top}; it must be from 1 to {self.model.config.vocab_size}")
        if "[MASK]" not in text:
            raise BertfastError("the text has no [MASK] to fill; write [MASK] where a word is to go")
        limit = self.model.config.max_length
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        truncated = len(ids) > limit - 2
        ids = [self.special.cls, *ids[: limit - 2], self.special.sep]
        places = [place for place, index in enumerate(ids) if index == self.special.mask]
        if not places:
            raise BertfastError(f"every [MASK] is beyond the model's {limit} positions; shorten the text")
        batch = PackedBatch.from_sequences([ids])
        logits = self.model.word_logits(self.model.base(batch).last_hidden_state[places])
        values, words = logits.float().softmax(-1).topk(top)
        result = []
        for place, probabilities, candidates in zip(places, values.tolist(), words.tolist(), strict=True):
            fillers = []
            for probability, word in zip(probabilities, candidates, strict=True):
                # A special token is shown by its name, so that it is not lost from the text.
                filled = [*ids[1:place], word, *ids[place + 1 : -1]]
                shown = self.tokenizer.decode(filled, skip_special_tokens=False)
                fillers.append(Filler(str(self.tokenizer.id_to_token(word)), probability, shown))
            result.append(fillers)
        return result, truncated
