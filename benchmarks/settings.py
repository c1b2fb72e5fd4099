"""What a run was asked for; passed from ``python -m benchmarks`` to pytest through the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .importable import REPOSITORY

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_RESULTS = REPOSITORY / "build" / "benchmarks"
PREFIX = "BERTFAST_BENCH_"


@dataclass(frozen=True)
class Settings:
    """Device, length of the run, and where its results go.

    Attributes:
        device: "cpu" or "cuda".
        quick: tiny shapes and few rounds, to see that everything runs; its figures mean nothing.
        seconds: after which no further case starts.
        results: folder of the JSON and the plots.
    """

    device: str = "cpu"
    quick: bool = False
    seconds: float = 540.0
    results: Path = RESULTS

    def environment(self) -> dict[str, str]:
        """The variables that `current` reads."""
        values = {"DEVICE": self.device, "QUICK": str(int(self.quick)), "SECONDS": str(self.seconds)}
        return {PREFIX + name: value for name, value in (values | {"RESULTS": str(self.results)}).items()}


def current() -> Settings:
    """The settings of this process."""
    read = {name: os.environ.get(PREFIX + name) for name in ("DEVICE", "QUICK", "SECONDS", "RESULTS")}
    quick = read["QUICK"] == "1"
    return Settings(
        device=read["DEVICE"] or ("cuda" if torch.cuda.is_available() else "cpu"),
        quick=quick,
        seconds=float(read["SECONDS"] or Settings.seconds),
        results=Path(read["RESULTS"] or (QUICK_RESULTS if quick else RESULTS)),
    )
