"""How far a long job is, on standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def advance(self, step: int, numbers: str) -> None:
        """Shows that ``step`` steps are done."""
        self.progress.update(self.task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self.live and (now - self.last_line > 10 or step == self.total):
            self.last_line = now
            print(f"{self.label}: step {step}/{self.total}  {numbers}", file=sys.stderr, flush=True)
