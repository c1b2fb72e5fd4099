"""What a sheet comes to: its data, its models and its cells, each checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bertfast.apps import corpus
from bertfast.config import BertConfig, EncoderConfig
from bertfast.data.columnar import data_files
from bertfast.data.readers import read_documents
from bertfast.errors import BertfastError
from bertfast.files import check_file, file_sha256, make_folder, whole_folder, write_text
from bertfast.model import load_config
from bertfast.resolve import TOKENIZER_FILES, resolve
from bertfast.tasks import Task
from bertfast.tokenization import (
    load_tokenizer,
    save_tokenizer,
    train_byte_level_bpe,
    train_unigram,
    train_wordpiece,
)
from bertfast.training.adapt import adapt
from bertfast.training.config import PretrainConfig
from bertfast.training.finetune import Examples, FinetuneConfig, read_examples
from bertfast.training.pretrain import pretrain

from .baselines import BASELINES
from .sheet import TOKENIZER, Row, Sheet

RESULT = "result.json"
BUILTIN = "builtin"  # in the place of a model's text files: the text that Python ships


@dataclass(frozen=True)
class Cell:
    """A run of the table.

    Attributes:
        row: that it is of.
        labels: examples that it trains on; None is all.
        seed: of the draw of those, the new weights, the order and the dropout.
        config: of the run; of a baseline, what of it is of the data.
        folder: of the result, named by all that decides it.
    """

    row: Row
    labels: int | None
    seed: int
    config: FinetuneConfig
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.folder / RESULT).is_file()

    @property
    def name(self) -> str:
        """In a few words."""
        labels = "all" if self.labels is None else f"{self.labels:,}"
        return f"{self.row.name}, {labels} labels, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A checked sheet.

    Attributes:
        sheet: it.
        out: folder of the result.
        config: of the data, and of what all rows share.
        examples: of training and dev.
        test: examples that are scored.
        test_source: their file.
        shape: a configuration with the data's labels, for baselines.
    """

    sheet: Sheet
    out: Path
    config: FinetuneConfig
    examples: Examples
    test: list[Any]
    test_source: str
    shape: EncoderConfig

    @property
    def scored_on_dev(self) -> bool:
        """Whether the scores are of the examples that the best epoch was chosen on."""
        return "test" not in self.sheet.data and "builtin" not in self.sheet.data

    def folder_of(self, model: str) -> str:
        """The folder or Hub id of one of the sheet's models."""
        given = self.sheet.models[model]
        if isinstance(given, str):
            return given
        return str(Path(self.sheet.models_folder or self.out / "models") / model)

    def cells(self) -> list[Cell]:
        """The cells, those with few labels first. The models must have been made."""
        digests = {file: data_digest(file) for file in self.files()}
        models = {
            row.model: model_digest(self.folder_of(row.model))
            for row in self.sheet.rows
            if row.model
        }
        found = []
        for labels in self.sheet.labels:
            for seed in self.sheet.seeds:
                for row in self.sheet.rows:
                    config = self._config(row, labels, seed)
                    deciding = {
                        **asdict(config),
                        **{name: digests.get(getattr(config, name)) for name in ("train", "dev")},
                        "model": models[row.model] if row.model else row.baseline,
                        "test": digests[self.test_source],
                        "resamples": self.sheet.resamples,
                        "device": None,
                    }
                    text = json.dumps(deciding, sort_keys=True, default=str)
                    key = hashlib.sha256(text.encode()).hexdigest()[:16]
                    found.append(Cell(row, labels, seed, config, self.out / "cells" / key))
        return found

    def files(self) -> list[str]:
        """The data's files."""
        named = (self.config.train, self.config.dev, self.test_source)
        return list(dict.fromkeys(name for name in named if name is not None))

    def _config(self, row: Row, labels: int | None, seed: int) -> FinetuneConfig:
        config = replace(self.config, seed=seed, max_train_samples=labels)
        if row.model is None:
            return config
        options = {**self.sheet.settings, **row.options}
        config = _checked(
            self.sheet,
            row.name,
            {**_given(self.config), **options, "seed": seed, "max_train_samples": labels}
            | {"model": self.folder_of(row.model)},
        )
        batch = config.batch_size * config.accumulation
        per_epoch = -(-(labels or len(self.examples.train)) // batch)
        if config.epochs * per_epoch >= self.sheet.least_updates:
            return config
        epochs = -(-self.sheet.least_updates // per_epoch)
        # As often evaluated as the epochs that were asked for.
        every = config.evaluate_every or max(1, epochs * per_epoch // config.epochs)
        return replace(config, epochs=epochs, evaluate_every=every)


def make_plan(sheet: Sheet, out: Path) -> Plan:
    """Reads the data and looks at the models.

    Raises:
        BertfastError: a file, a model or an option cannot be used.
    """
    data = dict(sheet.data)
    if "builtin" in data:
        data = _python_text(out / "data")
    test_source = data.pop("test", None)
    config = _checked(sheet, "data", {**data, "model": ""})
    for file in (config.train, config.dev, test_source):
        if file is not None and not Path(file).is_dir():  # a saved data set is a folder
            check_file(file)
    examples = read_examples(config)
    task, columns = examples.task, examples.columns
    config = replace(
        config,
        task=task.name,
        **{f"{name}_column": column for name, column in columns._asdict().items()},
    )
    shape = task.configure(BertConfig(), examples.known, config.train)
    test = examples.dev if test_source is None else task.read(test_source, columns)
    test_source = test_source or config.dev or config.train
    for part, source in ((examples.dev, config.dev or config.train), (test, test_source)):
        if not part:
            raise BertfastError(f"{source}: has no examples")
        if type(task).targets is not Task.targets:
            task.targets(part, shape, source)
    most = max((count for count in sheet.labels if count is not None), default=0)
    if most > len(examples.train):
        raise BertfastError(
            f"{sheet.path}: labels has {most}, and there are {len(examples.train)} examples to "
            "train on"
        )
    for row in sheet.rows:
        if row.baseline is not None:
            BASELINES[row.baseline].check(task, shape, examples.known)
    plan = Plan(sheet, out, config, examples, test, test_source, shape)
    for row in sheet.rows:
        plan._config(row, None, 0)
    for name, model in sheet.models.items():
        _check_model(sheet, name, model)
    return plan


def make_models(plan: Plan) -> None:
    """Pretrains and adapts the models that the sheet makes, each but once.

    What is whole is left as it is, and what was stopped goes on.

    Raises:
        BertfastError: one cannot be made, or its options have changed.
        Interrupted: after a checkpoint.
    """
    for name, model in plan.sheet.models.items():
        if isinstance(model, str):
            continue
        folder = Path(plan.folder_of(name))
        make_folder(folder.parent)
        ((way, given),) = model.items()
        options = dict(given)
        options["data"] = [
            str(plan.out / "data" / "corpus.txt") if file == BUILTIN else file
            for file in options["data"]
        ]
        if isinstance(options.get("tokenizer"), dict):
            words = folder.with_name(f"{name}-tokenizer")
            if not words.is_dir():
                _train_tokenizer(words, options["data"], {**TOKENIZER, **options["tokenizer"]})
            options["tokenizer"] = str(words)
        if isinstance(options.get("shape"), dict):
            shape = folder.with_name(f"{name}-shape.json")
            write_text(shape, json.dumps(options["shape"], indent=2) + "\n")
            options["shape"] = str(shape)
        options.setdefault("report_to", ())
        resume = (folder / "config.yaml").is_file()
        if way == "adapt":
            adapt(options.pop("model"), options.pop("data"), str(folder), resume=resume, **options)
        else:
            tokenizer = options.pop("tokenizer", None)
            pretrain(options.pop("data"), tokenizer, str(folder), resume=resume, **options)


def _train_tokenizer(out: Path, data: list[str], options: Mapping[str, Any]) -> None:
    lines = (line for document in read_documents(data, "text") for line in document)
    size = options["vocab_size"]
    if options["type"] == "bpe":
        trained = train_byte_level_bpe(lines, size)
    elif options["type"] == "unigram":
        trained = train_unigram(lines, size, lowercase=not options["cased"])
    else:
        trained = train_wordpiece(lines, size, lowercase=not options["cased"])
    with whole_folder(out) as folder:
        save_tokenizer(trained, folder)


def _check_model(sheet: Sheet, name: str, model: str | Mapping[str, Any]) -> None:
    """Refuses a model that cannot be read, or made."""
    where = f"{sheet.path}: the model {name}"
    if isinstance(model, str):
        try:
            folder = resolve(model).folder
            load_config(folder)
            load_tokenizer(folder)
        except BertfastError as error:
            raise BertfastError(f"{where}: {error}") from None
        return
    ((way, given),) = model.items()
    options = dict(given)
    for file in options["data"]:
        if file != BUILTIN:
            check_file(file)
        elif "builtin" not in sheet.data:
            raise BertfastError(f"{where}: data is {BUILTIN!r}, and the sheet's data is not")
    words = options.get("tokenizer")
    if isinstance(words, dict):
        kinds = ("wordpiece", "bpe", "unigram")
        chosen = {**TOKENIZER, **words}
        if chosen["type"] not in kinds or type(chosen["cased"]) is not bool:
            raise BertfastError(f"{where}: tokenizer is {words!r}; its type is one of {kinds}")
        if type(chosen["vocab_size"]) is not int or chosen["vocab_size"] < 100:
            raise BertfastError(f"{where}: vocab_size is {chosen['vocab_size']!r}; 100 at least")
        options["tokenizer"] = "a tokenizer to be trained"
    elif words is None and way == "pretrain":
        raise BertfastError(f"{where}: pretrain has no tokenizer; name a folder, or its vocab_size")
    shape = options.get("shape")
    try:
        if isinstance(shape, dict):
            EncoderConfig.from_dict(shape, "shape")
            options.pop("shape")
        PretrainConfig(out="", **{"tokenizer": None, **options})
    except BertfastError as error:
        raise BertfastError(f"{where}: {error}") from None


def _given(config: FinetuneConfig) -> dict[str, Any]:
    """The fields that name the data."""
    own = ("train", "dev", "dev_split", "split_seed", "task", "task_options", "text_column")
    return {name: getattr(config, name) for name in (*own, "pair_column", "label_column")}


def _checked(sheet: Sheet, what: str, options: Mapping[str, Any]) -> FinetuneConfig:
    """The configuration of a run.

    Raises:
        BertfastError: an option cannot be used; the sheet is named.
    """
    try:
        return FinetuneConfig(**{"dev": None, "out": "", **options})
    except BertfastError as error:
        raise BertfastError(f"{sheet.path}: {what}: {error}") from None
    except TypeError:  # a comparison with text, say
        raise BertfastError(f"{sheet.path}: {what}: a setting is of a wrong type") from None


def _python_text(folder: Path) -> dict[str, Any]:
    """Writes the gaps in the text that Python ships, and that text."""
    if not folder.is_dir():
        task = corpus.make_task(corpus.documents())
        with whole_folder(folder) as draft:
            corpus.write_task(draft, task)
    files = {name: str(folder / f"{name}.csv") for name in ("train", "dev", "test")}
    return {**files, "task": "classification"}


def data_digest(file: str) -> str:
    return "".join(file_sha256(part) for part in data_files(file))


def model_digest(model: str) -> str:
    """Of the files that make the model."""
    folder = resolve(model).folder
    names = {"config.json", *TOKENIZER_FILES}
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.name in names or path.suffix == ".safetensors"
    ]
    return "".join(file_sha256(path) for path in files)
