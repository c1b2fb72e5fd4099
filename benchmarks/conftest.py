"""The fixture that times a case, and the JSON that grows with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.results import Results
from benchmarks.settings import Settings, current
from bertfast.bench import timing
from bertfast.bench.timing import Side

CASE_SECONDS = {"cpu": 1.5, "cuda": 1.5}
STEP_SECONDS = {"cpu": 20.0, "cuda": 12.0}
# Errors that rounding may make between two right answers, as ‖a - b‖ / ‖b‖.
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}


@dataclass
class Case:
    """One row of the results: what is done, by whom, and what nobody can do without.

    Attributes:
        op: the op, or "step".
        shape: of its input, in words.
        dtype: "float32" or "bfloat16".
        sides: exactly one of them of the kind "ours".
        flops: that the result needs; None where bytes are the floor.
        tolerance: of the comparison; None takes `TOLERANCE`'s.
        facts: more to keep with the case.
        missing: sides that could not run, and why.
    """

    op: str
    shape: str
    dtype: str
    sides: list[Side]
    flops: float | None = None
    tolerance: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def settings() -> Settings:
    """What the run was asked for."""
    return current()


@pytest.fixture(scope="session")
def results(settings: Settings) -> Iterator[Results]:
    """What is measured, written after every case, so that a run that is cut short keeps what it has."""
    found = Results.start(settings)
    yield found
    found.finish()


@pytest.fixture
def contest(benchmark: Any, results: Results, settings: Settings, request: pytest.FixtureRequest) -> Callable:
    """Checks that a case's sides agree, then times them in turn.

    pytest-benchmark times our side; before each of its rounds, every other side takes a sample of its own.
    """
    name = request.node.name
    if results.seconds_left() <= 0:
        results.skip(name, "the run's time was used up")
        pytest.skip("the run's time was used up")

    def run(case: Case) -> None:
        benchmark.group = f"{case.op}: {case.shape}, {case.dtype}"
        errors = timing.check_agreement(case.sides, case.tolerance or TOLERANCE[case.dtype])
        wanted = STEP_SECONDS if case.op == "step" else CASE_SECONDS
        samples, rounds = timing.prepare(case.sides, settings.device, wanted[settings.device], settings.quick)
        if case.op == "step" and not settings.quick:
            rounds = min(rounds, 12)
        ours = next(side for side in case.sides if side.kind == "ours")
        others = [side for side in case.sides if side is not ours]
        finished = 0

        def sample_others() -> None:
            nonlocal finished
            turn = finished % max(len(others), 1)
            for side in others[turn:] + others[:turn]:
                timing.take_sample(side, samples[side.name], settings.device)
            finished += 1

        own = samples[ours.name]
        benchmark.pedantic(
            timing.take_sample, args=(ours, own, settings.device), setup=sample_others, rounds=rounds, iterations=1
        )
        del own.seconds[rounds:], own.part_seconds[rounds:]
        benchmark.extra_info |= {"calls": own.calls, "rounds": rounds}
        results.add(
            {
                "op": case.op,
                "shape": case.shape,
                "dtype": case.dtype,
                "flops": case.flops,
                "errors": errors,
                "missing": case.missing,
                **case.facts,
                "sides": timing.summarize(samples),
            }
        )
        if settings.device == "cuda":
            torch.cuda.empty_cache()

    return run


@pytest.fixture(autouse=True)
def fixed_draws() -> None:
    """Every case starts from the same generator state."""
    torch.manual_seed(0)
