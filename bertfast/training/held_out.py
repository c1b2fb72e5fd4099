"""Pretraining's loss on text that it never trains on, under masks that never change."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertfast.data.mixture import Chain
from bertfast.data.packing import Batches
from bertfast.data.shards import ShardedStore
from bertfast.data.store import TokenStore
from bertfast.errors import BertfastError
from bertfast.files import read_json, write_text
from bertfast.objectives import OBJECTIVES
from bertfast.tokenization import SpecialIds

from .config import PretrainConfig
from .metrics import numbers
from .trainer import Callback

if TYPE_CHECKING:
    from .trainer import Trainer

FILE = "evaluations.json"
LOSS = "valid_loss"


def held_out_batches(
    config: PretrainConfig,
    store: TokenStore | ShardedStore,
    special: SpecialIds,
    vocab_size: int,
) -> Batches:
    """Batches of text that is scored, under masks that no option decides: so runs compare."""
    return Batches(
        store,
        special,
        vocab_size,
        config.seq_len,
        config.batch_tokens,
        OBJECTIVES.find(config.objective),
        "static",
    )


class HeldOut:
    """Scores of a model on one pass over held-out batches; means over predictions, not batches.

    Args:
        batches: with static masking and a seed that does not depend on the run's, so that runs
            compare.
    """

    def __init__(self, batches: Batches | Chain) -> None:
        self.batches = batches
        batches.plan()  # says now if the text cannot serve the objective

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """``valid_loss``, of each task of the objective its loss and accuracy, and the perplexity
        of masked-token prediction.
        """
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor | int) -> None:
            value = torch.as_tensor(value, dtype=torch.float64, device=device)
            sums[name] = value + sums[name] if name in sums else value

        for epoch, batch in self.batches.iterate():
            if epoch > 0:
                break
            output = numbers(model(batch.to(device), seed=0))
            tasks = {name.removesuffix("_correct") for name in output if name.endswith("_correct")}
            add("sequences", batch.num_sequences)
            add("loss", output["loss"].double() * batch.num_sequences)
            for task in sorted(tasks):
                count = output.get(f"{task}_count", torch.tensor(batch.num_sequences))
                # A model with one task alone says its loss once.
                loss = output.get(f"{task}_loss", output["loss"])
                add(f"{task}_count", count)
                add(f"{task}_loss", loss.double() * count.to(loss.device))
                add(f"{task}_correct", output[f"{task}_correct"])
        found = {LOSS: float(sums["loss"] / sums["sequences"])}
        tasks = {name.removesuffix("_correct") for name in sums if name.endswith("_correct")}
        for task in sorted(tasks):
            count = max(float(sums[f"{task}_count"]), 1.0)
            found[f"valid_{task}_loss"] = float(sums[f"{task}_loss"]) / count
            found[f"valid_{task}_accuracy"] = float(sums[f"{task}_correct"]) / count
        if len(tasks) == 1:
            found[LOSS] = found[f"valid_{tasks.pop()}_loss"]
        if (loss := found.get("valid_mlm_loss")) is not None:
            found["valid_perplexity"] = math.exp(min(loss, 700.0))
        return found


class Evaluations(Callback):
    """Keeps every evaluation of a run in ``evaluations.json``, and says each on standard error."""

    def on_start(self, trainer: Trainer, step: int) -> None:
        """The start counts as an evaluation too: what training is worth is the way from there."""
        if trainer.evaluate is not None and step == 0:
            self.on_evaluate(trainer, 0, trainer.score(0))

    def on_evaluate(self, trainer: Trainer, step: int, scores: dict[str, float]) -> None:
        text = json.dumps(trainer.evaluations, indent=2)
        write_text(trainer.run / FILE, f"{text}\n")
        shown = ", ".join(
            f"{name.removeprefix('valid_').replace('_', ' ')} {value:.4f}"
            for name, value in scores.items()
        )
        print(f"bertfast: step {step}: held out: {shown}", file=sys.stderr)


def read_evaluations(run: str | Path) -> list[dict[str, Any]]:
    """The evaluations of a pretraining run, in order.

    Raises:
        BertfastError: it has none, or the file cannot be read.
    """
    found = read_json(Path(run) / FILE)
    if not isinstance(found, list) or not all(isinstance(line, dict) for line in found):
        raise BertfastError(f"{Path(run) / FILE}: must hold a list of evaluations")
    return found
