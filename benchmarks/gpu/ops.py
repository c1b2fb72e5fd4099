"""Part 3: each op beside what people run in its place; forward and backward together, and apart.

The cases are those of ``benchmarks/test_*.py``, of which the step's are part 2.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch._functorch import config as functorch

from bertfast.bench import rates, timing
from bertfast.bench.case import TOLERANCE, Case, Setup, reason
from bertfast.bench.ops import Build

from ..plain import cases, prepare_imports
from ..settings import CURRENT, Settings
from .items import Item
from .journal import Journal

SECONDS = 1.0  # of timing a case, its sides together
LAST = ("test_sentence_embedding", "test_sweeps")
ELSEWHERE = ("test_step",)


def items(settings: Settings) -> list[Item]:
    """The cases in bfloat16, which is what people train in, before those in float32; the sweeps
    last.
    """
    prepare_imports()
    paths = sorted(Path(__file__).resolve().parent.parent.glob("test_*.py"))
    modules = [path.stem for path in paths if path.stem not in ELSEWHERE]
    found = []
    for stem in modules:
        for name, function, chosen in cases(importlib.import_module(f"benchmarks.{stem}")):
            run, fresh = partial(run_case, function, chosen), "cudnn" in name
            found.append((stem in LAST, "bfloat16" not in name, Item(name, run, fresh=fresh)))
    found.sort(key=lambda entry: entry[:2])
    return [Item("rates", measure_rates), *(item for _, _, item in found)]


def measure_rates(journal: Journal) -> None:
    """What the cases are set beside."""
    names = ["matrix bfloat16", "matrix float32", "copy"]
    journal.write("rates", rates=rates.measure(CURRENT.device, names, CURRENT.quick), state={})


def run_case(function: Any, chosen: dict[str, Any], journal: Journal) -> None:
    """What pytest makes of a case, with a timer of our own."""
    # What a compiled forward lends to its backward must serve many backwards.
    functorch.donated_buffer = False
    function(partial(contest, journal), **chosen)


def contest(
    journal: Journal,
    build: Build,
    setup: Setup,
    *,
    sweep: tuple[str, float] | None = None,
    **options: Any,
) -> None:
    """Builds a case, compares what its sides compute, and times them in turn."""
    case = build(replace(setup, kinds=("peer", "forward", "floor")), **options)
    errors = compare(case)
    samples, rounds = timing.prepare(case.sides, setup.device, SECONDS, CURRENT.quick, apart=True)
    timing.race(case.sides, samples, rounds, setup.device)
    place = {"sweep": sweep[0], "x": sweep[1]} if sweep else {}
    journal.write("case", case=case.record(errors, samples) | place)


def compare(case: Case) -> dict[str, float]:
    """The errors of the sides against ours. One that cannot be compared, or that computes something
    else, is taken out and named among the missing.
    """
    base = next(side for side in case.sides if side.kind == "ours")
    errors, kept, bound = {}, [base], case.tolerance or TOLERANCE[case.dtype]
    for side in case.sides:
        if side is base:
            continue
        try:
            side.run()
            errors |= timing.errors([base, side])
        except Exception as error:
            case.missing[side.name] = reason(error)
            continue
        if errors.get(side.name, 0.0) <= bound:
            kept.append(side)
        else:
            error = errors.pop(side.name)
            case.missing[side.name] = (
                f"it computes something else: relative error {error:.2e}, the bound is {bound:.0e}"
            )
    case.sides = kept
    return errors
