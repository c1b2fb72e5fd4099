"""How sides are timed against one another.

All sides of a case run in turn, round after round, in one process, so that a drift of the machine
meets them alike; ratios are taken within a round. A sample is as many calls as fill a few
milliseconds. A GPU's queue is drained at the end of a sample, not of a call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bertfast.errors import BertfastError

from .memory import peak_bytes

NOISE_BOUND = 0.15  # of IQR over median; a case beyond it is marked as not conclusive
LEAST_SAMPLE = {"cpu": 4e-3, "cuda": 20e-3}
LEAST_ROUNDS, MOST_ROUNDS = 5, 40


@dataclass
class Side:
    """One way to do the case's work.

    Attributes:
        name: as the tables show it.
        kind: "ours" (what a user of bertfast gets), "backend" (another backend of ours), "peer", or
            "floor" (work that nobody can skip).
        run: does the work once; may return the seconds of a part of it.
        probe: what the work computes, dropouts left out, to compare with the other sides; None
            where there is nothing to compare (a floor).
    """

    name: str
    kind: str
    run: Callable[[], Any]
    probe: Callable[[], tuple[Tensor, ...]] | None = None


@dataclass
class Samples:
    """Seconds per call of one side, a number a round."""

    kind: str
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    part_seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None  # beyond what was held before a call


def synchronize(device: str) -> None:
    """Waits for a GPU's queue; nothing on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_sample(side: Side, samples: Samples, device: str) -> None:
    """Times one sample of a side into ``samples``."""
    start = time.perf_counter()
    results = [side.run() for _ in range(samples.calls)]
    synchronize(device)
    samples.seconds.append((time.perf_counter() - start) / samples.calls)
    parts = [result for result in results if isinstance(result, float)]
    if parts:
        samples.part_seconds.append(sum(parts) / samples.calls)


def prepare(
    sides: list[Side], device: str, budget: float, quick: bool
) -> tuple[dict[str, Samples], int]:
    """Warms every side up; returns their empty samples with the calls to a sample, and how many
    rounds fit ``budget`` seconds.
    """
    samples, round_seconds = {}, 0.0
    for side in sides:
        side.run()  # compilers and caches
        synchronize(device)
        peak = peak_bytes(side.run, device)
        trial = Samples(side.kind)
        take_sample(side, trial, device)
        once = trial.seconds[0]
        calls = 1 if quick else max(1, min(200, round(LEAST_SAMPLE[device] / max(once, 1e-7))))
        samples[side.name] = Samples(side.kind, calls, peak_bytes=peak)
        round_seconds += once * calls
    if quick:
        return samples, 2
    return samples, int(max(LEAST_ROUNDS, min(MOST_ROUNDS, budget / round_seconds)))


def race(
    sides: list[Side],
    samples: dict[str, Samples],
    rounds: int,
    device: str,
    on_round: Callable[[int], None] = lambda number: None,
) -> None:
    """So many rounds, each begun by another side; ``on_round`` is told the number of each that is
    done.
    """
    for number in range(rounds):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            take_sample(side, samples[side.name], device)
        on_round(number + 1)


def whole_rounds(samples: dict[str, Samples]) -> int:
    """How many rounds every side has a sample of; the samples of a round that was cut short are
    dropped.
    """
    lists = [side.seconds for side in samples.values()]
    lists += [side.part_seconds for side in samples.values() if side.part_seconds]
    rounds = min(map(len, lists))
    for side in samples.values():
        del side.seconds[rounds:], side.part_seconds[rounds:]
    return rounds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "low": low, "high": high}


def is_noisy(values: dict[str, float]) -> bool:
    """Whether the spread is too wide to conclude from."""
    return (values["high"] - values["low"]) > NOISE_BOUND * values["median"]


def summarize(samples: dict[str, Samples]) -> dict[str, Any]:
    """The sides' medians and spreads, and each one's ratio to ours, round by round (above 1: ours
    is faster).
    """
    ours = next(s for s in samples.values() if s.kind == "ours")
    sides = {}
    for name, side in samples.items():
        entry: dict[str, Any] = {"kind": side.kind, "calls": side.calls, **spread(side.seconds)}
        entry["noisy"] = is_noisy(entry)
        entry["ratio"] = spread(
            [theirs / own for theirs, own in zip(side.seconds, ours.seconds, strict=True)]
        )
        if side.part_seconds and ours.part_seconds:
            pairs = zip(side.part_seconds, ours.part_seconds, strict=True)
            entry["part"] = spread(side.part_seconds) | {
                "ratio": spread([theirs / own for theirs, own in pairs])
            }
            entry["part_seconds"] = side.part_seconds
        entry["peak_bytes"] = side.peak_bytes
        entry["seconds"] = side.seconds
        sides[name] = entry
    return sides


def relative_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """‖actual - expected‖ / ‖expected‖ of the worst of the tensors; NaN and another shape count as
    infinite.
    """
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            return float("inf")
        wide = e.detach().double()
        error = float((a.detach().double() - wide).norm() / wide.norm().clamp(min=1e-30))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def check_agreement(sides: list[Side], tolerance: float) -> dict[str, float]:
    """The relative error of each side against ours.

    Raises:
        BertfastError: a side computes something else.
    """
    base = next(side for side in sides if side.kind == "ours")
    assert base.probe is not None
    expected, errors = base.probe(), {}
    for side in sides:
        if side is base or side.probe is None:
            continue
        errors[side.name] = relative_error(side.probe(), expected)
        if not errors[side.name] <= tolerance:
            raise BertfastError(
                f"{side.name} and {base.name} compute different things: "
                f"relative error {errors[side.name]:.2e}, the bound is {tolerance:.0e}"
            )
    return errors
