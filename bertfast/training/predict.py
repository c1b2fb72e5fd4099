"""Predictions of a fine-tuned model, whatever its task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bertfast.data import labelled
from bertfast.data.columns import Columns
from bertfast.data.readers import stream_lines
from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.model import load
from bertfast.packed import runs_of_tokens
from bertfast.resolve import resolve
from bertfast.tasks import TASKS, Classification, Task, task_of
from bertfast.tasks.registry import KEPT, named_options
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer

from .precision import find_device, inference_dtype

BATCH_TOKENS = 16384
AT_ONCE = 4096  # examples that a stream of predictions holds


class Predictor:
    """A fine-tuned model with its task and its tokenizer.

    Attributes:
        task: that it was trained for.
        max_length: tokens of an input at most: the tokenizer's ``model_max_length``, the model's
            positions where that is more or absent.
        columns: of the training data.

    Args:
        folder: as `bertfast finetune` wrote it, or any folder or Hub id of a model with a head
            that a task has, and a tokenizer.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        precision: "fp32", "bf16" or "fp16".
        task_options: of the task, in place of those that it was trained with.

    Raises:
        BertfastError: the folder cannot be read, its task is not registered, or its model has no
            head of a task.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | None = None,
        precision: str = "fp32",
        task_options: Mapping[str, Any] | Sequence[str] = (),
    ) -> None:
        self.device, dtype = find_device(device), inference_dtype(precision)
        folder = resolve(folder).folder
        settings = read_object(folder / "metrics.json", optional=True).get("settings")
        settings = settings if isinstance(settings, dict) else {}
        name, options = settings.get("task"), settings.get("task_options")
        if name is None:
            model = load(folder)
            self.task = task_of(model, folder)
        elif isinstance(name, str) and name in TASKS:
            self.task = TASKS[name]
            model = self.task.load(folder)
        else:
            raise BertfastError(
                f"{folder}: was trained for the task {name!r}, "
                f"and registered are {', '.join(TASKS)}; import the file that registers it first"
            )
        if not self.task.serves(model):
            raise BertfastError(
                f"{folder}: is a {type(model).__name__}, which is no model for {self.task.name}"
            )
        self.task = self.task.configured(
            {**(options if isinstance(options, dict) else {}), **named_options(task_options)},
            read_object(folder / KEPT, optional=True),
        ).of_model(model.config)
        self.model = model.to(self.device, dtype)
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(self.tokenizer, model.config, f"{folder}: the tokenizer")
        SpecialIds(self.tokenizer, folder)
        # What training cut texts to is what predictions cut them to.
        longest = read_object(folder / "tokenizer_config.json", optional=True).get(
            "model_max_length"
        )
        positions = model.config.max_length
        self.max_length = (
            min(int(longest), positions)
            if isinstance(longest, (int, float)) and longest >= 4
            else positions
        )
        self.columns = Columns(*(settings.get(f"{name}_column") for name in Columns._fields))

    def read(
        self, file: str | Path, text_column: str | None = None, pair_column: str | None = None
    ) -> list[Any]:
        """The examples of a file without labels; see `reader`."""
        return list(self.reader(file, text_column, pair_column)())

    def reader(
        self, file: str | Path, text_column: str | None = None, pair_column: str | None = None
    ) -> Callable[[], Iterator[Any]]:
        """A function that gives the examples of a file without labels, one after another.

        The file is a table, or plain text with an example a line. "-" is standard input.

        Raises:
            BertfastError: the file cannot be used.
        """
        path, pair = Path(file), pair_column or self.columns.pair
        if str(file) != "-" and self.task.reads(path):
            columns = self.task.columns(path, Columns(text_column, pair_column), self.columns)
            return lambda: self.task.stream(path, columns._replace(label=None))
        if pair is not None or text_column is not None:
            raise BertfastError(
                f"{'standard input' if str(file) == '-' else file} has no columns, and "
                f"{pair or text_column!r} is one; give a .tsv, .csv or .jsonl file"
            )
        return lambda: (
            self.task.of_text(number, line)
            for number, line in enumerate(stream_lines(str(file)), 1)
        )

    def run(
        self, examples: Sequence[Any], source: str | Path | None = None
    ) -> tuple[list[Any], list[Any]]:
        """What the model says of each input of the examples, and the inputs.

        These have targets where ``source``, the labels' file, is given. Inputs beyond
        ``max_length`` tokens are cut.
        """
        config = self.model.config
        inputs = self.task.encode(examples, self.tokenizer, config, self.max_length, source)
        return outputs_of(self.task, self.model, inputs, self.device), inputs

    def predict(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """The task's prediction for each example, in their order."""
        outputs, inputs = self.run(examples)
        return self.task.predict(outputs, inputs, examples, self.model.config)

    def stream(self, examples: Iterable[Any]) -> Iterator[Made]:
        """The predictions for any number of examples, in their order, `AT_ONCE` in memory at most.
        A `Made` at a time: its examples, its predictions, and how many inputs were cut.
        """
        remaining = iter(examples)
        while chunk := list(islice(remaining, AT_ONCE)):
            outputs, inputs = self.run(chunk)
            made = self.task.predict(outputs, inputs, chunk, self.model.config)
            yield Made(chunk, made, sum(item.truncated for item in inputs))


class Made(NamedTuple):
    """Some examples, their predictions, and how many of their inputs were cut."""

    examples: list[Any]
    predictions: list[dict[str, Any]]
    truncated: int


@torch.no_grad()
def outputs_of(task: Task, model: Any, inputs: Sequence[Any], device: torch.device) -> list[Any]:
    """What a model in evaluation mode says of each input, as `Task.outputs` gives it."""
    found: dict[int, Any] = {}
    for rows in batches_by_length(inputs):
        chosen = [inputs[row] for row in rows]
        output = task.run(model, task.batch(chosen).to(device))
        found |= zip(rows, task.outputs(output, chosen), strict=True)
    return [found[row] for row in range(len(inputs))]


def batches_by_length(inputs: Sequence[Any]) -> list[list[int]]:
    """Rows, the shortest first, cut into batches of `BATCH_TOKENS` tokens. Alike lengths together
    take about the same time on every thread.
    """
    lengths = [item.tokens for item in inputs]
    order = sorted(range(len(inputs)), key=lengths.__getitem__)
    runs = runs_of_tokens((lengths[row] for row in order), BATCH_TOKENS)
    return [order[run] for run in runs]


@dataclass(frozen=True)
class Prediction:
    """The likeliest label, each label's probability, and whether the input was cut."""

    label: str
    probabilities: dict[str, float]
    truncated: bool


class Classifier:
    """A classification model with its tokenizer.

    Attributes:
        max_length: tokens of an input at most; see `Predictor`.

    Args:
        folder: as `bertfast finetune` wrote it, or any folder or Hub id of a
            ForSequenceClassification model with a tokenizer.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        BertfastError: the folder cannot be read, or its model is for another task.
    """

    def __init__(
        self, folder: str | Path, *, device: str | None = None, precision: str = "fp32"
    ) -> None:
        self.predictor = Predictor(folder, device=device, precision=precision)
        self.model, self.max_length = self.predictor.model, self.predictor.max_length
        if not isinstance(self.predictor.task, Classification):
            kind = self.model.config.problem_type or self.predictor.task.name
            raise BertfastError(
                f"{folder}: is a model for {kind}; one that chooses between labels is wanted"
            )

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None
    ) -> list[Prediction]:
        """Labels texts, or pairs of texts, in their order; inputs beyond ``max_length`` tokens are
        cut.
        """
        examples = [
            labelled.Example(number, text, pair)
            for number, (text, pair) in enumerate(
                zip(texts, pairs or [None] * len(texts), strict=True), 1
            )
        ]
        outputs, inputs = self.predictor.run(examples)
        made = self.predictor.task.predict(outputs, inputs, examples, self.model.config)
        return [
            Prediction(**values, truncated=item.truncated)
            for values, item in zip(made, inputs, strict=True)
        ]
