"""Fine-tuning: labelled examples and a pretrained encoder in, a model of a task with all it needs
out.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bertfast.card import CARD_FILE
from bertfast.checks import check_adam, number, one_of, whole_number
from bertfast.config import EncoderConfig
from bertfast.data.columnar import data_files
from bertfast.data.columns import Columns
from bertfast.data.epochs import epoch_batches, in_batches
from bertfast.data.splitting import drawn, folds, held_out
from bertfast.errors import BertfastError
from bertfast.files import check_new, file_sha256, whole_folder, write_text
from bertfast.model import PreTrainedModel, load_config, load_weights
from bertfast.model.adapters import AdaptedModel, Adapter
from bertfast.model.heads import classification_loss
from bertfast.model.models import ForSequenceClassification
from bertfast.model.outputs import SequenceClassifierOutput
from bertfast.packed import PackedBatch
from bertfast.resolve import Source, resolve
from bertfast.scoring import pictures, scores_of
from bertfast.seeds import fold_in, host_seed
from bertfast.tasks import TASKS, Task, infer_task, recognize_task
from bertfast.tasks.registry import DEFAULT, KEPT, named_options
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer, save_tokenizer

from . import card
from .checkpoint import checkpoint_folder, hidden_run, load_checkpoint
from .evaluate import measure
from .layers import decayed_rates, divide_logits, freeze_layers
from .losses import ClassLoss, class_weights
from .metrics import read_metrics
from .optimizer import BETAS, EPSILON, linear_schedule
from .options import takes_fields_of, without_defaults
from .precision import PRECISIONS, find_device
from .predict import batches_by_length, outputs_of
from .several import configs_of, finished
from .trackers import EVENTS, Report, tracker_names
from .trainer import Callback, Trainer

AGAIN = 0x2545F4914F6CDD1D  # the site of R-Drop's second pass
WARMUP_SHARE = 0.1  # of the updates. Devlin et al., "BERT", appendix A.3
# Options that are younger than runs that may be resumed: at their defaults they change nothing.
YOUNGER = (
    *("warmup", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("clip_norm", "accumulation", "log_every", "adapter", "adapter_rank", "adapter_alpha"),
    *("adapter_dropout", "adapter_targets", "dev_split", "folds", "fold", "split_seed", "seeds"),
    *("evaluate_every", "early_stopping", "metric_for_best", "class_weights", "label_smoothing"),
    *("focal_gamma", "rdrop", "freeze_layers", "layer_decay", "calibrate", "max_train_samples"),
)


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
        model: folder of a pretrained model in Hugging Face's format, its tokenizer beside it; or
            its Hub id.
        train, dev: files of the task; of most, with a header (see `bertfast.data.labelled`).
        out: folder of the result; it must not exist.
        dev_split: without ``dev``, the share of ``train`` to choose the best epoch on; the labels
            have about that share each.
        folds: without ``dev``, parts of ``train`` that are held out in turn, a run each.
        fold: the number of the one fold to run alone, from 1; None runs each.
        split_seed: of the parts.
        max_train_samples: train on so many examples alone, drawn by ``seed``. The labels have about
            their shares among them, and the model knows those of all examples. None is all.
        task: the name of a registered one; None is the one that the labels of ``train`` are of.
        text_column, pair_column, label_column: None for the defaults.
        freeze_encoder: train the head alone, and a pooler that the model lacked.
        from_scratch: keep the model's shape and tokenizer but none of its weights.
        adapter: train an adapter of peft and the head alone: "lora", "dora" or "ia3"; None for the
            whole model. The others are as of `bertfast.model.adapters.Adapter`.
        adapter_rank, adapter_alpha, adapter_dropout, adapter_targets: of the adapter.
        epochs: passes over the training data.
        lr: peak learning rate. None is 5e-5, 5e-4 with an adapter (the order of Hu et al., 2021,
            table 9), or 1e-2 when the encoder is frozen.
        warmup: updates over which the rate rises; it then falls linearly to zero at the end.
        warmup_ratio: the same as a share of the updates; None is a tenth, where ``warmup`` is None
            too.
        weight_decay: not of biases and norms.
        adam_beta1, adam_beta2, adam_epsilon: of AdamW's moments.
        clip_norm: the joint norm that gradients are scaled down to.
        batch_size: examples of a batch.
        batch_tokens: in its place, tokens of a batch at most.
        group_by_length: put examples of like length into the same batches.
        accumulation: batches of an update. Their losses count by their targets, as in one batch of
            all.
        max_length: tokens of an example at most, in training and in later predictions; None is the
            model's positions.
        task_options: of the task, by name; or texts as "name=value".
        precision: "fp32", or "bf16" with float32 master weights.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        revision: branch, tag or commit of the model on the Hub.
        seed: of the new weights, the order and the dropout.
        seeds: runs from as many seeds, the first being ``seed``.
        evaluate_every: updates between evaluations; None is an epoch.
        early_stopping: evaluations in a row without a better one after which training ends.
        metric_for_best: the score that decides which evaluation is the best; None is the task's
            first.
        class_weights: "balanced", or a JSON file with a weight for each label.
        label_smoothing: share of a label that is spread over all; see `ClassLoss`.
        focal_gamma: exponent of the focal loss; see `ClassLoss`.
        rdrop: weight of R-Drop's term, for which each batch is run twice.
        freeze_layers: layers to leave as they are, with the embeddings, from the bottom.
        layer_decay: the rate of a layer as a share of that of the one above it.
        calibrate: divide the head's logits by the temperature that fits the dev data best.
        log_every: updates that a line to the trackers averages over; a line ends with each
            evaluation too. None is that alone.
        report_to: trackers that get the numbers: of tensorboard, wandb, mlflow and trackio, or
            "all" that are installed.
    """

    model: str
    train: str
    dev: str | None
    out: str
    dev_split: float | None = None
    folds: int | None = None
    fold: int | None = None
    split_seed: int = 0
    max_train_samples: int | None = None
    task: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    freeze_encoder: bool = False
    from_scratch: bool = False
    adapter: str | None = None
    adapter_rank: int = 8
    adapter_alpha: float = 16.0
    adapter_dropout: float = 0.0
    adapter_targets: str = "attention"
    epochs: int = 3
    lr: float | None = None
    warmup: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = 0.01
    adam_beta1: float = BETAS[0]
    adam_beta2: float = BETAS[1]
    adam_epsilon: float = EPSILON
    clip_norm: float = 1.0
    batch_size: int = 32
    batch_tokens: int | None = None
    group_by_length: bool = False
    accumulation: int = 1
    max_length: int | None = None
    task_options: Mapping[str, Any] | Sequence[str] = ()
    precision: str = "fp32"
    device: str | None = None
    revision: str | None = None
    seed: int = 0
    seeds: int = 1
    evaluate_every: int | None = None
    early_stopping: int | None = None
    metric_for_best: str | None = None
    class_weights: str | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    rdrop: float = 0.0
    freeze_layers: int = 0
    layer_decay: float = 1.0
    calibrate: bool = True
    log_every: int | None = None
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", tracker_names(self.report_to))
        object.__setattr__(self, "task_options", named_options(self.task_options))
        if self.task is not None:
            TASKS.find(self.task)
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulation", 1), ("seed", 0)):
            whole_number(name, getattr(self, name), least)
        for name, least in (
            ("warmup", 0),
            ("max_length", 4),
            ("log_every", 1),
            ("max_train_samples", 1),
            ("batch_tokens", 1),
        ):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least)
        if self.warmup_ratio is not None:
            number("warmup_ratio", self.warmup_ratio, least=0, most=1)
            if self.warmup is not None:
                raise BertfastError(
                    "warmup and warmup-ratio say the same thing; give one of the two"
                )
        if self.lr is None:
            usual = 1e-2 if self.freeze_encoder else 5e-4 if self.adapter else 5e-5
            object.__setattr__(self, "lr", usual)
        check_adam(self)
        one_of("precision", self.precision, PRECISIONS)
        if self.adapter is not None:
            self.adapted_by()
            for name in ("freeze_encoder", "from_scratch"):
                if getattr(self, name):
                    raise BertfastError(
                        f"adapter and {name.replace('_', '-')} exclude each other; give one"
                    )
        if self.freeze_encoder and self.from_scratch:
            raise BertfastError(
                "freeze-encoder and from-scratch together would train a classifier on a random "
                "encoder"
            )
        self._check_parts()
        self._check_training()

    def _check_parts(self) -> None:
        """Refuses dev data of no kind or of several, and more runs than one of two kinds."""
        kinds = {"dev": self.dev, "dev-split": self.dev_split, "folds": self.folds}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise BertfastError(
                f"{' and '.join(given)} say the same thing; give one"
                if given
                else "there is no dev data; give dev, dev-split or folds"
            )
        if self.dev_split is not None:
            number("dev_split", self.dev_split, above=0, below=1)
        if self.folds is not None:
            whole_number("folds", self.folds, 2)
        if self.fold is not None and not (
            self.folds is not None and whole_number("fold", self.fold, 1) <= self.folds
        ):
            raise BertfastError(f"fold is {self.fold}, and folds {self.folds}; it is one of them")
        whole_number("split_seed", self.split_seed, 0)
        if whole_number("seeds", self.seeds, 1) > 1 and self.folds is not None:
            raise BertfastError("folds and seeds both ask for several runs; give one of them")

    def _check_training(self) -> None:
        for name in ("evaluate_every", "early_stopping"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        for name in ("focal_gamma", "rdrop"):
            number(name, getattr(self, name), least=0)
        number("label_smoothing", self.label_smoothing, least=0, below=1)
        number("layer_decay", self.layer_decay, above=0, most=1)
        whole_number("freeze_layers", self.freeze_layers, 0)
        for name in ("freeze_encoder", "from_scratch", "adapter"):
            if self.freeze_layers and getattr(self, name):
                raise BertfastError(
                    f"freeze-layers and {name.replace('_', '-')} exclude each other; give one"
                )

    def adapted_by(self) -> Adapter:
        """The adapter, where there is one.

        Raises:
            BertfastError: one of its options cannot be used.
        """
        return Adapter(
            kind=self.adapter or "",
            rank=self.adapter_rank,
            alpha=self.adapter_alpha,
            dropout=self.adapter_dropout,
            targets=self.adapter_targets,
        )


@dataclass(frozen=True)
class FinetuneResult:
    """The folder that was made, its task, its dev scores, the epoch that they are of, and every
    evaluation's numbers.

    Of several runs, these are of the one that is kept, and ``runs`` is `Runs.report`.
    """

    out: Path
    task: str
    scores: dict[str, float]
    best_epoch: float
    history: list[dict[str, Any]]
    runs: dict[str, Any] | None = None

    @property
    def accuracy(self) -> float:
        """Of a classifier, the share of the dev examples that it labels rightly."""
        return self.scores["accuracy"]

    @property
    def macro_f1(self) -> float:
        """Of a classifier, the mean over labels of the F1 on the dev examples."""
        return self.scores["macro_f1"]


@takes_fields_of(FinetuneConfig)
def finetune(
    model: str | Path,
    train: str | Path,
    dev: str | Path | None,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> FinetuneResult:
    """Fine-tunes a model for a task; the command ``bertfast finetune`` as a function.

    Args:
        model: folder or Hub id of a pretrained model.
        train, dev: labelled files; ``dev`` is None with ``dev_split`` or ``folds``.
        out: folder of the result.
        resume: go on from the last epoch of a run that was stopped, to the same result bit for bit.
            Where no epoch was finished, it goes on from the start.
        callbacks: told of each run; see `bertfast.Callback`.
        options: the other fields of `FinetuneConfig`.

    Raises:
        BertfastError: an option, a file or a folder cannot be used, or the loss became NaN; ``out``
            is as it was.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM; the same call with ``resume`` goes
            on.
    """
    config = FinetuneConfig(
        model=str(model),
        train=str(train),
        dev=None if dev is None else str(dev),
        out=str(out),
        **options,
    )
    check_new(config.out)
    return (_several if configs_of(config)[1] else _one)(config, resume, callbacks)


def _several(config: FinetuneConfig, resume: bool, callbacks: Sequence[Callback]) -> FinetuneResult:
    """Makes a run for each fold or seed, and keeps the folder of the best one."""
    target = Path(config.out).absolute()

    def value(summary: Mapping[str, Any]) -> float:
        task = _task_of(summary)
        name = _best_by(task, config)
        return (-1 if name in task.lowest else 1) * summary[f"dev_{name}"]

    inputs = _inputs(config, resolve(config.model, config.revision).folder)
    run = partial(_one, callbacks=callbacks)
    with finished(config, run, value, inputs, resume) as (runs, folder):
        summary = runs.summaries[runs.chosen]
        task = _task_of(summary)
        settings = {**summary["settings"], "out": config.out}
        summary = {**summary, "settings": settings, "runs": runs.report(task.scores)}
        shape = load_config(folder)
        own = ("seed", "seeds", "fold", "task", "text_column", "pair_column", "label_column")
        kept = replace(config, **{name: settings[name] for name in own})
        write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
        labels = shape.id2label.values()
        write_text(folder / CARD_FILE, card.task_card(kept, task, summary, labels))
        if target.is_dir():
            target.rmdir()
        os.replace(folder, target)
    return FinetuneResult(
        Path(config.out),
        task.name,
        {name: summary[f"dev_{name}"] for name in task.scores},
        summary["best_epoch"],
        summary["epochs"],
        summary["runs"],
    )


def _task_of(summary: Mapping[str, Any]) -> Task:
    """The task of a run, with the scores that its model has."""
    settings = summary["settings"]
    task = TASKS[settings["task"]].configured(settings["task_options"])
    scores = {name: words for name, words in task.scores.items() if f"dev_{name}" in summary}
    vars(task)["scores"] = scores  # of this one alone: the class has them all
    return task


@dataclass(frozen=True)
class Prepared:
    """What a run needs before its model is made.

    Attributes:
        config: with the task and the columns that were found.
        source: of the model.
        task: with its options.
        shape: the model's configuration, with the labels.
        tokenizer, special: of the model.
        max_length: tokens of an example at most.
        train, dev: encoded examples.
        split: which examples they are where one file has both.
    """

    config: FinetuneConfig
    source: Source
    task: Task
    shape: EncoderConfig
    tokenizer: Tokenizer
    special: SpecialIds
    max_length: int
    train: Encoded
    dev: Encoded
    split: dict[str, Any]


def prepare(config: FinetuneConfig) -> Prepared:
    """Reads and encodes a run's data, for the model that it names.

    Raises:
        BertfastError: a file, a folder or an option cannot be used.
    """
    source = resolve(config.model, config.revision)
    task, columns, known, train_examples, dev_examples, split = read_examples(config)
    config = replace(
        config,
        task=task.name,
        **{f"{name}_column": column for name, column in columns._asdict().items()},
    )
    shape = task.configure(load_config(source.folder), known, config.train)
    _check_best(task, config)
    task = task.of_model(shape)
    tokenizer = load_tokenizer(source.folder)
    check_tokenizer_fits(tokenizer, shape, f"{config.model}: the tokenizer")
    special = SpecialIds(tokenizer, source.folder)
    max_length = config.max_length or shape.max_length
    if max_length > shape.max_length:
        raise BertfastError(
            f"max-length is {max_length} and the model has {shape.max_length} positions"
        )
    train = Encoded(task, train_examples, tokenizer, shape, max_length, config.train)
    dev_source = config.dev or config.train
    dev = Encoded(task, dev_examples, tokenizer, shape, max_length, dev_source)
    return Prepared(config, source, task, shape, tokenizer, special, max_length, train, dev, split)


def _one(
    config: FinetuneConfig, resume: bool, callbacks: Sequence[Callback] = ()
) -> FinetuneResult:
    """One run."""
    target = Path(config.out).absolute()
    device = find_device(config.device)
    prepared = prepare(config)
    config, source, task, shape = (
        prepared.config,
        prepared.source,
        prepared.task,
        prepared.shape,
    )
    tokenizer, max_length = prepared.tokenizer, prepared.max_length
    train_data, dev_data, split = prepared.train, prepared.dev, prepared.split
    loss = _loss(config, task, train_data, shape)

    torch.manual_seed(config.seed)
    net = task.build(shape)
    adapted: AdaptedModel | None = None
    if not config.from_scratch:
        new = load_weights(net, source.folder, new_head_ok=True)
        if new:
            print(
                f"bertfast: {config.model} does not have {', '.join(new)}; "
                "trained from random weights",
                file=sys.stderr,
            )
        if config.freeze_encoder:
            # A random pooler that stayed as it is would blur what the encoder knows.
            net.base.requires_grad_(False)
            for name in new:
                net.get_parameter(name).requires_grad_(True)
        freeze_layers(net, config.freeze_layers)
        if config.adapter is not None:
            base = config.model if source.revision else str(source.folder.absolute())
            adapted = AdaptedModel(net, config.adapted_by(), base)
            adapted.train_too(new)
    inputs = _inputs(config, source.folder)
    start = f"random weights, the shape of {source}" if config.from_scratch else str(source)
    print(f"bertfast: starts from {start}", file=sys.stderr)
    with whole_folder(target) as folder, hidden_run(target) as work:
        with Report(config.report_to, target, asdict(config), events=work) as report:
            history, best, seconds = _train(
                config,
                task,
                net.to(device),
                loss,
                train_data,
                dev_data,
                device,
                work,
                inputs,
                resume,
                [report, *callbacks],
            )
            task, found = _finish(config, task, net, dev_data, device)
            report.finish(best)
        if (work / EVENTS).is_dir():
            shutil.move(work / EVENTS, folder / EVENTS)
        scores = found.pop("scores")
        summary = {
            "best_epoch": best["epoch"],
            **{f"dev_{name}": value for name, value in scores.items()},
            **{
                name: value
                for name, value in best.items()
                if name.startswith("dev_") and name.removeprefix("dev_") not in scores
            },
            **_summary(config, train_data, dev_data, max_length, seconds),
            **({"split": split} if split else {}),
            **found,
            "epochs": history,
        }
        (net if adapted is None else adapted).save_pretrained(folder)
        _fill_folder(folder, task, net, tokenizer, prepared.special, config, summary, max_length)
    scores = {name: scores[name] for name in task.scores}
    return FinetuneResult(Path(config.out), task.name, scores, best["epoch"], history)


def _inputs(config: FinetuneConfig, model: Path) -> dict[str, str]:
    """Digests of what decides a run."""
    return {
        "options": json.dumps(
            {
                name: value
                for name, value in without_defaults(config, YOUNGER).items()
                if name not in ("report_to", "log_every")
            }
            | {"out": "", "device": None}
        ),
        "data": "".join(
            file_sha256(part)
            for data in (config.train, config.dev)
            if data is not None
            for part in data_files(data)
        ),
        "model": "".join(file_sha256(path) for path in sorted(model.iterdir()) if path.is_file()),
    }


class Examples(NamedTuple):
    """What a run reads: its task and columns, and three lists of examples.

    ``known`` has every labelled example of the training file, whose labels the model knows.
    ``train`` has those that it trains on, ``dev`` the dev examples. Where one file has both,
    ``split`` says which ones those are.
    """

    task: Task
    columns: Columns
    known: list[Any]
    train: list[Any]
    dev: list[Any]
    split: dict[str, Any]


def read_examples(config: FinetuneConfig) -> Examples:
    """Reads a run's files.

    Raises:
        BertfastError: one cannot be used, or has too few examples.
    """
    columns = Columns(config.text_column, config.pair_column, config.label_column)
    options = named_options(config.task_options)
    task = TASKS.find(config.task) if config.task else recognize_task(config.train)
    inferred = task is None  # of a table, whose labels are to be read first
    task = TASKS[DEFAULT] if task is None else task.configured(options)
    columns = task.columns(config.train, columns)
    known = task.read(config.train, columns)
    if inferred:
        task = infer_task(known, config.train).configured(options)
    train, dev, split = _parts(config, task, columns, known)
    if config.max_train_samples is not None:
        strata = [task.stratum(example) for example in train]
        train = [train[row] for row in drawn(strata, config.max_train_samples, config.seed)]
    return Examples(task, columns, known, train, dev, split)


def _parts(
    config: FinetuneConfig, task: Task, columns: Columns, examples: list[Any]
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The training and the dev examples, and which ones they are where one file has both."""
    if config.dev is not None:
        return examples, task.read(config.dev, columns), {}
    strata = [task.stratum(example) for example in examples]
    if config.dev_split is not None:
        train, dev = held_out(strata, config.dev_split, config.split_seed)
        part: dict[str, Any] = {"share": config.dev_split}
    else:
        assert config.folds is not None
        assert config.fold is not None
        train, dev = folds(strata, config.folds, config.split_seed)[config.fold - 1]
        part = {"folds": config.folds, "fold": config.fold}
    part |= {"file": config.train, "seed": config.split_seed, "train": len(train), "dev": len(dev)}
    # Numbers of examples from 1, in the file's order.
    part["dev_examples"] = " ".join(str(row + 1) for row in dev)
    return [examples[row] for row in train], [examples[row] for row in dev], part


def _best_by(task: Task, config: FinetuneConfig) -> str:
    """The score that decides which evaluation is the best."""
    name = config.metric_for_best or next(iter(task.scores))
    for prefix in ("eval_", "dev_"):  # as in Hugging Face's names, and in our metrics.json
        name = name.removeprefix(prefix)
    return name


def _check_best(task: Task, config: FinetuneConfig) -> None:
    known = {**task.scores, **task.lowest}
    if _best_by(task, config) not in known:
        raise BertfastError(
            f"metric-for-best is {config.metric_for_best!r}; of the task {task.name!r} it must be "
            f"one of {', '.join(known)}"
        )


def _loss(
    config: FinetuneConfig, task: Task, train: Encoded, shape: EncoderConfig
) -> ClassLoss | None:
    """The loss that the options ask for; None for the model's own.

    Raises:
        BertfastError: the task has no classes.
    """
    asked = {
        "class-weights": config.class_weights is not None,
        "label-smoothing": config.label_smoothing > 0,
        "focal-gamma": config.focal_gamma > 0,
        "rdrop": config.rdrop > 0,
    }
    if not any(asked.values()):
        return None
    if task.classes is None:
        name = next(name for name, given in asked.items() if given)
        raise BertfastError(f"{name} is for classes, which the task {task.name!r} has none of")
    several, weights = task.classes == "several", None
    if config.class_weights is not None:
        targets = task.class_targets(train.inputs)
        weights = class_weights(config.class_weights, shape.label2id, targets, several)
    return ClassLoss(several, weights, config.label_smoothing, config.focal_gamma, config.rdrop)


def _finish(
    config: FinetuneConfig, task: Task, model: PreTrainedModel, dev: Encoded, device: torch.device
) -> tuple[Task, dict[str, Any]]:
    """The task with what it chose on the dev data, and what `measure` says of the saved model,
    whose logits are calibrated.
    """
    model.eval()
    outputs = outputs_of(task, model, dev.inputs, device)
    temperature = task.temperature(outputs, dev.inputs) if config.calibrate else None
    before = None
    if temperature is not None:
        report = task.report(outputs, dev.inputs, dev.examples, model.config)
        before = report["calibration"]["ece"]
        divide_logits(model, temperature)
        outputs = [output / temperature for output in outputs]
    kept = task.fit(outputs, dev.inputs, dev.examples, model.config)
    task = task.configured(kept=kept)
    found = measure(task, outputs, dev.inputs, dev.examples, model.config)
    if "calibration" in found:
        said = found["calibration"]
        said |= {"temperature": temperature or 1.0, "ece_before": before or said["ece"]}
    return task, found


def _summary(
    config: FinetuneConfig, train_data: Encoded, dev_data: Encoded, max_length: int, seconds: float
) -> dict[str, Any]:
    """What metrics.json holds beside the scores."""
    return {
        "seconds": seconds,
        "train_examples": len(train_data.examples),
        "dev_examples": len(dev_data.examples),
        "truncated": {
            "train": train_data.truncated,
            "dev": dev_data.truncated,
            "max_length": max_length,
        },
        "settings": asdict(config),
    }


class Encoded:
    """Encoded examples."""

    def __init__(
        self,
        task: Task,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        shape: EncoderConfig,
        max_length: int,
        source: str,
    ) -> None:
        self.task, self.examples = task, examples
        self.inputs = task.encode(examples, tokenizer, shape, max_length, source)
        self.truncated = sum(item.truncated for item in self.inputs)
        if self.truncated:
            print(
                f"bertfast: {source}: {self.truncated} of {len(self.inputs)} inputs were longer "
                f"than {max_length} tokens and were cut",
                file=sys.stderr,
            )

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These rows, packed."""
        return self.task.batch([self.inputs[row] for row in rows])


class _Epochs:
    """The training batches: every epoch has the examples in an order of its own, in as many batches
    as any other. The last update of an epoch has what is left, so that its last batches may be
    empty.

    Attributes:
        per_epoch: updates of an epoch.
    """

    def __init__(self, data: Encoded, config: FinetuneConfig, features: Tensor | None) -> None:
        self.data, self.features, self.config = data, features, config
        self.lengths = np.array([item.tokens for item in data.inputs])
        if config.batch_tokens is not None and self.lengths.max() > config.batch_tokens:
            raise BertfastError(
                f"batch-tokens is {config.batch_tokens} and the longest example has "
                f"{self.lengths.max()}; a batch must hold a whole one: raise it, or cut examples "
                "with --max-length"
            )
        # Batches of as many tokens are more in one order than in another.
        orders = 1 if config.batch_tokens is None else config.epochs
        self.batches = max(len(self._drawn(epoch)) for epoch in range(orders))
        self.per_epoch = -(-self.batches // config.accumulation)

    def _drawn(self, epoch: int) -> list[list[int]]:
        config = self.config
        rng = np.random.default_rng(host_seed(config.seed, epoch + 1))
        return epoch_batches(
            self.lengths, rng, config.batch_size, config.batch_tokens, config.group_by_length
        )

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of number ``start`` and every later one."""
        accumulation = self.config.accumulation
        update, made = divmod(start, accumulation)
        epoch, update = divmod(update, self.per_epoch)
        while True:
            drawn = in_batches(self._drawn(epoch), self.batches)
            for first in range(update * accumulation, len(drawn), accumulation):
                shares = drawn[first : first + accumulation]
                shares += [[]] * (accumulation - len(shares))
                for share in shares[made:]:
                    yield epoch, self._batch(share)
                made = 0
            epoch, update = epoch + 1, 0

    def _batch(self, rows: list[int]) -> PackedBatch:
        if not rows:
            return PackedBatch.from_sequences([])
        batch = self.data.batch(rows)
        if self.features is not None:
            batch.per_sequence["features"] = self.features[rows]
        return batch


class _Step(nn.Module):
    """A task's model as the trainer calls it, with a loss of its own where there is one."""

    def __init__(self, task: Task, model: PreTrainedModel, loss: ClassLoss | None) -> None:
        super().__init__()
        self.task, self.model, self.loss = task, model, loss

    def run(self, batch: PackedBatch, seed: int) -> Any:
        """The model's output, with ``loss`` and ``logits``."""
        return self.task.run(self.model, batch, seed)

    def forward(self, batch: PackedBatch, *, seed: int) -> Any:
        output = self.run(batch, seed)
        if self.loss is None:
            return output
        labels = batch.labels
        rows: Tensor | slice = slice(None)
        if labels is None:
            assert batch.token_labels is not None
            rows = batch.token_labels >= 0
            labels = batch.token_labels[rows]
        logits = output.logits[rows]
        loss = self.loss(logits, labels)
        if self.loss.rdrop:
            other = self.run(batch, fold_in(seed, AGAIN)).logits[rows]
            loss = (loss + self.loss(other, labels)) / 2
            loss = loss + self.loss.rdrop * self.loss.disagreement(logits, other)
        return {"loss": loss}


class _HeadAlone(_Step):
    """A head over what a frozen encoder gave it, which batches bring along."""

    model: ForSequenceClassification

    def run(self, batch: PackedBatch, seed: int) -> SequenceClassifierOutput:
        features = batch.per_sequence["features"]
        assert batch.labels is not None
        logits = self.model.classify(features, torch.tensor([seed], device=features.device))
        loss = classification_loss(logits, batch.labels, self.model.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _train(
    config: FinetuneConfig,
    task: Task,
    model: PreTrainedModel,
    loss: ClassLoss | None,
    train: Encoded,
    dev: Encoded,
    device: torch.device,
    work: Path,
    inputs: dict[str, str],
    resume: bool,
    callbacks: Sequence[Callback],
) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """Every evaluation's numbers, the best one's, and the seconds; the model has the best's weights
    in float32 then.
    """
    features: Tensor | None = None
    dev_features: Tensor | None = None
    step: nn.Module = _Step(task, model, loss)
    # A task that runs its model in a way of its own may read more of it than the features.
    plain = type(task).run is Task.run and type(model).forward is ForSequenceClassification.forward
    if config.freeze_encoder and plain:
        assert isinstance(model, ForSequenceClassification)
        # The encoder never changes, so its outputs are computed once; without dropout, as at
        # prediction.
        half = config.precision == "bf16"
        reader = copy.deepcopy(model).bfloat16() if half else model
        features, dev_features = (_features(reader, data, device) for data in (train, dev))
        step = _HeadAlone(task, model, loss)
    batches = _Epochs(train, config, None if features is None else features.cpu())
    total = batches.per_epoch * config.epochs
    warmup = config.warmup
    if warmup is None:
        ratio = WARMUP_SHARE if config.warmup_ratio is None else config.warmup_ratio
        warmup = max(1, round(ratio * total)) if ratio else 0
    if warmup > total:
        raise BertfastError(
            f"warmup is {warmup} and the run has {total} updates; warmup must not go beyond them"
        )

    best_by = _best_by(task, config)

    @torch.no_grad()
    def evaluate(_: nn.Module) -> dict[str, float]:
        if dev_features is None:
            outputs = outputs_of(task, model, dev.inputs, device)
        else:
            assert isinstance(model, ForSequenceClassification)
            outputs = list(model.classify(dev_features).float().cpu())
        given = (outputs, dev.inputs, dev.examples, model.config)
        scores = task.score(*given)
        if best_by not in scores:
            scorer = task.scorer(*given)
            assert scorer is not None
            scores[best_by] = float(scores_of(scorer, len(dev.examples))[best_by])
        return {f"dev_{name}": scores[name] for name in dict.fromkeys([*task.scores, best_by])}

    assert config.lr is not None
    evaluate_every = config.evaluate_every or batches.per_epoch
    decay = config.layer_decay
    trainer = Trainer(
        step,
        batches,
        out=work,
        steps=total,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        epsilon=config.adam_epsilon,
        schedule=partial(linear_schedule, warmup=warmup, total=total),
        precision=config.precision,
        clip_norm=config.clip_norm,
        accumulation=config.accumulation,
        seed=config.seed,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        best=f"dev_{best_by}",
        lowest=best_by in task.lowest,
        patience=config.early_stopping,
        rates=decayed_rates(model, decay) if decay < 1 else None,
        checkpoint_every=evaluate_every,
        log_every=config.log_every or evaluate_every,
        keep=1,
        device=device,
        models={"": model},
        inputs=inputs,
        label="finetune",
        callbacks=callbacks,
    )
    trainer.train(resume)
    lines, steps = read_metrics(work), [scores["step"] for scores in trainer.evaluations]
    history = [
        {
            "epoch": _epoch(scores["step"], batches.per_epoch),
            **({} if config.evaluate_every is None else {"step": scores["step"]}),
            "train_loss": mean_loss(lines, start, scores["step"]),
            **{name: scores[name] for name in scores if name != "step"},
        }
        for start, scores in zip([0, *steps], trainer.evaluations, strict=False)
    ]
    best = history[steps.index(trainer.best["step"])]
    weights = load_checkpoint(checkpoint_folder(work, trainer.best["step"])).weights[""]
    model.float().load_state_dict(weights)
    return history, best, trainer.seconds


def _epoch(step: int, per_epoch: int) -> float:
    """Passes over the data after so many updates, a whole number where they are whole."""
    return step // per_epoch if step % per_epoch == 0 else round(step / per_epoch, 4)


def mean_loss(lines: list[dict[str, Any]], start: int, end: int) -> float:
    """The mean loss of the updates past ``start`` up to ``end``, at both of which lines end."""
    total, before = 0.0, start
    for line in lines:
        if start < line["step"] <= end:
            total += line["loss"] * ((line["step"] - before) / (end - start))
            before = line["step"]
    return total


@torch.no_grad()
def _features(model: ForSequenceClassification, data: Encoded, device: torch.device) -> Tensor:
    """(inputs, hidden): what the encoder gives the head."""
    model.eval()
    found: dict[int, Tensor] = {}
    for rows in batches_by_length(data.inputs):
        batch = data.batch(rows).to(device)
        encoded = model.base.encode(batch, every_row=model.reads_every_row)
        found |= zip(rows, encoded.of_sequences(model.features(encoded)), strict=True)
    return torch.stack([found[row] for row in range(len(data.inputs))])


def _fill_folder(
    folder: Path,
    task: Task,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    special: SpecialIds,
    config: FinetuneConfig,
    summary: dict[str, Any],
    max_length: int,
) -> None:
    save_tokenizer(
        tokenizer, folder, max_length, special, segments=model.config.type_vocab_size > 1
    )
    texts = {
        **task.files(model.config),
        **({KEPT: json.dumps(task.kept, indent=2) + "\n"} if task.kept else {}),
        "metrics.json": json.dumps(summary, indent=2) + "\n",
        CARD_FILE: card.task_card(config, task, summary, model.config.id2label.values()),
        **pictures(summary),
        "predict.py": PREDICT_SCRIPT.replace("USAGE", task.usage[0]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


PREDICT_SCRIPT = '''\
"""Predicts with the model in this folder: python predict.py USAGE."""

import sys
from pathlib import Path

from bertfast.escape import one_line
from bertfast.training.predict import Predictor

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    predictor = Predictor(Path(__file__).parent)
    task = predictor.task
    examples = task.of_arguments(sys.argv[1:])
    for example, prediction in zip(examples, predictor.predict(examples)):
        given, *_ = task.echo(example).values()
        print(f"{task.shown(prediction)}\\t{one_line(given)}")
'''
