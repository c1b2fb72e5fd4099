"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and a live bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bertfast.errors import BertfastError
from bertfast.hub import write_atomically

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a logged step to ``metrics.jsonl``, and the same numbers to
    TensorBoard.

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
            write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self.events = _event_writer(folder / "tensorboard", start_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line, flushed.

        Raises:
            BertfastError: the disk is full.
        """
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            if self.events is not None:
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self.events.add_scalar(name, value, step)
        except OSError as error:
            raise BertfastError(
                f"{self.path}: cannot be written ({error}); the last checkpoint is untouched"
            ) from error

    def close(self) -> None:
        """Flushes both logs."""
        self.file.close()
        if self.events is not None:
            self.events.close()


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


def _event_writer(folder: Path, start_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "bertfast: tensorboard is not installed, so no events are written (pip install 'bertfast[train]')",
            file=sys.stderr,
        )
        return None
    return SummaryWriter(str(folder), purge_step=start_step + 1)


class LiveBar:
    """A bar with the latest numbers and the time left; on something other than a terminal, a line
    every ten seconds.

    Args:
        total: steps.
        done: steps done before.
        label: what is going on.
    """

    def __init__(self, total: int, done: int = 0, label: str = "pretrain") -> None:
        self.console = Console(stderr=True)
        self.total, self.label = total, label
        self.live = self.console.is_terminal
        self.last_line = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task(label, total=total, completed=done, numbers="")

    def __enter__(self) -> LiveBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, step: int, numbers: str) -> None:
        """Shows that ``step`` steps are done."""
        self.progress.update(self.task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self.live and (now - self.last_line > 10 or step == self.total):
            self.last_line = now
            print(f"{self.label}: step {step}/{self.total}  {numbers}", file=sys.stderr, flush=True)
