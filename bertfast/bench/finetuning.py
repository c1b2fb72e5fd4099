"""``bertfast bench --finetune``: fine-tuning beside the `Trainer` of `transformers`.

Both sides get the same examples as the same tokens, the same settings, and the same scores of what
they say. Each run is a process of its own (``python -m bertfast.bench.finetuning``), so that its
memory is its own. Sides take turns, seed after seed, so that a drift of the machine meets them
alike. An epoch's time is of its updates alone: without tokenization, evaluation and checkpoints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import mean, median, stdev
from types import SimpleNamespace
from typing import Any

import torch

from bertfast import openmp
from bertfast.errors import BertfastError
from bertfast.files import make_folder, read_object, write_text
from bertfast.machine import describe_machine, versions
from bertfast.memory import peak_bytes, status_bytes
from bertfast.packed import PackedBatch
from bertfast.training.finetune import FinetuneConfig, finetune, prepare
from bertfast.training.precision import find_device
from bertfast.training.predict import Predictor
from bertfast.training.trainer import Callback

from .beside import SPINNING, policies

OURS = "bertfast"
# Of the Trainer: how it samples, by the side's name.
PEERS = {"Trainer": "random", "Trainer, group_by_length": "group_by_length"}
PER_TOKEN = ("ForTokenClassification", "ForQuestionAnswering")
TABLE = "table.md"
# Settings of a run that the Trainer has under another name.
ARGUMENTS = {
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "clip_norm": "max_grad_norm",
    "seed": "seed",
}
Found = dict[str, Any]


def measure(
    config: FinetuneConfig,
    out: Path,
    adapter: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Runs every side from every seed, and writes what it finds into a folder as it comes.

    The files are ``NAME.json``, by the name of the training data, and `TABLE`, of every such file
    there.

    Runs that the file has already, of the same settings, are not made again. What was measured when
    an interrupt ends it is in the file.

    Args:
        config: of our side; ``seeds`` says how many runs a side has, and ``out`` is left as it is.
        out: the folder.
        adapter: of another side of ours.
        say: told what comes next, a line each.

    Raises:
        BertfastError: `transformers` is not installed, a run fails, or the file is of other
            settings.
    """
    prepared = prepare(config)
    sides = (OURS, *([] if adapter is None else [f"{OURS}, {adapter}"]), *PEERS)
    if not hasattr(_transformers(), f"AutoModel{prepared.task.head}"):
        raise BertfastError(
            f"the task {prepared.task.name!r} has a head of its own, {prepared.task.head}; "
            "transformers has none like it"
        )
    if prepared.task.head == "ForMultipleChoice":
        raise BertfastError(
            "--finetune does not measure multiple choice: the Trainer has no collator for it"
        )
    make_folder(out)
    settings = asdict(prepared.config) | {"out": "", "seed": 0, "seeds": 1}
    file = out / f"{Path(config.train).name}.json"
    found = {
        "settings": settings,
        "first_score": next(iter(prepared.task.scores)),
        "scores": prepared.task.scores,
        "machine": describe_machine(find_device(config.device).type),
        "versions": versions(),
        "examples": [len(prepared.train.examples), len(prepared.dev.examples)],
        "inputs": [len(prepared.train.inputs), len(prepared.dev.inputs)],
        "tokens": sum(item.tokens for item in prepared.train.inputs),
        "runs": [],
    }
    # As JSON has it: a file's lists are no tuples.
    found = json.loads(json.dumps(found))
    if file.exists():
        before = read_object(file)
        differ = [
            name
            for name in settings
            if before.get("settings", {}).get(name) != found["settings"][name]
        ]
        if differ:
            raise BertfastError(
                f"{file}: was measured with another {', '.join(differ)}; choose another --out"
            )
        found = before
    done = {(run["side"], run["seed"]) for run in found["runs"]}
    seeds = range(config.seed, config.seed + config.seeds)
    for place, seed in enumerate(seeds):
        turn = place % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            if (side, seed) in done:
                continue
            say(f"seed {seed}, {side}")
            found["runs"].append({"side": side, "seed": seed} | _run(side, settings, seed))
            write_text(file, json.dumps(found, indent=1) + "\n")
            write_text(out / TABLE, page(out))
    return found


def _transformers() -> Any:
    try:
        import_module("accelerate")
        import transformers
    except ImportError as error:
        raise BertfastError(
            f"--finetune measures the Trainer of transformers, which needs {error.name}; install "
            "it with: pip install 'bertfast[bench]'"
        ) from None
    return transformers


