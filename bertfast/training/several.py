"""Several fine-tuning runs for one result: a run for each fold of the data, or for each seed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast.errors import BertfastError
from bertfast.files import make_folder, read_object, write_text

from .checkpoint import locked
from .trainer import Diverged

if TYPE_CHECKING:
    from .finetune import FinetuneConfig

SUMMARY, INPUTS = "metrics.json", "inputs.json"
Run = Callable[["FinetuneConfig", bool], object]


@dataclass(frozen=True)
class Runs:
    """Finished runs and those that failed.

    Attributes:
        kind: "fold" or "seed".
        summaries: what each ``metrics.json`` holds, by the run's name, as "fold 2".
        failed: the error of each run that failed.
        chosen: the name of the run whose model is kept.
    """

    kind: str
    summaries: dict[str, dict[str, Any]]
    failed: dict[str, str]
    chosen: str

    def report(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Of each score the mean, the standard deviation (of a sample) and each run's value; the
        runs that failed; the run that was chosen.

        Args:
            names: of the scores.
        """
        scores = {}
        for name in names:
            each = {run: found[f"dev_{name}"] for run, found in self.summaries.items()}
            values = list(each.values())
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            scores[name] = {"mean": float(np.mean(values)), "spread": spread, "each": each}
        return {"by": self.kind, "scores": scores, "failed": self.failed, "chosen": self.chosen}


def configs_of(config: FinetuneConfig) -> tuple[str, dict[str, FinetuneConfig]]:
    """The kind of the runs, and the settings of each by its name; none where one run is all."""
    if config.folds is not None and config.fold is None:
        numbers = range(1, config.folds + 1)
        return "fold", {f"fold {fold}": replace(config, fold=fold) for fold in numbers}
    if config.seeds > 1:
        numbers = range(config.seed, config.seed + config.seeds)
        return "seed", {f"seed {seed}": replace(config, seed=seed, seeds=1) for seed in numbers}
    return "", {}


@contextmanager
def finished(
    config: FinetuneConfig,
    run: Run,
    value_of: Callable[[Mapping[str, Any]], float],
    inputs: Mapping[str, str],
    resume: bool,
) -> Iterator[tuple[Runs, Path]]:
    """Makes the runs of `configs_of`, and gives the runs and the folder of the chosen one.

    Each is in a hidden folder beside the result's, where a resume finds it. The hidden folder goes
    with success.

    Args:
        config: of all.
        run: makes the run of one configuration; the second argument is whether to resume it.
        value_of: of what a ``metrics.json`` holds, the number that the best run has most of.
        inputs: digests of what decides the runs; a resume refuses others.
        resume: go on from the runs that are there.

    Raises:
        BertfastError: a run cannot be made, or the loss of every run became NaN. Or there are runs
            already, and ``resume`` is False or the inputs are others.
    """
    target = Path(config.out).absolute()
    work = target.with_name(f".{target.name}.runs")
    kept = work / INPUTS
    if kept.is_file():
        if not resume:
            raise BertfastError(f"{work}: has runs already; choose another --out, or --resume them")
        before = read_object(kept)
        changed = [name for name, digest in inputs.items() if before.get(name) != digest]
        if changed:
            raise BertfastError(
                f"{work}: the {' and the '.join(changed)} changed since its runs were made; put "
                "back what it was, or start anew with another --out"
            )
    make_folder(work)
    kind, configs = configs_of(config)
    summaries: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with locked(work):
        try:
            for name, settings in configs.items():
                folder = work / name.replace(" ", "-")
                if not (folder / SUMMARY).is_file():
                    print(f"bertfast: {name}, of {len(configs)} {kind}s", file=sys.stderr)
                    try:
                        run(replace(settings, out=str(folder)), resume)
                    except Diverged as error:
                        failed[name] = str(error)
                        print(f"bertfast: {name} failed: {error}", file=sys.stderr)
                        if len(failed) == len(configs):
                            raise
                        continue
                write_text(kept, json.dumps(inputs) + "\n")
                summaries[name] = read_object(folder / SUMMARY)
        except BaseException as error:
            # An interrupted run has checkpoints to go on from.
            if isinstance(error, BertfastError) and not kept.is_file():
                shutil.rmtree(work, ignore_errors=True)
            elif not kept.is_file():
                write_text(kept, json.dumps(inputs) + "\n")
            raise
        chosen = max(summaries, key=lambda name: value_of(summaries[name]))
        yield Runs(kind, summaries, failed, chosen), work / chosen.replace(" ", "-")
    shutil.rmtree(work, ignore_errors=True)
