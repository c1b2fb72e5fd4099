"""Signals that let a step end before they end the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def caught_signals(*numbers: signal.Signals) -> Iterator[list[int]]:
    """A list that these signals put their number into; the loop looks at it after each step. A second one raises KeyboardInterrupt at once.

    An exception raised wherever a signal happens to strike may be swallowed there: libraries have clauses that catch everything.
    """
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread: the program around decides
        yield caught
        return
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
