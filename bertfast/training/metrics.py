"""A run's numbers, as metrics.jsonl has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.files import write_text

FILE = "metrics.jsonl"
# Of several ranks: how far the heaviest is above their mean.
UNEVEN = ("token_imbalance", "square_imbalance")
UPDATES = "imbalances"  # how many updates these were summed over


class MetricsLog:
    """Appends one JSON object a logged step to ``metrics.jsonl``.

    Args:
        folder: of the run.
        start_step: steps after it are dropped from an earlier log, since they will be run again.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.path = folder / FILE
        if self.path.exists():
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8").splitlines()
                if _step(line) <= start_step
            ]
            text = "".join(f"{line}\n" for line in kept)
            write_text(self.path, text)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line, flushed.

        Raises:
            BertfastError: the disk is full.
        """
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise BertfastError(
                f"{self.path}: cannot be written ({error}); the last checkpoint is untouched"
            ) from error

    def close(self) -> None:
        """Flushes the log."""
        self.file.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The logged steps of a run, in order."""
    lines = (Path(folder) / FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _step(line: str) -> float:
    """The step of a line; a line cut short by a kill counts as beyond every step."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Window:
    """Sums over the steps since the last logged line; they stay on the device until the line is
    written.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.parts = self.tokens = self.sequences = 0
        self.elapsed = 0.0
        self.unread = 0

    def state(self) -> dict[str, Any]:
        """What a resume needs, so that the next line averages over the same steps."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return {
            "sums": sums,
            "parts": self.parts,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "elapsed": self.elapsed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in state.get("sums", {}).items()
        }
        self.parts, self.tokens, self.sequences = (
            state.get(name, 0) for name in ("parts", "tokens", "sequences")
        )
        self.elapsed = state.get("elapsed", 0.0)

    def add(self, output: Any, tokens: int, sequences: int) -> None:
        for name, value in numbers(output).items():
            if value is not None:
                value = value.detach().double()
                self.sums[name] = (
                    value + self.sums[name].to(value.device) if name in self.sums else value
                )
        self.parts += 1
        self.tokens += tokens
        self.unread += tokens
        self.sequences += sequences

    def add_uneven(self, above: Tensor) -> None:
        """How far an update's heaviest rank is above the mean, in tokens and in squares of
        lengths.
        """
        values = (*above.double().unbind(), torch.ones_like(above[0]).double())
        for name, value in zip((*UNEVEN, UPDATES), values, strict=True):
            self.sums[name] = value + self.sums.get(name, 0)

    def gather(self, total: Callable[[Tensor], Tensor], keep: bool) -> None:
        """Adds up what all ranks have; where it is not kept there, a rank starts anew.

        Args:
            total: of values of each rank, in place.
            keep: on rank 0.
        """
        names = sorted(self.sums)
        counts = [self.parts, self.tokens, self.sequences]
        device = next(iter(self.sums.values())).device if names else None
        values = torch.stack(
            [
                *(self.sums[name].to(device) for name in names),
                *torch.tensor(counts, dtype=torch.float64, device=device),
            ]
        )
        *sums, parts, tokens, sequences = (total(values) * keep).unbind()
        self.sums = dict(zip(names, sums, strict=True))
        self.parts, self.tokens, self.sequences = (
            int(count) for count in (parts, tokens, sequences)
        )

    def step_tokens(self) -> int:
        """Tokens since this was last asked."""
        tokens, self.unread = self.unread, 0
        return tokens

    def flush(
        self, elapsed: float, rate: float, norm: float, tokens: int, epoch: int, seconds: float
    ) -> dict[str, Any]:
        """The line for metrics.jsonl, averaged over the window; starts a new one."""
        sums = {name: float(value) for name, value in self.sums.items()}
        line = {"loss": sums["loss"] / self.parts}
        for name in [name for name in sums if name.endswith("_correct")]:
            # A model with one task alone says its loss once.
            if name != "correct" and not any(other.endswith("_loss") for other in sums):
                sums[name.replace("_correct", "_loss")] = sums["loss"]
        tasks = [name.removesuffix("_loss") for name in sums if name.endswith("_loss")]
        for task in tasks:
            line[f"{task}_loss"] = sums[f"{task}_loss"] / self.parts
            if f"{task}_correct" in sums:
                line[f"{task}_accuracy"] = sums[f"{task}_correct"] / max(
                    sums.get(f"{task}_count", self.sequences), 1
                )
        if UPDATES in sums:
            line |= {name: sums[name] / sums[UPDATES] for name in UNEVEN}
        line |= {
            "tokens_per_second": self.tokens / elapsed if elapsed > 0 else 0.0,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": tokens,
            "epoch": epoch,
            "seconds": seconds,
        }
        self.__init__()  # type: ignore[misc]
        return line


def numbers(output: Any) -> dict[str, Any]:
    """``loss`` and every ``X_loss``, ``X_correct`` and ``X_count`` of what a model returned."""
    values = output if isinstance(output, dict) else vars(output)
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
        and (name == "loss" or name.endswith(("_loss", "_correct", "_count")))
    }
