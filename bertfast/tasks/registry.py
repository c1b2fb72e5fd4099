"""What a task is, and the registry that the command line reads.

An own task is a subclass of `Task` that is registered; those here use nothing else.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data import labelled
from bertfast.data.columns import NONE, Columns
from bertfast.errors import BertfastError
from bertfast.escape import one_line
from bertfast.model import PreTrainedModel, load, member_class
from bertfast.packed import PackedBatch
from bertfast.registry import Registry
from bertfast.scoring import Scorer, alone, scores_of

DEFAULT = "classification"  # of labels that no other task claims
KEPT = "task.json"
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Task:
    """How labelled examples are read, encoded and scored, which head they need, and what is saved.

    The methods are in the order in which they are called. Those that a task leaves out serve a
    table of texts, or of pairs of texts, with a column of labels.

    Attributes:
        name: on the command line.
        summary: a few words of help.
        options: what ``--task-option`` may set, each with its default.
        kept: what `fit` chose; of a folder, what it keeps.
        scores: the words that a person reads for each score, by its name. The first decides which
            epoch is the best one: that with the highest.
        lowest: likewise what its scorer gives beside them, the best of which is the lowest.
        classes: "one" or "several" of a row, where the logits are of classes; None elsewhere.
        head: class of the model, without its member.
        pipeline: the Hub's tag of the task, for the model card; None for none.
        usage: arguments of the inference script, and of ``pipeline(...)`` ("" where `transformers`
            has no such pipeline), as examples.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options: Mapping[str, Any] = MappingProxyType({})
    kept: Mapping[str, Any] = MappingProxyType({})
    scores: ClassVar[dict[str, str]]
    lowest: ClassVar[dict[str, str]] = {}
    classes: ClassVar[str | None] = None
    head: ClassVar[str] = "ForSequenceClassification"
    pipeline: ClassVar[str | None] = None
    usage: ClassVar[tuple[str, str]] = ('"some text" "another"', '"some text"')

    def configured(
        self, options: Mapping[str, Any] | None = None, kept: Mapping[str, Any] | None = None
    ) -> Self:
        """This task with some of its options set, as values or as their texts, and with what a
        folder keeps of it.

        Raises:
            BertfastError: it has no such option, or the value is of another type.
        """
        made = copy.copy(self)
        values = {name: _option(self, name, value) for name, value in (options or {}).items()}
        made.options, made.kept = {**self.options, **values}, {**self.kept, **(kept or {})}
        return made

    def recognizes(self, path: Path) -> bool:
        """Whether a file is of this task alone, by its name or its first rows."""
        return False

    def reads(self, path: Path) -> bool:
        """Whether `read` takes a file of this name; others are plain text, an example a line."""
        return labelled.is_task_file(path)

    def columns(self, path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
        """The columns of a file: those given, those that a model was trained with, and what is
        found for the rest. The dev data has those of the training data.
        """
        return labelled.find_columns(path, columns, trained)

    def read(self, path: str | Path, columns: Columns, labels: bool = True) -> list[Any]:
        """The examples of a file; without ``labels``, those that predictions are wanted of.

        Raises:
            BertfastError: the file cannot be used; it is named with the row.
        """
        return list(labelled.read_task(path, *columns, require_labels=labels, lists=True))

    def stream(self, path: str | Path, columns: Columns) -> Iterator[Any]:
        """The examples of a file that predictions are wanted of, one after another.

        So a file may be of any length. A task with a `read` of its own has it whole in memory,
        unless it has a `stream` too.

        Raises:
            BertfastError: the file cannot be used; it is named with the row.
        """
        if type(self).read is not Task.read:
            return iter(self.read(path, columns, labels=False))
        return labelled.stream_task(path, *columns, require_labels=False, lists=True)

    def of_text(self, line: int, text: str) -> Any:
        """The example of a line of plain text.

        Raises:
            BertfastError: an example of the task is more than a text.
        """
        return labelled.Example(line, text)

    def of_arguments(self, arguments: Sequence[str]) -> list[Any]:
        """The examples that the arguments of the inference script are."""
        return [self.of_text(number, text) for number, text in enumerate(arguments, 1)]

    def fits(self, examples: Sequence[Any]) -> bool:
        """Whether the labels of a table can be of this task alone, so that nobody need name it."""
        return False

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        """The model's configuration with the labels of the training examples.

        Raises:
            BertfastError: the labels are of another task.
        """
        return config

    def of_model(self, config: EncoderConfig) -> Self:
        """This task for a model of that configuration, whose labels may decide what it is."""
        return self

    def targets(
        self, examples: Sequence[Any], config: EncoderConfig, source: str | Path
    ) -> list[Any]:
        """What is to be predicted of each example, as `PackedBatch.labels` holds it.

        Raises:
            BertfastError: a label cannot be used; its row is named.
        """
        raise NotImplementedError

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: EncoderConfig,
        max_length: int,
        source: str | Path | None = None,
    ) -> list[Any]:
        """The model's inputs, each with its ``tokens`` and whether it was ``truncated``.

        Args:
            examples: as `read` gave them. One may become several inputs.
            tokenizer: of the model.
            config: of the model.
            max_length: tokens of an input at most.
            source: of the labels, for errors; None where there are no labels.
        """
        texts, pairs = [row.text for row in examples], [row.pair for row in examples]
        inputs = labelled.encode(tokenizer, texts, pairs, max_length)
        if source is None:
            return inputs
        return [
            replace(item, target=target)
            for item, target in zip(inputs, self.targets(examples, config, source), strict=True)
        ]

    def build(self, config: EncoderConfig) -> PreTrainedModel:
        """A new model of the head's class."""
        return member_class(config, self.head)(config)

    def batch(self, inputs: Sequence[Any]) -> PackedBatch:
        """Inputs packed, with their targets where they have one."""
        targets = [item.target for item in inputs]
        return PackedBatch.from_sequences(
            [item.ids for item in inputs],
            [item.segments for item in inputs],
            None if None in targets else targets,
        )

    def run(self, model: Any, batch: PackedBatch, seed: int | Tensor | None = None) -> Any:
        """The model's output, which has a ``loss`` where the batch has targets."""
        return model(batch, seed=seed)

    def outputs(self, output: Any, inputs: Sequence[Any]) -> list[Any]:
        """What `run` gave of each input: the rows of its logits."""
        return list(output.logits.float().cpu())

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer | None:
        """Each of `scores` as a function of how often each example counts, (draws, examples).

        It follows from what the model said of the examples' inputs, and bootstrap intervals are
        made of it. More scores than those of `scores` may be in it. `mean_of`, `sums_of` and the
        others of `bertfast.scoring` make one; None gives the task no intervals, and it has a
        `score` of its own then.
        """
        return None

    def score(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, float]:
        """The value of each of `scores`, from what the model said of the inputs of the examples."""
        scorer = self.scorer(outputs, inputs, examples, config)
        if scorer is None:
            raise NotImplementedError
        found = scores_of(scorer, len(examples))
        return {name: float(found[name]) for name in self.scores}

    def report(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """What else an evaluation says, as JSON.

        It has ``table``, a row for each label as `LabelTable` gives it, ``confusion``, as
        `confusion` gives it, ``calibration``, or a task's own.
        """
        return {}

    def each(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> NDArray[np.float64] | None:
        """How good each example's prediction is by itself, (examples,): the first score of it
        alone. None where the task has no scorer.
        """
        scorer = self.scorer(outputs, inputs, examples, config)
        return None if scorer is None else alone(scorer, len(examples))[next(iter(self.scores))]

    def stratum(self, example: Any) -> Hashable:
        """What is to be spread evenly over the parts of a file, as the label."""
        return None

    def class_targets(self, inputs: Sequence[Any]) -> list[Any]:
        """The class numbers, or the lists of 0 and 1, that `ClassLoss` is given of inputs."""
        return [item.target for item in inputs]

    def temperature(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> float | None:
        """What the logits are to be divided by, so that the probabilities are what they say; None
        to leave them.
        """
        return None

    def fit(
        self,
        outputs: Sequence[Any],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """What is chosen on the dev data when training is done, as a threshold.

        It is JSON that the folder keeps as `KEPT`, and that `kept` holds from then on.
        """
        return {}

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """A prediction for each example, which `bertfast predict` writes as JSON."""
        raise NotImplementedError

    def echo(self, example: Any) -> dict[str, Any]:
        """What a written prediction repeats of its example."""
        return {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})

    def wanted(self, example: Any) -> str:
        """What is right of a labelled example, in a few words."""
        label = example.label
        return ", ".join(map(one_line, label)) if isinstance(label, tuple) else one_line(label)

    def shown(self, prediction: dict[str, Any]) -> str:
        """A prediction in a few words, between tabs."""
        return "\t".join(one_line(value) for value in prediction.values())

    def files(self, config: EncoderConfig) -> dict[str, str]:
        """Small text files for the folder of the result, by name."""
        return {}

    def load(self, folder: str | Path) -> PreTrainedModel:
        """The model of a folder that fine-tuning wrote."""
        return load(folder)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether a model can be of this task."""
        return isinstance(model, member_class(model.config, self.head))

    def said(
        self,
        scores: Mapping[str, float],
        intervals: Mapping[str, Sequence[float]] | None = None,
    ) -> list[str]:
        """Each score that there is with its words, and its interval where it has one."""
        ends = {
            name: f" [{low:.4f}, {high:.4f}]" for name, (low, high) in (intervals or {}).items()
        }
        return [
            f"{words} {scores[name]:.4f}{ends.get(name, '')}"
            for name, words in self.scores.items()
            if name in scores
        ]


TASKS: Registry[Task] = Registry("task", needs={"scores": "the first chooses the best epoch"})
register_task = TASKS.register
"""Makes a subclass of `Task` known under its name; a decorator. See `Registry.register`."""


def named_options(options: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The options of a task by name.

    Raises:
        BertfastError: one is no "name=value".
    """
    if isinstance(options, Mapping):
        return dict(options)
    pairs = [str(option).partition("=") for option in options]
    for name, equals, _ in pairs:
        if not equals:
            raise BertfastError(f"task-option is {name!r}; it must be NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _option(task: Task, name: str, value: Any) -> Any:
    """The value of an option, of its default's type."""
    if name not in task.options:
        known = ", ".join(f"{key} ({default})" for key, default in task.options.items())
        raise BertfastError(
            f"the task {task.name!r} has no option {name!r}; "
            + (f"its options, and their defaults, are {known}" if known else "it has none")
        )
    kind = type(task.options[name])
    try:
        if isinstance(value, str) and kind is not str:
            value = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
    except (KeyError, ValueError, OverflowError):
        pass
    raise BertfastError(
        f"the option {name} of the task {task.name!r} is {value!r}; it must be {KINDS[kind]}"
    )


def recognize_task(path: str | Path) -> Task | None:
    """The one task that a file is of by its name or its first rows, which is said on standard
    error.

    None where the labels are to say it.

    Raises:
        BertfastError: it can be of several.
    """
    return _only([task for task in TASKS.values() if task.recognizes(Path(path))], path)


def infer_task(examples: Sequence[Any], source: str | Path) -> Task:
    """The one task that the examples' labels can be of; it is said on standard error.

    Raises:
        BertfastError: they can be of several.
    """
    return _only([task for task in TASKS.values() if task.fits(examples)], source) or TASKS[DEFAULT]


def _only(found: Sequence[Task], source: str | Path) -> Task | None:
    if len(found) > 1:
        names = " and ".join(repr(task.name) for task in found)
        raise BertfastError(f"{source}: its labels fit the tasks {names}; give --task")
    if not found:
        return None
    print(
        f"bertfast: {source}: the task is {found[0].name} ({found[0].summary}); "
        "--task names another",
        file=sys.stderr,
    )
    return found[0]


def task_of(model: PreTrainedModel, folder: str | Path) -> Task:
    """The task of a model that names none.

    Raises:
        BertfastError: no task has a model like it.
    """
    for task in TASKS.values():
        if task.serves(model):
            return task
    kind = model.config.problem_type
    raise BertfastError(
        f"{folder}: is a {type(model).__name__}{f' for {kind}' if kind else ''}, "
        f"which has no head of a task ({', '.join(TASKS)}); fine-tune it first (bertfast finetune)"
    )
