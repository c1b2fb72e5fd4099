"""Part 4: which tile sizes are the fastest here, and the step with them.

All candidates are compiled first, by many processes at once, which also tells what each one costs.
Those that are worth it are then measured, one process alone. What is found is in the journal, for
``kernels/configs``, and in a cache file, with which the last stage measures the step again.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bertfast import kernels
from bertfast.apps import tune
from bertfast.bench import timing
from bertfast.kernels import tuning

from ..settings import CURRENT, Settings
from .items import Item
from .journal import Journal
from .step import our_items, shapes

CHUNKS = 16  # of an op's candidates, which are compiled in turn
DTYPE = torch.bfloat16
TOKENS = 16384
QUICK_VOCAB, QUICK_TOKENS = 150, {"attention": 256}


def items(settings: Settings) -> list[Item]:
    """Compiling, measuring, and the step."""
    found, chunks = [], 1 if settings.quick else CHUNKS
    for op in tune.PROBLEMS:
        for chunk in range(chunks):
            run = partial(compile_chunk, op, chunk, chunks)
            found.append(Item(f"compiling {op}, {chunk + 1} of {chunks}", run, seconds=180))
        found.append(Item(f"tuning {op}", partial(tune_op, op), stage=1, seconds=150))
    for shape in shapes(settings.quick):
        found += our_items(shape, settings.quick, stage=2, tuned=True)
    return found


def problems(op: str) -> list[tune.Problem]:
    """The op's kernels at work at BERT-base's size; of a try, with a candidate each."""
    device = torch.device(CURRENT.device)
    if device.type == "cuda":
        return list(tune.PROBLEMS[op](DTYPE, device, 64, 768, TOKENS))
    tune.VOCAB = QUICK_VOCAB
    made = tune.PROBLEMS[op](DTYPE, device, 16, 24, QUICK_TOKENS.get(op, 16))
    return [replace(problem, grid=problem.grid[:1]) for problem in made]


def compile_chunk(op: str, chunk: int, chunks: int, journal: Journal) -> None:
    """Compiles every so many-th candidate, and writes what each costs."""
    with kernels.use_backend("triton"):
        for problem in problems(op):
            grid = problem.grid[chunk::chunks]
            for candidate, cost in zip(grid, tune.compile_costs(problem, grid), strict=True):
                row = {"kernel": problem.kernel, "candidate": candidate, "cost": asdict(cost)}
                journal.write("cost", **row)


def tune_op(op: str, journal: Journal) -> None:
    """Measures the candidates of an op's kernels, and keeps the fastest."""
    device = torch.device(CURRENT.device)
    known = {
        (line["kernel"], _key(line["candidate"])): tune.Cost(**line["cost"])
        for line in journal.lines()
        if line["what"] == "cost"
    }

    def measure(run: Any) -> float:
        return timing.median_seconds(run, CURRENT.device, tune.MEASURED_SECONDS, CURRENT.quick)

    with kernels.use_backend("triton"):
        for problem in problems(op):
            key, usual = tuning.default(problem.kernel, DTYPE, device, problem.size)
            # One that was not reached in the time for compiling is measured all the same.
            costs = [
                known.get((problem.kernel, _key(candidate)), tune.Cost())
                for candidate in problem.grid
            ]
            found = tune.search(problem, DTYPE, usual, measure, costs)
            if device.type == "cuda":
                tuning.save(problem.kernel, key, found.options, torch.cuda.current_device())
            journal.write(
                "tuned",
                kernel=problem.kernel,
                key=key,
                options=dict(found.options),
                usual=dict(usual),
                seconds=found.seconds,
                usual_seconds=found.usual_seconds,
                tried=len(problem.grid) - found.left_out,
                left_out=found.left_out,
                source=tuning.source(problem.kernel),
            )


def _key(candidate: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(candidate.items()))
