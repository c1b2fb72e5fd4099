"""The fixture that times a case, and the JSON that grows with each of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.results import Results, say
from benchmarks.settings import Settings, current
from bertfast.bench import timing
from bertfast.bench.case import Setup
from bertfast.bench.ops import Build
from bertfast.training.memory import keep_freed_memory

# Seconds of timing that a case of each group has, in the groups' order; a sweep's step has the
# longer one.
CASE_SECONDS = {"ops": 1.5, "step": 12.0, "sweeps": 1.0}
SWEEP_STEP_SECONDS = 5.0
MOST_STEP_ROUNDS = 12


def _group(item: pytest.Item) -> str:
    return {"test_step": "step", "test_sentence_embedding": "step", "test_sweeps": "sweeps"}.get(
        item.path.stem, "ops"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups in order: what comes last goes without when time is short."""
    items.sort(key=lambda item: list(CASE_SECONDS).index(_group(item)))


@pytest.fixture(scope="session")
def settings() -> Settings:
    """What the run was asked for."""
    return current()


@pytest.fixture(scope="session")
def results(settings: Settings) -> Iterator[Results]:
    """What is measured, written after every case, so that a run that is cut short keeps what it
    has.
    """
    keep_freed_memory()  # as `bertfast pretrain` does; in one process every side has the good of it
    found = Results.start(settings)
    yield found
    found.finish()


def pytest_keyboard_interrupt() -> None:
    """What was measured is kept; the rates are not measured again."""
    Results.stopped = True


@pytest.fixture
def contest(
    benchmark: Any, results: Results, settings: Settings, request: pytest.FixtureRequest
) -> Iterator[Callable]:
    """Builds a case, checks that its sides agree, then times them in turn.

    pytest-benchmark times our side; before each of its rounds, every other side takes a sample of
    its own.
    """
    name, group = request.node.name, _group(request.node)
    kind = request.node.originalname

    def run(
        build: Build, setup: Setup, *, sweep: tuple[str, float] | None = None, **options: Any
    ) -> None:
        left = results.seconds_left(group, kind)
        if left <= 0:
            results.skip(name, f"the time for the {group} was used up")
            pytest.skip(f"the time for the {group} was used up")
        say(name)
        started = time.monotonic()
        case = build(setup, **options)
        benchmark.group = f"{case.op}: {case.shape}, {case.dtype}"
        errors = case.check()
        seconds = SWEEP_STEP_SECONDS if sweep and case.op == "step" else CASE_SECONDS[group]
        samples, rounds = timing.prepare(
            case.sides, settings.device, min(seconds, left), settings.quick
        )
        if case.op == "step":
            rounds = min(rounds, MOST_STEP_ROUNDS)
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
            timing.take_sample,
            args=(ours, own, settings.device),
            setup=sample_others,
            rounds=rounds,
            iterations=1,
        )
        del own.seconds[rounds:], own.part_seconds[rounds:]
        benchmark.extra_info |= {"calls": own.calls, "rounds": rounds}
        place = {"sweep": sweep[0], "x": sweep[1]} if sweep else {}
        results.add(case.record(errors, samples) | place)
        results.took(kind, time.monotonic() - started)

    yield run
    gc.collect()


@pytest.fixture(autouse=True)
def fixed_draws() -> None:
    """Every case starts from the same generator state."""
    torch.manual_seed(0)
