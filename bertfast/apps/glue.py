"""``bertfast glue``: GLUE's tasks from local files with BERT's settings, and what its server takes.

The settings are those of Devlin et al., section 4.1: 3 epochs in batches of 32. Of four rates the
one that is best on the dev data is taken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bertfast.data.glue import (
    DIAGNOSTICS,
    MNLI,
    TASKS,
    TRAIN,
    GlueTask,
    Row,
    find_folder,
    find_task,
    read_rows,
)
from bertfast.data.labelled import Example
from bertfast.errors import BertfastError
from bertfast.files import check_new, make_folder, read_object, write_text
from bertfast.model import load_config
from bertfast.resolve import resolve
from bertfast.training.evaluate import evaluate
from bertfast.training.finetune import FinetuneConfig, finetune
from bertfast.training.predict import Predictor

RATES = (5e-5, 4e-5, 3e-5, 2e-5)
EPOCHS, BATCH, LENGTH = 3, 32, 128
SCORES, TABLE, SUBMISSION = "scores.json", "table.md", "submission"
WORDS = {
    "mcc": "Matthews",
    "accuracy": "accuracy",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
}


def glue(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = (),
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    max_length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str = "fp32",
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fine-tunes a model for GLUE's tasks.

    Args:
        model: folder or Hub id.
        data: folder with a folder for each task, in GLUE's own layout.
        out: folder of a model for each task, `SCORES`, `TABLE` and the files of `SUBMISSION`.
        tasks: names; none for all that ``data`` has.
        rates: of a run each; the best on the dev data is kept.
        epochs, batch_size, max_length, seed, device, precision: as of `FinetuneConfig`; a
            ``max_length`` of None is 128, or the model's positions.
        resume: go on where it was stopped.
        say: told what comes next, a line each.

    Returns:
        What `SCORES` holds: ``settings``, and of each task its scores on the dev data, the rate
        that was chosen and every rate's scores.

    Raises:
        BertfastError: an option or a file cannot be used, or a run fails.
        Interrupted: after a checkpoint; the same call with ``resume`` goes on.
    """
    data, out = Path(data), Path(out)
    work = out.with_name(f".{out.name}.glue")
    if not resume:
        check_new(out)
        if work.exists():
            raise BertfastError(f"{work}: has runs already; --resume them, or choose another --out")
    if not data.is_dir():
        raise BertfastError(f"{data}: is no folder; it must have a folder for each of GLUE's tasks")
    if not rates or len(set(rates)) < len(rates):
        raise BertfastError(f"lr is {list(rates)}; it must be one rate or several different ones")
    found = _found(data, tasks, say)
    config = load_config(resolve(model).folder)
    if max_length is not None and max_length > config.max_length:
        raise BertfastError(
            f"max-length is {max_length} and the model has {config.max_length} positions"
        )
    settings: dict[str, Any] = {
        "model": str(model),
        "epochs": epochs,
        "batch_size": batch_size,
        "max_length": max_length or min(LENGTH, config.max_length),
        "seed": seed,
        "precision": precision,
    }
    for rate in rates:
        FinetuneConfig(**settings, lr=rate, train="", dev="", out=str(out), device=device)
    made: dict[str, Any] = {"settings": {**settings, "rates": list(rates)}, "tasks": {}}
    if resume and (work / SCORES).is_file():
        before = read_object(work / SCORES)
        if before.get("settings") != made["settings"]:
            raise BertfastError(f"{work}: its runs have other settings; choose another --out")
        made = before
    for task, folder in found.items():  # a mistake in any file ends it before the first update
        for name in (TRAIN, *_files(task, folder, 0)):
            for _ in read_rows(folder / name, task, labelled=True):
                pass
    make_folder(work)
    for task, folder in found.items():
        if task.name not in made["tasks"]:
            own = work / task.name
            made["tasks"][task.name] = _run(task, folder, own, settings, rates, device, resume, say)
            _submit(task, data, folder, own / "model", work / SUBMISSION, device, precision)
            write_text(work / SCORES, json.dumps(made, indent=2) + "\n")
    return _finish(made, work, out)


def _found(data: Path, tasks: Sequence[str], say: Callable[[str], None]) -> dict[GlueTask, Path]:
    asked = [find_task(name) for name in tasks] or list(TASKS.values())
    found = {}
    for task in dict.fromkeys(asked):
        folder = find_folder(data, task)
        if folder is None and len(asked) == 1 and (data / TRAIN).is_file():
            folder = data
        if folder is None and tasks:
            raise BertfastError(f"{data}: has no folder {task.name} with a file {TRAIN}")
        if folder is None:
            say(f"{data} has no {task.name}")
            continue
        for dev, _ in task.parts.values():
            if not (folder / dev).is_file():
                raise BertfastError(f"{folder}: has no {dev}, which {task.name} needs")
        found[task] = folder
    if not found:
        raise BertfastError(f"{data}: has none of GLUE's tasks ({', '.join(TASKS)})")
    return found


def _files(task: GlueTask, folder: Path, kind: int) -> list[str]:
    """The dev (0) or the test files (1) that there are."""
    names = [files[kind] for files in task.parts.values()]
    return [name for name in names if (folder / name).is_file()]


