"""A model, a tokenizer and labelled reviews small enough for tests, and the command line inside
this process.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bertfast.config import BertConfig
from bertfast.model import BertForPreTraining, PreTrainedModel
from bertfast.tokenization import save_tokenizer, train_wordpiece

GOOD, BAD = ("bright", "warm", "lovely", "clever"), ("dull", "cold", "awful", "clumsy")
THINGS = ("film", "story", "cast", "score", "ending", "script")
POSITIONS = 24


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label) pairs that one word of the text decides."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        label = draw.choice(("good", "bad"))
        word = draw.choice(GOOD if label == "good" else BAD)
        pairs.append(
            (f"the {draw.choice(THINGS)} was {word} and the {draw.choice(THINGS)} was long", label)
        )
    return pairs


def write_table(
    path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("sentence", "label")
) -> Path:
    """A TSV file."""
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


def write_model(
    folder: Path, cls: type[PreTrainedModel] = BertForPreTraining, seed: int = 0, **shape: object
) -> Path:
    """A model of random weights, and a tokenizer that knows the reviews' words."""
    tokenizer = train_wordpiece([text for text, _ in sentences(200)], 200)
    torch.manual_seed(seed)
    config = BertConfig(
        **{  # type: ignore[arg-type]
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": POSITIONS,
            **shape,
        }
    )
    cls(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, POSITIONS)
    return folder


@dataclass
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that start with ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *args: object
) -> Outcome:
    """Runs ``bertfast ARGS`` by its entry point, in this process."""
    from bertfast.cli import main

    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["bertfast", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        main()
    sys.stdout.flush()
    printed = capfd.readouterr()
    code = stop.value.code
    assert isinstance(code, int)
    return Outcome(code, printed.out, printed.err)
