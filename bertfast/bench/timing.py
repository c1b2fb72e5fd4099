"""How sides are timed against one another.

All sides of a case run in turn, round after round, in one process, so that a drift of the machine
meets them alike. Ratios are taken within a round. A sample is as many calls as fill a few
milliseconds.

On a GPU every side is recorded once as a CUDA graph. A sample is the time between two events around
its replays. That is the GPU's time, not that of the host that launches kernel by kernel. What
cannot be recorded is launched, and its figures say so and why.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.memory import peak_bytes

NOISE_BOUND = 0.15  # of IQR over median; a case beyond it is marked as not conclusive
LEAST_SAMPLE = {"cpu": 4e-3, "cuda": 20e-3}
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
WARMUP = 3  # calls before a recording, in which libraries take their workspaces
CALLS, GRAPH, LAUNCHES = "calls", "graph", "launches"  # how a side was timed


@dataclass
class Side:
    """One way to do the case's work.

    Attributes:
        name: as the tables show it.
        kind: "ours" (what a user of bertfast gets) or "backend" (another backend of ours). Of
            others it is "peer" or "forward" (a peer's forward alone). "floor" is work that nobody
            can skip.
        run: does the work once; may return the seconds of a part of it.
        probe: what the work computes, dropouts left out, to compare with the other sides; None
            where there is nothing to compare (a floor).
        timed: how a GPU times it where it is not to be recorded. It is `GRAPH` where ``run``
            replays a graph of its own, or `LAUNCHES` and why.
    """

    name: str
    kind: str
    run: Callable[[], Any]
    probe: Callable[[], tuple[Tensor, ...]] | None = None
    timed: str | None = None


@dataclass
class Samples:
    """Seconds per call of one side, a number a round.

    Attributes:
        run: what a sample calls in the side's place: the replay of its graph.
        timed: by the host's clock around `CALLS`, or by the GPU's around replays of a `GRAPH` or
            around `LAUNCHES`, with why.
        passes: of its forward and of its backward alone, where they were asked for.
        peak_bytes: beyond what was held before a call.
    """

    kind: str
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    part_seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    run: Callable[[], Any] | None = None
    timed: str = CALLS
    passes: dict[str, Samples] = field(default_factory=dict)


def synchronize(device: str) -> None:
    """Waits for a GPU's queue; nothing on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_sample(side: Side, samples: Samples, device: str) -> None:
    """Times one sample of a side, and one of each of its passes, into ``samples``."""
    run = samples.run or side.run
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(samples.calls):
            run()
        end.record()
        end.synchronize()
        samples.seconds.append(start.elapsed_time(end) * 1e-3 / samples.calls)
    else:
        begun = time.perf_counter()
        results = [run() for _ in range(samples.calls)]
        samples.seconds.append((time.perf_counter() - begun) / samples.calls)
        parts = [result for result in results if isinstance(result, float)]
        if parts:
            samples.part_seconds.append(sum(parts) / samples.calls)
    for one in samples.passes.values():
        take_sample(side, one, device)


def recorded(make: Callable[[], Callable[[], Any]]) -> tuple[Callable[[], Any], str]:
    """The replay of a CUDA graph of some work, or the work itself where it cannot be recorded; and
    how it is timed.

    Args:
        make: gives the work. It is called on the stream of the recording, on which a backward then
            runs too, as autograd keeps to the stream of the forward.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run = make()
        for _ in range(WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with _usable_generator(), torch.cuda.graph(graph, stream=stream):
            kept = run()
    except Exception as error:  # peers fail in many ways; launched, they still have their time
        torch.cuda.synchronize()
        return run, f"{LAUNCHES}: {' '.join(str(error).split())[:160]}"

    def replay(kept: object = kept) -> None:  # holds what the graph writes to
        graph.replay()

    return replay, GRAPH


@contextmanager
def _usable_generator() -> Iterator[None]:
    """A recording that fails leaves torch's generator waiting for its end; it is then given a state
    that is not.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.clone_state()
    try:
        yield
    except Exception:
        generator.graphsafe_set_state(state)
        raise


def _samples(
    side: Side, make: Callable[[], Callable[[], Any]], device: str, quick: bool
) -> tuple[Samples, float]:
    """Empty samples of some work of the side, and about how many seconds one takes.

    A sample has as many calls as last long enough.
    """
    samples = Samples(side.kind)
    if device == "cuda" and side.timed is None:
        samples.run, samples.timed = recorded(make)
    else:
        samples.run = make()
        samples.timed = CALLS if device != "cuda" else side.timed or GRAPH
    take_sample(side, samples, device)
    once = samples.seconds.pop()
    samples.part_seconds.clear()
    least = LEAST_SAMPLE[device] / max(once, 1e-7)
    samples.calls = 1 if quick else max(1, min(200, round(least)))
    return samples, once * samples.calls


def prepare(
    sides: list[Side], device: str, budget: float, quick: bool, apart: bool = False
) -> tuple[dict[str, Samples], int]:
    """Warms every side up; returns their empty samples with the calls to a sample, and how many
    rounds fit ``budget`` seconds.

    Args:
        apart: whether forward and backward are timed alone too, of sides whose work has both.
    """
    samples, round_seconds = {}, 0.0
    for side in sides:
        side.run()  # compilers and caches
        synchronize(device)
        peak = peak_bytes(side.run, device)
        run = side.run
        found, taken = _samples(side, lambda run=run: run, device, quick)  # type: ignore[misc]
        found.peak_bytes = peak
        round_seconds += taken
        for name, make in getattr(side.run, "passes", {}).items() if apart else ():
            found.passes[name], taken = _samples(side, make, device, quick)
            round_seconds += taken
        samples[side.name] = found
    if quick:
        return samples, 2
    return samples, int(max(LEAST_ROUNDS, min(MOST_ROUNDS, budget / max(round_seconds, 1e-9))))


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


def median_seconds(
    run: Callable[[], Any], device: str, seconds: float, quick: bool = False
) -> float:
    """The median of a call's seconds over about so many; on a GPU recorded, if it can be."""
    side = Side("", "ours", run)
    samples, rounds = prepare([side], device, seconds, quick)
    race([side], samples, rounds, device)
    return statistics.median(samples[side.name].seconds)


def whole_rounds(samples: dict[str, Samples]) -> int:
    """How many rounds every side has a sample of; the samples of a round that was cut short are
    dropped.
    """
    lists = [side.seconds for side in samples.values()]
    lists += [side.part_seconds for side in samples.values() if side.part_seconds]
    lists += [one.seconds for side in samples.values() for one in side.passes.values()]
    rounds = min(map(len, lists))
    for side in samples.values():
        for one in (side, *side.passes.values()):
            del one.seconds[rounds:], one.part_seconds[rounds:]
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
        base = ours.passes.get("forward", ours) if side.kind == "forward" else ours
        entry["ratio"] = spread(
            [theirs / own for theirs, own in zip(side.seconds, base.seconds, strict=True)]
        )
        if side.part_seconds and ours.part_seconds:
            pairs = zip(side.part_seconds, ours.part_seconds, strict=True)
            entry["part"] = spread(side.part_seconds) | {
                "ratio": spread([theirs / own for theirs, own in pairs])
            }
            entry["part_seconds"] = side.part_seconds
        for pass_name, one in side.passes.items():
            entry[pass_name] = {"timed": one.timed, **spread(one.seconds), "seconds": one.seconds}
        entry["timed"] = side.timed
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


def errors(sides: list[Side]) -> dict[str, float]:
    """The relative error of each side against ours."""
    base = next(side for side in sides if side.kind == "ours")
    assert base.probe is not None
    expected, found = base.probe(), {}
    for side in sides:
        if side is not base and side.probe is not None:
            results = side.probe()
            wanted = expected[: len(results)] if side.kind == "forward" else expected
            found[side.name] = relative_error(results, wanted)
    return found


def check_agreement(sides: list[Side], tolerance: float) -> dict[str, float]:
    """The relative error of each side against ours.

    Raises:
        BertfastError: a side computes something else.
    """
    found = errors(sides)
    for name, error in found.items():
        if not error <= tolerance:
            base = next(side.name for side in sides if side.kind == "ours")
            raise BertfastError(
                f"{name} and {base} compute different things: "
                f"relative error {error:.2e}, the bound is {tolerance:.0e}"
            )
    return found
