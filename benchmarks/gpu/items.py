"""What a part is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .journal import Journal


class Missing(Exception):
    """Why an item has nothing to show here; no error."""


@dataclass(frozen=True)
class Item:
    """A piece of a part, which fails alone.

    Attributes:
        name: which no other item of the part has.
        run: does it, and writes what it finds.
        stage: of the part; a stage begins when the one before it has ended.
        seconds: after which its process is ended, and the part goes on without it.
        fresh: whether it has a process of its own, as it may spoil one.
    """

    name: str
    run: Callable[[Journal], None]
    stage: int = 0
    seconds: float = 90.0
    fresh: bool = False


@dataclass(frozen=True)
class Stage:
    """Items that may run beside one another.

    Attributes:
        workers: processes that share the items.
        share: of the part's seconds, by whose end none of its items is begun any more.
    """

    workers: int
    share: float


@dataclass(frozen=True)
class Part:
    """One command's worth.

    Attributes:
        number, name: of the part; the module of that name in this package has its ``items``.
        summary: for the help.
        stages: in their order.
    """

    number: int
    name: str
    summary: str
    stages: tuple[Stage, ...]

    def path(self, folder: Path) -> Path:
        """Its journal's, in the folder of the results."""
        return folder / f"{self.number}-{self.name}.jsonl"


PARTS = (
    Part(1, "check", "every op and member against the reference", (Stage(8, 0.8), Stage(1, 1.0))),
    Part(2, "step", "the training step", (Stage(1, 0.45), Stage(8, 0.65), Stage(1, 1.0))),
    Part(3, "ops", "the ops, forward and backward apart", (Stage(1, 1.0),)),
    Part(
        4,
        "tune",
        "tile sizes, and the step with them",
        (Stage(16, 0.45), Stage(1, 0.8), Stage(1, 1.0)),
    ),
)
AGAIN = 75  # exit code of a worker: there are more items, for a new process
TUNING = "tuning.json"  # the tuned options, in the form of `kernels.tuning`'s cache
