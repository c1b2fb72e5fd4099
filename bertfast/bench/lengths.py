"""The batches that are measured: lengths of real paragraphs, and full-length sequences.

``wikitext_lengths.json`` holds how often each length occurs among the paragraphs of WikiText-2's
validation file, without its headings. Lengths count tokens of bert-base-uncased's vocabulary with
[CLS] and [SEP], and are cut at 512. It was made by

    python -m bertfast.bench.lengths valid.txt vocab.txt

PyTorch is loaded where a tensor is made.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HISTOGRAM = Path(__file__).resolve().parent / "wikitext_lengths.json"
LONGEST = 512
SEED = 20
# The reference point's lengths: 16 sequences of mean 48, padded to 128 by the peers.
REFERENCE_POINT = (128, 96, 84, 72, 60, 52, 48, 44, 40, 34, 28, 24, 20, 16, 12, 10)


@dataclass(frozen=True)
class Lengths:
    """A batch's sequence lengths under a name; peers pad them to the longest."""

    name: str
    values: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.values)

    @property
    def longest(self) -> int:
        return max(self.values)

    @property
    def padded(self) -> int:
        """Cells of the padded batch."""
        return len(self.values) * self.longest

    @property
    def fill(self) -> float:
        """Share of the padded batch's cells that hold a token."""
        return self.tokens / self.padded

    def pairs(self, window: int | None = None) -> int:
        """Pairs of tokens that attend to one another, where each sees so many to each side; None is
        all.
        """
        reaches = [length if window is None else min(window, length) for length in self.values]
        return sum(
            length * length - (length - reach) * (length - reach - 1) * (length > reach)
            for length, reach in zip(self.values, reaches, strict=True)
        )

    def cu_seqlens(self, device: str) -> Tensor:
        import torch

        return (
            torch.tensor([0, *self.values], dtype=torch.int32)
            .cumsum(0, dtype=torch.int32)
            .to(device)
        )

    def rows(self, device: str) -> Tensor:
        """(tokens,) where each packed token stands in the flattened padded batch."""
        import torch

        parts = [
            torch.arange(length) + place * self.longest for place, length in enumerate(self.values)
        ]
        return torch.cat(parts).to(device)

    def mask(self, device: str) -> Tensor:
        """(sequences, longest) bool, true where there is a token."""
        import torch

        return (torch.arange(self.longest) < torch.tensor(self.values)[:, None]).to(device)


def measure(lines: Iterable[str], vocabulary: str) -> dict[int, int]:
    """How many paragraphs have each length in tokens; empty lines and headings (`` = Title = ``)
    are none.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    texts = (line.strip().replace("<unk>", "[UNK]") for line in lines)
    paragraphs = [
        text for text in texts if text and not (text.startswith("= ") and text.endswith(" ="))
    ]
    counts = Counter(min(len(encoding), LONGEST) for encoding in tokenizer.encode_batch(paragraphs))
    return dict(sorted(counts.items()))


def wikitext(sequences: int) -> Lengths:
    """So many paragraphs, evenly spread over the distribution: the batch that a shuffled corpus
    gives on average.
    """
    counts = {
        int(length): count
        for length, count in json.loads(HISTOGRAM.read_text())["paragraphs"].items()
    }
    ordered = [length for length, count in sorted(counts.items()) for _ in range(count)]
    values = [ordered[int((place + 0.5) / sequences * len(ordered))] for place in range(sequences)]
    random.Random(SEED).shuffle(values)
    return Lengths(f"wikitext, {sequences} paragraphs", tuple(values))


def full(sequences: int, length: int) -> Lengths:
    """Sequences that all have one length."""
    return Lengths(f"{sequences} x {length}", (length,) * sequences)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        paragraphs = measure(text, sys.argv[2])
    source = (
        "WikiText-2, validation file; bert-base-uncased's vocabulary; [CLS] and [SEP] counted; "
        "cut at 512"
    )
    HISTOGRAM.write_text(json.dumps({"source": source, "paragraphs": paragraphs}) + "\n")