def _run(side: str, settings: Mapping[str, Any], seed: int) -> Found:
    """One run in a process of its own.

    Raises:
        BertfastError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in openmp.READ}
    if side in PEERS:  # its threads wait as PyTorch's do where bertfast is not imported
        environment |= policies()[SPINNING]
    if "OMP_NUM_THREADS" in os.environ:
        environment["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    with tempfile.TemporaryDirectory() as folder:
        job = {"side": side, "settings": {**settings, "seed": seed, "out": f"{folder}/run"}}
        done = subprocess.run(
            [sys.executable, "-m", "bertfast.bench.finetuning"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise BertfastError(f"{side}, seed {seed}: ended with {done.returncode}: {last[0]}")
    answer: Found = json.loads(done.stdout.splitlines()[-1])
    return answer


class Times:
    """What is measured of a run while it trains.

    Attributes:
        epochs: seconds of each, its updates alone.
        evaluations: seconds of each.
        scores: of each evaluation.
        resident: bytes in memory after each.
    """

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.evaluations: list[float] = []
        self.scores: list[dict[str, float]] = []
        self.resident: list[int] = []
        self.since = 0.0

    def start(self) -> None:
        """An epoch begins."""
        self.since = time.perf_counter()

    def trained(self) -> None:
        """Its updates are made."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.epochs.append(now - self.since)
        self.since = now

    def evaluated(self, scores: dict[str, float]) -> None:
        """Its evaluation is done."""
        self.evaluations.append(time.perf_counter() - self.since)
        self.scores.append(scores)
        try:
            self.resident.append(status_bytes("VmRSS"))
        except (OSError, TypeError):
            self.resident.append(0)

    def report(self, first: str) -> Found:
        """As JSON; of the best evaluation by a score, all of its scores."""
        best = max(self.scores, key=lambda scores: scores[first])
        return {
            "epoch_seconds": self.epochs,
            "evaluation_seconds": self.evaluations,
            "scores": best,
            "resident_bytes": self.resident,
        }


class _Clock(Callback):
    """Times of our side."""

    def __init__(self, times: Times) -> None:
        self.times = times

    def on_start(self, trainer: Any, step: int) -> None:
        self.times.start()

    def before_evaluate(self, trainer: Any, step: int) -> None:
        self.times.trained()

    def on_evaluate(self, trainer: Any, step: int, scores: dict[str, float]) -> None:
        self.times.evaluated({name.removeprefix("dev_"): v for name, v in scores.items()})

    def on_checkpoint(self, trainer: Any, folder: Path) -> None:
        self.times.start()


def ours(config: FinetuneConfig) -> Found:
    """Our run."""
    times = Times()
    result = finetune(**vars(config), callbacks=[_Clock(times)])
    predictor = Predictor(result.out, device=config.device, precision=config.precision)
    examples = prepare(config).dev.examples
    begun = time.perf_counter()
    predictor.predict(examples)
    return times.report(next(iter(result.scores))) | {
        "prediction_seconds": time.perf_counter() - begun
    }


def theirs(config: FinetuneConfig, sampling: str) -> Found:
    """The Trainer's run, with dynamic padding.

    Args:
        config: of our side.
        sampling: how it orders examples.
    """
    transformers, prepared, times = _transformers(), prepare(config), Times()
    task, dev = prepared.task, prepared.dev
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.source.folder)
    shape = transformers.AutoConfig.from_pretrained(
        prepared.source.folder,
        **{
            name: prepared.shape.to_dict(None).get(name)
            for name in ("id2label", "label2id", "problem_type")
        },
    )
    transformers.set_seed(config.seed)
    model = getattr(transformers, f"AutoModel{task.head}").from_pretrained(
        prepared.source.folder, config=shape
    )
    collator = (
        transformers.DataCollatorForTokenClassification
        if task.head == "ForTokenClassification"
        else transformers.DataCollatorWithPadding
    )(tokenizer)

    def outputs_of(predictions: Any, inputs: Sequence[Any]) -> list[Any]:
        return task.outputs(_packed(predictions, inputs, task.head), inputs)

    def scores(found: Any) -> dict[str, float]:
        outputs = outputs_of(found.predictions, dev.inputs)
        return task.score(outputs, dev.inputs, dev.examples, prepared.shape)

    class Clock(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            times.start()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            times.trained()

        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            times.evaluated({name: metrics[f"eval_{name}"] for name in task.scores})

    known = transformers.TrainingArguments.__dataclass_fields__
    # Release 5 of transformers has one option in the place of group_by_length.
    grouped = (
        {"train_sampling_strategy": sampling}
        if "train_sampling_strategy" in known
        else {"group_by_length": sampling == "group_by_length"}
    )
    updates = -(-len(prepared.train.inputs) // (config.batch_size * config.accumulation))
    ratio = 0.1 if config.warmup_ratio is None else config.warmup_ratio
    warmup = config.warmup
    if warmup is None:
        warmup = max(1, round(ratio * updates * config.epochs)) if ratio else 0
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=config.out,
            warmup_steps=warmup,
            lr_scheduler_type="linear",
            per_device_eval_batch_size=config.batch_size,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=config.precision == "bf16",
            use_cpu=find_device(config.device).type == "cpu",
            **grouped,
            **{theirs: getattr(config, ours) for ours, theirs in ARGUMENTS.items()},
        ),
        train_dataset=_rows(task, prepared.train.inputs),
        eval_dataset=_rows(task, dev.inputs),
        data_collator=collator,
        compute_metrics=scores,
        callbacks=[Clock()],
    )
    trainer.train()
    begun = time.perf_counter()
    inputs = task.encode(dev.examples, prepared.tokenizer, prepared.shape, prepared.max_length)
    found = trainer.predict(_rows(task, inputs))
    task.predict(outputs_of(found.predictions, inputs), inputs, dev.examples, prepared.shape)
    return times.report(next(iter(task.scores))) | {
        "prediction_seconds": time.perf_counter() - begun
    }


