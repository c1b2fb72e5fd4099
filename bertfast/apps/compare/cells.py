"""A cell of the table: one run, its scores on the test examples, and what it took."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast.errors import BertfastError
from bertfast.escape import visible
from bertfast.files import make_folder, read_object, whole_folder
from bertfast.scoring import LEVEL, draws
from bertfast.training.finetune import finetune, read_examples
from bertfast.training.predict import Predictor
from bertfast.training.trainer import Diverged

from .baselines import BASELINES, Said
from .meter import Meter
from .plan import RESULT, Cell, Plan

DRAWS, PREDICTIONS = "draws.npz", "predictions.json"
WIDEST = 300  # characters of a prediction that are kept


def run_cell(plan: Plan, cell: Cell, device: torch.device, shared: bool) -> None:
    """Makes the folder of a cell's result. A run that was stopped goes on.

    Args:
        plan: of the sheet.
        cell: to run.
        device: to run on.
        shared: other cells run beside it.

    Raises:
        BertfastError: the run cannot be made.
        Interrupted: after a checkpoint.
    """
    work = plan.out / "work" / cell.folder.name
    make_folder(work)
    with open(work / "log", "a", encoding="utf-8") as log, redirect_stderr(log):
        try:
            said, facts = (_baseline if cell.row.model is None else _model)(
                plan, cell, work, device, shared
            )
        except Diverged as error:
            said, facts = None, {"failed": str(error)}
        except torch.OutOfMemoryError:
            raise BertfastError(
                f"{cell.name}: there is not enough memory; lower batch_size or max_length"
            ) from None
    make_folder(cell.folder.parent)
    shutil.rmtree(cell.folder, ignore_errors=True)  # one that was left without its result
    with whole_folder(cell.folder) as folder:
        if said is not None:
            facts |= _scored(plan, said, folder)
        facts |= {
            "row": cell.row.name,
            "labels": cell.labels,
            "seed": cell.seed,
            "threads": torch.get_num_threads(),
            "device": str(device),
        }
        (folder / RESULT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)


def _baseline(
    plan: Plan, cell: Cell, work: Path, device: torch.device, shared: bool
) -> tuple[Said, dict[str, Any]]:
    baseline = BASELINES[cell.row.baseline or ""]
    examples = read_examples(cell.config)
    sources = cell.config.train, cell.config.dev or cell.config.train, plan.test_source
    with Meter(torch.device("cpu"), shared) as meter:
        said = baseline.run(
            examples.task, plan.shape, examples.train, examples.dev, plan.test, sources
        )
    return said, {"training": meter.values(), "train_examples": len(examples.train)}


def _model(
    plan: Plan, cell: Cell, work: Path, device: torch.device, shared: bool
) -> tuple[Said, dict[str, Any]]:
    folder = work / "model"
    summary = read_object(folder / "metrics.json", optional=True)
    training: dict[str, Any] = {}
    if not summary:
        options = {name: getattr(cell.config, name) for name in vars(cell.config)}
        for name in ("model", "train", "dev", "out"):
            del options[name]
        # What was done before it was stopped is in no meter.
        whole = not (work / ".model.run").exists()
        with Meter(device, shared) as meter:
            finetune(
                cell.config.model,
                cell.config.train,
                cell.config.dev,
                folder,
                resume=True,
                **{**options, "device": str(device)},
            )
        training = meter.values() if whole else {"peak_bytes": meter.peak_bytes}
        summary = read_object(folder / "metrics.json")
    training = {"peak_bytes": None, "joules": None, **training, "seconds": summary["seconds"]}
    predictor = Predictor(folder, device=str(device))
    with Meter(device, shared) as meter:
        outputs, inputs = predictor.run(plan.test, plan.test_source)
    facts = {
        "training": training,
        "prediction": meter.values(),
        "train_examples": summary["train_examples"],
        "parameters": sum(weight.numel() for weight in predictor.model.parameters()),
        "best_epoch": summary["best_epoch"],
        "history": summary["epochs"],
        "truncated": sum(item.truncated for item in inputs),
    }
    return Said(predictor.task, outputs, inputs), facts


def _scored(plan: Plan, said: Said, folder: Path) -> dict[str, Any]:
    """The scores of what was said, with intervals; writes each draw's scores, and each example's
    prediction.
    """
    task, outputs, inputs = said
    shape = plan.shape
    given = (outputs, inputs, plan.test, shape)
    scores = task.score(*given)
    scorer = task.scorer(*given)
    facts: dict[str, Any] = {
        "task": task.name,
        "scores": scores,
        "words": {name: words for name, words in task.scores.items() if name in scores},
        "test_examples": len(plan.test),
    }
    if scorer is not None:
        found = draws(scorer, len(plan.test), resamples=plan.sheet.resamples)
        kept = {name: found[name].astype(np.float32) for name in scores if name in found}
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        facts["intervals"] = {name: np.quantile(kept[name], ends).tolist() for name in kept}
        arrays: dict[str, Any] = {f"draws_{name}": values for name, values in kept.items()}
        arrays["each"] = task.each(*given)
        np.savez_compressed(folder / DRAWS, **arrays)
    shown = [visible(" ".join(task.shown(made).split()))[:WIDEST] for made in task.predict(*given)]
    text = json.dumps(shown, ensure_ascii=False)
    (folder / PREDICTIONS).write_text(text + "\n", encoding="utf-8")
    return facts