def _run(
    task: GlueTask,
    folder: Path,
    work: Path,
    settings: dict[str, Any],
    rates: Sequence[float],
    device: str | None,
    resume: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Makes a run of each rate, and keeps the best one's model as ``model``."""
    make_folder(work)
    shutil.rmtree(work / "model", ignore_errors=True)  # of a stop before its scores were written
    left_out = _write(read_rows(folder / TRAIN, task, labelled=True), work / "train.jsonl")
    devs = {}
    for part, (dev, _) in task.parts.items():
        devs[part] = work / f"dev{part}.jsonl"
        left_out += _write(read_rows(folder / dev, task, labelled=True), devs[part])
    if left_out:
        say(f"{task.name}: {left_out} labelled rows without a text are left out")
    scores: dict[float, dict[str, float]] = {}
    for rate in rates:
        run = work / f"lr-{rate:g}"
        if not run.is_dir():
            say(f"{task.name}, rate {rate:g}")
            finetune(
                **settings,
                lr=rate,
                train=work / "train.jsonl",
                dev=next(iter(devs.values())),
                out=run,
                task="classification" if task.labels else "regression",
                metric_for_best="accuracy" if task.scores[0] == "f1" else task.scores[0],
                calibrate=False,
                device=device,
                resume=resume,
            )
        scores[rate] = {}
        for part, labelled in devs.items():
            values = _scores(task, evaluate(run, labelled, device=device))
            scores[rate] |= {f"{name}{part}": value for name, value in values.items()}
    first = next(iter(scores[rates[0]]))
    best = max(scores, key=lambda rate: scores[rate][first])
    os.replace(work / f"lr-{best:g}", work / "model")
    for rate in scores:
        shutil.rmtree(work / f"lr-{rate:g}", ignore_errors=True)
    return {
        "scores": scores[best],
        "rate": best,
        "each": {f"{rate:g}": values for rate, values in scores.items()},
    }


def _write(rows: Iterable[Row], path: Path) -> int:
    """Writes the labelled examples as JSON lines; returns how many have an empty text, which are
    left out.
    """
    empty = 0
    with open(path, "w", encoding="utf-8") as stream:
        for row in rows:
            if not row.text.strip() or (row.pair is not None and not row.pair.strip()):
                empty += 1
                continue
            texts = (
                {"sentence": row.text}
                if row.pair is None
                else {"sentence1": row.text, "sentence2": row.pair}
            )
            stream.write(json.dumps({**texts, "label": row.label}) + "\n")
    return empty


def _scores(task: GlueTask, found: dict[str, Any]) -> dict[str, float]:
    """GLUE's scores of an evaluation; its F1 is that of the label 1."""
    own = {row["label"]: row["f1"] for row in found.get("table", ())}
    return {name: own.get("1", 0.0) if name == "f1" else found[name] for name in task.scores}


def _submit(
    task: GlueTask,
    data: Path,
    folder: Path,
    model: Path,
    out: Path,
    device: str | None,
    precision: str,
) -> None:
    """Writes the file for GLUE's server of each test file that there is."""
    wanted = [
        (folder / test, f"{task.name}{part}")
        for part, (_, test) in task.parts.items()
        if (folder / test).is_file()
    ]
    if task is MNLI:
        wanted += [(data / name, "AX") for name in DIAGNOSTICS if (data / name).is_file()][:1]
    if not wanted:
        return
    make_folder(out)
    predictor = Predictor(model, device=device, precision=precision)
    for file, name in wanted:
        rows = list(read_rows(file, task, labelled=False))
        examples = [Example(n, row.text, row.pair) for n, row in enumerate(rows, 1)]
        made = (one for part in predictor.stream(examples) for one in part.predictions)
        lines = [
            f"{row.number}\t{_answer(task, prediction)}\n"
            for row, prediction in zip(rows, made, strict=True)
        ]
        write_text(out / f"{name}.tsv", "".join(["index\tprediction\n", *lines]))


def _answer(task: GlueTask, prediction: dict[str, Any]) -> str:
    if task.labels:
        return str(prediction["label"])
    return f"{min(max(prediction['score'], 0.0), 5.0):.3f}"


def _finish(made: dict[str, Any], work: Path, out: Path) -> dict[str, Any]:
    """Makes the result's folder of the finished runs."""
    names = [name for name in TASKS if name in made["tasks"]]
    made["tasks"] = {name: made["tasks"][name] for name in names}
    if len(names) == len(TASKS):
        means = [_mean(made["tasks"][name]["scores"].values()) for name in names]
        made["average"] = _mean(means)
    write_text(work / SCORES, json.dumps(made, indent=2) + "\n")
    write_text(work / TABLE, table(made))
    for name in names:
        for kept in work.glob(f"{name}/*.jsonl"):
            kept.unlink()
        if (work / name / "model").is_dir():
            os.replace(work / name / "model", work / f"{name}.model")
            (work / name).rmdir()
            os.replace(work / f"{name}.model", work / name)
    if out.is_dir():
        out.rmdir()
    os.replace(work, out)
    return made


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / len(given)


def table(made: dict[str, Any]) -> str:
    """The scores on the dev data in Markdown, in hundredths as the papers have them."""
    lines = ["| task | dev score | rate |", "| --- | --- | --- |"]
    for name, found in made["tasks"].items():
        said = []
        for score, value in found["scores"].items():
            kind, _, part = score.partition("-")
            said.append(f"{WORDS[kind]}{f' ({part})' if part else ''} {100 * value:.1f}")
        lines.append(f"| {name} | {', '.join(said)} | {found['rate']:g} |")
    if "average" in made:
        lines.append(f"| average | {100 * made['average']:.1f} | |")
    return "\n".join(lines) + "\n"
