"""How much of everything the note takes: whole, or quick to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHAPE = {
    "model_type": "bert",
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 128,
}
# Of the other members that a part needs. Each layer has weights of its own, as BERT's have.
MEMBERS = {
    "bert": SHAPE,
    "albert": {**SHAPE, "model_type": "albert", "embedding_size": 256, "num_hidden_groups": 4},
}
# Of those whose effect is asked for; each differs from the first of its member in one thing.
VARIANTS: dict[str, dict[str, str]] = {
    "dynamic masks, MLM alone": {"objective": "mlm"},
    "static masks": {"objective": "mlm", "masking": "static"},
    "with NSP": {"objective": "mlm+nsp"},
    "ALBERT, MLM alone": {"objective": "mlm", "member": "albert"},
    "ALBERT, with SOP": {"objective": "mlm+sop", "member": "albert"},
    "whole words": {"objective": "mlm", "mask_unit": "whole-word"},
    "spans": {"objective": "mlm", "mask_unit": "span"},
}


@dataclass(frozen=True)
class Amount:
    """How much is done.

    Attributes:
        steps, checkpoints: updates of the long run, and at how many of them it is scored.
        variant_steps: updates of each run whose objective or masks differ.
        variant_characters: of the text that those read several times.
        seq_len, batch_tokens: of pretraining.
        labels, most: numbers of labelled examples of the curve, and of the other parts.
        seeds: of each fine-tuning.
        epochs, least_updates: of each fine-tuning.
        words: hidden words of the part on context.
        probed: words, or pairs of sentences, that a probe learns from and is scored on.
    """

    steps: int = 6000
    checkpoints: int = 6
    variant_steps: int = 2000
    variant_characters: int = 3_000_000
    seq_len: int = 128
    batch_tokens: int = 4096
    labels: tuple[int, ...] = (32, 100, 320, 1000, 3200, 10_000)
    most: int = 2000
    seeds: int = 3
    epochs: int = 3
    least_updates: int = 100
    words: int = 4000
    probed: int = 15_000


QUICK = Amount(
    steps=12,
    variant_steps=2,
    variant_characters=200_000,
    seq_len=32,
    batch_tokens=512,
    labels=(32, 64),
    most=32,
    seeds=1,
    epochs=1,
    least_updates=1,
    words=60,
    probed=300,
)


@dataclass(frozen=True)
class Data:
    """The files.

    Attributes:
        text, held_out: English, a blank line between documents.
        train, test: labelled texts, TSV.
        entities, entities_test: CoNLL.
        pairs: the STS benchmark's dev file.
        tags, tags_test: CoNLL or CoNLL-U with parts of speech; None leaves that probe out.
    """

    text: Path
    held_out: Path
    train: Path
    test: Path
    entities: Path
    entities_test: Path
    pairs: Path
    tags: Path | None = None
    tags_test: Path | None = None
