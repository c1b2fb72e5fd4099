"""What a run was asked for; passed from ``python -m benchmarks`` to pytest through the
environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from bertfast.bench.case import Setup
from bertfast.bench.lengths import REFERENCE_POINT, Lengths, full, wikitext
from bertfast.config import EncoderConfig

from .importable import REPOSITORY

RESULTS = Path(__file__).resolve().parent / "results"
PARTIAL_RESULTS = REPOSITORY / "build" / "benchmarks"
PREFIX = "BERTFAST_BENCH_"


@dataclass(frozen=True)
class Settings:
    """Device, length of the run, and where its results go.

    Attributes:
        device: "cpu" or "cuda".
        quick: tiny shapes and few rounds, to see that everything runs; its figures mean nothing.
        seconds: after which no further case starts.
        results: folder of the JSON and the plots.
        update: put what is measured in the place of the same cases in the JSON that is there.
    """

    device: str = "cpu"
    quick: bool = False
    seconds: float = 540.0
    results: Path = RESULTS
    update: bool = False

    def environment(self) -> dict[str, str]:
        """The variables that `current` reads."""
        values = {
            "DEVICE": self.device,
            "QUICK": str(int(self.quick)),
            "SECONDS": str(self.seconds),
        }
        values["UPDATE"] = str(int(self.update))
        return {
            PREFIX + name: value
            for name, value in (values | {"RESULTS": str(self.results)}).items()
        }


def current() -> Settings:
    """The settings of this process."""
    read = {
        name: os.environ.get(PREFIX + name)
        for name in ("DEVICE", "QUICK", "SECONDS", "RESULTS", "UPDATE")
    }
    quick = read["QUICK"] == "1"
    return Settings(
        device=read["DEVICE"] or ("cuda" if torch.cuda.is_available() else "cpu"),
        quick=quick,
        seconds=float(read["SECONDS"] or Settings.seconds),
        results=Path(read["RESULTS"] or (PARTIAL_RESULTS if quick else RESULTS)),
        update=read["UPDATE"] == "1",
    )


CURRENT = current()
DTYPES = ["float32", "bfloat16"]
GPU_LENGTHS = (64, 128, 256, 512, 1024)  # of attention


def _shapes() -> tuple[list[Lengths], list[Lengths], list[Lengths], list[Lengths], Lengths]:
    """Batches of attention; of the step; sizes of what works on each token alone; of the loss; and
    real lengths. A GPU needs more to be filled.
    """
    if CURRENT.quick:
        mixed = Lengths("mixed", (9, 5, 3))
        return [mixed, full(2, 8)], [mixed, full(2, 8)], [full(4, 16)], [full(4, 16)], mixed
    if CURRENT.device == "cuda":
        batches = [wikitext(512), *(full(65536 // length, length) for length in GPU_LENGTHS)]
        # Steps are of another part, in sizes of its own (`benchmarks.gpu.step`).
        return batches, [], [full(128, 512)], [full(128, 128), full(216, 512)], wikitext(512)
    point = Lengths("reference point, mean 48 of 128", REFERENCE_POINT)
    batches = [point, wikitext(8), full(8, 128), full(2, 512)]
    step_batches = [point, wikitext(16), full(8, 128), full(2, 512)]
    return batches, step_batches, [full(8, 128), full(16, 512)], [point, full(8, 512)], wikitext(32)


BATCHES, STEP_BATCHES, SIZES, MASKED, REAL = _shapes()


def make_setup(lengths: Lengths, dtype: str, config: EncoderConfig | None = None) -> Setup:
    """At the sizes of BERT-base unless a configuration is given. On a GPU, whose minutes are few,
    float32 goes without compiled peers.
    """
    if config is None:
        config = EncoderConfig.preset("bert-base", **({"vocab_size": 512} if CURRENT.quick else {}))
    compiled = not CURRENT.quick and (CURRENT.device == "cpu" or dtype == "bfloat16")
    return Setup(lengths, config, getattr(torch, dtype), CURRENT.device, compiled)


def step_config() -> EncoderConfig:
    """The model of the step: on a CPU the reference point's four layers, in which the vocabulary
    weighs three times as much as in twelve.
    """
    if CURRENT.quick:
        return EncoderConfig.preset("bert-tiny", vocab_size=512)
    return EncoderConfig.preset(
        "bert-base", **({} if CURRENT.device == "cuda" else {"num_hidden_layers": 4})
    )
