"""The likeliest words for the masks of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bertfast.errors import BertfastError
from bertfast.model import load
from bertfast.model.models import MaskedLMModel
from bertfast.packed import PackedBatch
from bertfast.resolve import resolve
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer

from .precision import find_device, inference_dtype


class Blanks(NamedTuple):
    """A text with masks: its tokens, and the places of the masks among them.

    ``ids`` has the special tokens around. ``truncated`` says whether the text was cut.
    """

    tokens: list[int]
    places: list[int]
    ids: list[int]
    truncated: bool


class Likeliest(NamedTuple):
    """(masks, top) each: ids of words, the likeliest first, and their probabilities."""

    words: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Filler:
    """A word for a mask, its probability, and the text with it filled in."""

    word: str
    probability: float
    text: str


class MaskFiller:
    """A masked-LM model with its tokenizer.

    Args:
        model: a folder in Hugging Face's format, or a Hub id.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        BertfastError: the folder cannot be read, or its model has no masked-LM head.
    """

    def __init__(
        self, model: str | Path, *, device: str | None = None, precision: str = "fp32"
    ) -> None:
        self.device, dtype = find_device(device), inference_dtype(precision)
        folder = resolve(model).folder
        loaded = load(folder)
        if not isinstance(loaded, MaskedLMModel):
            raise BertfastError(
                f"{folder}: is a {type(loaded).__name__}, which has no masked-LM head to fill a "
                "mask with"
            )
        self.model = loaded.to(self.device, dtype)
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(self.tokenizer, loaded.config, f"{folder}: the tokenizer")
        self.special = SpecialIds(self.tokenizer, folder)

    def fill(self, text: str, top: int = 5) -> tuple[list[list[Filler]], bool]:
        """For each mask its ``top`` likeliest words, and whether the text was cut at the model's
        positions.

        A mask is the tokenizer's own mask token (<mask>), or [MASK].

        Raises:
            BertfastError: the text has no mask, or none before the cut; or ``top`` is out of range.
        """
        if not 1 <= top <= self.model.config.vocab_size:
            raise BertfastError(
                f"top is {top}; it must be from 1 to {self.model.config.vocab_size}"
            )
        blanks = self.blanks(text)
        return self.words(blanks, self.likeliest([blanks.ids], top)[0]), blanks.truncated

    def blanks(self, text: str) -> Blanks:
        """A text as the model reads it.

        Raises:
            BertfastError: the text has no mask, or none before the cut.
        """
        mask, frame = str(self.tokenizer.id_to_token(self.special.mask)), self.special.single
        text = text.replace("[MASK]", mask)
        if mask not in text:
            raise BertfastError(
                f"the text has no {mask} to fill; write {mask} where a word is to go"
            )
        limit = self.model.config.max_length
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        truncated = len(tokens) > limit - frame.added
        tokens = tokens[: limit - frame.added]
        places = [place for place, index in enumerate(tokens) if index == self.special.mask]
        if not places:
            raise BertfastError(
                f"every {mask} is beyond the model's {limit} positions; shorten the text"
            )
        ids = [index for part in frame.around(tokens) for index in part]
        return Blanks(tokens, places, ids, truncated)

    @torch.no_grad()
    def likeliest(self, rows: Sequence[Sequence[int]], top: int) -> list[Likeliest]:
        """The ``top`` likeliest words of each mask of each row of ids."""
        batch = PackedBatch.from_sequences(rows).to(self.device)
        hidden = self.model.base(batch).last_hidden_state[batch.input_ids == self.special.mask]
        values, words = self.model.word_logits(hidden).float().softmax(-1).topk(top)
        counts = [list(row).count(self.special.mask) for row in rows]
        parts = zip(words.cpu().split(counts), values.cpu().split(counts), strict=True)
        return [Likeliest(*(part.numpy() for part in both)) for both in parts]

    def words(self, blanks: Blanks, found: Likeliest) -> list[list[Filler]]:
        """The words for each mask, and the text with each of them."""
        result = []
        for place, words, values in zip(
            blanks.places, *(part.tolist() for part in found), strict=True
        ):
            fillers = []
            for word, probability in zip(words, values, strict=True):
                # A special token is shown by its name, so that it is not lost from the text.
                shown = self._decode([*blanks.tokens[:place], word, *blanks.tokens[place + 1 :]])
                name = self._decode([word]) or str(self.tokenizer.id_to_token(word))
                fillers.append(Filler(name, probability, shown))
            result.append(fillers)
        return result

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False)).strip()
