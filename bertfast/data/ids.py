"""Text to token ids, for a corpus: the same ids as the tokenizer's own, sooner where words come
again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MOST_WORDS = 1 << 20  # that are remembered
LONGEST_WORD = 64
# BERT's pre-tokenizer cuts these at spaces and around each sign, its normalizer does no more to
# them than lower case. What holds another character goes to the tokenizer itself.
PLAIN = re.compile(r"[ -~\u2018\u2019\u201c\u201d\u2013\u2014\u2026]*")
WORD = re.compile(r"[A-Za-z0-9]+|[^ A-Za-z0-9]")
END = "\n"  # of a text, among words


class _Remembered(dict[str, tuple[int, ...]]):
    """The ids of words; an unknown one is asked for. A text's end is -1."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__({END: (-1,)})
        self.tokenizer = tokenizer

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self.tokenizer.encode(word, add_special_tokens=False).ids)
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
                self[END] = (-1,)
            self[word] = ids
        return ids


class IdsOfText:
    """Token ids of texts, without special tokens.

    Args:
        tokenizer: whose ids they are, one for one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        described = json.loads(tokenizer.to_str())
        added = [token["content"] for token in described.get("added_tokens", [])]
        kinds = [
            (described.get(part) or {}).get("type")
            for part in ("normalizer", "pre_tokenizer", "model")
        ]
        # An added token is found before words are cut, and one that is normalized in lower case.
        by_words = (
            kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
            and described.get("truncation") is None
            and not any(token["normalized"] for token in described.get("added_tokens", []))
        )
        self.words = _Remembered(tokenizer) if by_words else None
        self.added = re.compile("|".join(map(re.escape, added))) if added else None

    def __call__(
        self, texts: Sequence[str], dtype: type = np.int32
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """(tokens,) ids of the texts one after another, and (texts,) how many each has."""
        if self.words is None:
            encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            lists = [encoding.ids for encoding in encoded]
            counts = np.fromiter(map(len, lists), np.int64, len(lists))
            return np.fromiter(chain.from_iterable(lists), dtype, int(counts.sum())), counts
        words: list[str] = []
        for text in texts:
            if PLAIN.fullmatch(text) and not (self.added and self.added.search(text)):
                words += WORD.findall(text)
            else:
                words.append(text)
            words.append(END)
        # The memory may be emptied on the way, and then looks a text's end up again.
        found = list(map(self.words.__getitem__, words))
        flat = np.fromiter(chain.from_iterable(found), np.int64)
        ends = np.flatnonzero(flat < 0)
        counts = np.diff(ends, prepend=-1) - 1
        return flat[flat >= 0].astype(dtype), counts