def _rows(task: Any, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Inputs as the Trainer takes them."""
    return [_row(task.batch([item])) for item in inputs]


def _row(batch: PackedBatch) -> dict[str, Any]:
    row: dict[str, Any] = {
        "input_ids": batch.input_ids.tolist(),
        "token_type_ids": batch.segment_ids.tolist(),
        "attention_mask": [1] * batch.num_tokens,
    }
    if batch.token_labels is not None:
        row["labels"] = batch.token_labels.tolist()
    elif batch.labels is not None:
        row["labels"] = batch.labels[0].tolist()
    for name in ("start_positions", "end_positions"):
        places = getattr(batch, name)
        if places is not None:
            row[name] = places[0].item()
    return row


def _packed(predictions: Any, inputs: Sequence[Any], head: str) -> SimpleNamespace:
    """What the Trainer predicts of inputs, as a model gives it of a packed batch."""

    def rows(values: Any) -> torch.Tensor:
        if head not in PER_TOKEN:
            return torch.as_tensor(values)
        kept = [row[: item.tokens] for row, item in zip(values, inputs, strict=True)]
        return torch.cat([torch.as_tensor(row) for row in kept])

    if head == "ForQuestionAnswering":
        start, end = map(rows, predictions)
        return SimpleNamespace(start_logits=start, end_logits=end)
    return SimpleNamespace(logits=rows(predictions))


def summary(found: Found) -> dict[str, Found]:
    """Of each side, medians over runs and each score's mean and spread.

    The medians are of the seconds of an epoch, an evaluation and the prediction. With them come the
    highest peak and the growth of the side's memory.

    The first epoch is left out where there are others: it has the warm-up of every library.
    """
    made = {}
    for side in dict.fromkeys(run["side"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["side"] == side]
        first = [run["scores"][found["first_score"]] for run in runs]
        peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
        made[side] = {
            "runs": len(runs),
            "epoch": median([s for run in runs for s in _later(run["epoch_seconds"])]),
            "evaluation": median([s for run in runs for s in _later(run["evaluation_seconds"])]),
            "prediction": median([run["prediction_seconds"] for run in runs]),
            "peak_bytes": max(peaks) if peaks else None,
            "growth_bytes": max(
                (_later(run["resident_bytes"])[-1] - _later(run["resident_bytes"])[0])
                for run in runs
            ),
            "score": mean(first),
            "spread": stdev(first) if len(first) > 1 else 0.0,
            "each": first,
        }
    return made


def _later(values: Sequence[Any]) -> Sequence[Any]:
    return values[1:] or values


HEADINGS = (
    "data",
    "side",
    "epoch, s",
    "over ours",
    "evaluation, s",
    "over ours",
    "prediction, s",
    "over ours",
    "peak, MiB",
    "score",
    "each seed",
)


def rows_of(found: Found) -> list[list[str]]:
    """The table's rows, under `HEADINGS`."""
    sides = summary(found)
    own = sides.get(OURS)
    name, words = Path(found["settings"]["train"]).name, found["scores"][found["first_score"]]
    rows = []
    for side, values in sides.items():
        times = []
        for part in ("epoch", "evaluation", "prediction"):
            over = "" if side == OURS or own is None else f"{values[part] / own[part]:.2f}x"
            times += [f"{values[part]:.2f}", over]
        peak = "?" if values["peak_bytes"] is None else f"{values['peak_bytes'] / 2**20:,.0f}"
        score = f"{words} {values['score']:.4f} ± {values['spread']:.4f}"
        each = ", ".join(f"{value:.4f}" for value in values["each"])
        rows.append([name, side, *times, peak, score, each])
    return rows


def page(folder: Path) -> str:
    """The Markdown table of every measurement in a folder."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for file in sorted(folder.glob("*.json")):
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(read_object(file))]
    return "\n".join(lines) + "\n"


def show(found: Found) -> None:
    """Prints a paragraph for each side."""
    for _, side, *cells in rows_of(found):
        print(side)
        for name, value in zip(HEADINGS[2:], cells, strict=True):
            if value:
                print(f"    {name:<14} {value}")


def work(job: Found) -> Found:
    """One run, and the memory that it needed beyond what the libraries hold."""
    side, settings = job["side"], job["settings"]
    if adapter := side.removeprefix(OURS).removeprefix(", ") if side not in PEERS else "":
        settings = {**settings, "adapter": adapter}
    config = FinetuneConfig(**settings)
    device = find_device(config.device).type
    if side in PEERS:
        _transformers().Trainer  # noqa: B018 (imports what it needs)
    answer: Found = {}

    def run() -> None:
        answer.update(theirs(config, PEERS[side]) if side in PEERS else ours(config))

    answer["peak_bytes"] = peak_bytes(run, device)
    return answer


if __name__ == "__main__":
    print(json.dumps(work(json.load(sys.stdin))))
