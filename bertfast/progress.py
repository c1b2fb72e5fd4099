"""How far a long job is, on standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class LiveBar:
    """A bar with the latest numbers and the time left; on something other than a terminal, a line
    every ten seconds.

    Args:
        total: steps.
        done: steps done before.
        label: what is going on.
        shown: whether anything is.
    """

    def __init__(
        self, total: int, done: int = 0, label: str = "pretrain", shown: bool = True
    ) -> None:
        self.console = Console(stderr=True)
        self.total, self.label = total, label
        self.live = shown and self.console.is_terminal
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


class BytesBar:
    """A bar of the bytes of a corpus, with the time of day at which the last one is done.

    On something other than a terminal it is a line every ten seconds.

    Args:
        label: what is going on.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        console = Console(stderr=True)
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not self.live,
        )
        self.task = self.progress.add_task(label, total=None, numbers="")
        self.start: tuple[float, int] | None = None  # when, and what was done by then
        self.last_line = time.monotonic()

    def __enter__(self) -> BytesBar:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def advance(self, done: int, total: int, tokens: int) -> None:
        """Shows that so many bytes of all are done, which gave so many tokens."""
        now = time.monotonic()
        if self.start is None:
            self.start = now, done
        began, before = self.start
        ends = ""
        if done > before:
            left = (total - done) * (now - began) / (done - before)
            ends = f", ends {time.strftime('%a %H:%M:%S', time.localtime(time.time() + left))}"
        numbers = f"{tokens:,} tokens{ends}"
        self.progress.update(self.task, completed=done, total=total, numbers=numbers)
        if not self.live and now - self.last_line > 10:
            self.last_line = now
            share = done / max(total, 1)
            print(f"{self.label}: {share:.1%}, {numbers}", file=sys.stderr, flush=True)
