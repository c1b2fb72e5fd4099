"""Fine-tuning: labelled examples and a pretrained encoder in, a model of a task with all it needs
out.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bertfast.card import CARD_FILE
from bertfast.config import EncoderConfig
from bertfast.data.columnar import data_files
from bertfast.data.columns import Columns
from bertfast.errors import BertfastError
from bertfast.files import file_sha256, whole_folder
from bertfast.model import PreTrainedModel, load_config, load_weights
from bertfast.model.adapters import AdaptedModel, Adapter
from bertfast.model.heads import classification_loss
from bertfast.model.models import ForSequenceClassification
from bertfast.packed import PackedBatch
from bertfast.resolve import resolve
from bertfast.seeds import host_seed
from bertfast.tasks import TASKS, Task, find_task, infer_task, recognize_task
from bertfast.tasks.registry import DEFAULT, KEPT, named_options
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer, save_tokenizer

from . import card
from .checkpoint import checkpoint_folder, checkpoints, load_checkpoint, locked
from .metrics import read_metrics
from .optimizer import linear_schedule
from .options import takes_fields_of
from .precision import PRECISIONS, find_device
from .predict import batches_by_length, outputs_of
from .trackers import EVENTS, Report, tracker_names
from .trainer import Trainer

WARMUP_SHARE = 0.1  # of the updates. Devlin et al., "BERT", appendix A.3


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
        model: folder of a pretrained model in Hugging Face's format, its tokenizer beside it; or
            its Hub id.
        train, dev: files of the task; of most, with a header (see `bertfast.data.labelled`).
        out: folder of the result; it must not exist.
        task: the name of a registered one; None is the one that the labels of ``train`` are of.
        text_column, pair_column, label_column: None for the defaults.
        freeze_encoder: train the head alone, and a pooler that the model lacked.
        from_scratch: keep the model's shape and tokenizer but none of its weights.
        adapter: train an adapter of peft and the head alone: "lora", "dora" or "ia3"; None for the
            whole model. The others are as of `bertfast.model.adapters.Adapter`.
        adapter_rank, adapter_alpha, adapter_dropout, adapter_targets: of the adapter.
        epochs: passes over the training data.
        lr: peak learning rate; None is 5e-5, 5e-4 with an adapter (the order of Hu et al., 2021,
            table 9), or 1e-2 when the encoder is frozen.
        batch_size: examples of an update.
        max_length: tokens of an example at most, in training and in later predictions; None is the
            model's positions.
        task_options: of the task, by name; or texts as "name=value".
        precision: "fp32", or "bf16" with float32 master weights.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        revision: branch, tag or commit of the model on the Hub.
        seed: of the new weights, the order and the dropout.
        report_to: trackers that get the numbers: of tensorboard, wandb, mlflow and trackio, or
            "all" that are installed.
    """

    model: str
    train: str
    dev: str
    out: str
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
    batch_size: int = 32
    max_length: int | None = None
    task_options: Mapping[str, Any] | Sequence[str] = ()
    precision: str = "fp32"
    device: str | None = None
    revision: str | None = None
    seed: int = 0
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", tracker_names(self.report_to))
        object.__setattr__(self, "task_options", named_options(self.task_options))
        if self.task is not None:
            find_task(self.task)
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise BertfastError(
                    f"{name.replace('_', '-')} is {value!r}; it must be a whole number of at "
                    f"least {least}, below 2^63"
                )
        if self.lr is None:
            usual = 1e-2 if self.freeze_encoder else 5e-4 if self.adapter else 5e-5
            object.__setattr__(self, "lr", usual)
        if not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise BertfastError(f"lr is {self.lr!r}; it must be a number above 0")
        if self.max_length is not None and (
            not isinstance(self.max_length, int) or self.max_length < 4
        ):
            raise BertfastError(
                f"max-length is {self.max_length!r}; it must be a whole number of at least 4"
            )
        if self.precision not in PRECISIONS:
            raise BertfastError(
                f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
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
    """The folder that was made, its task, the best epoch's dev scores, and every epoch's
    numbers.
    """

    out: Path
    task: str
    scores: dict[str, float]
    best_epoch: int
    history: list[dict[str, Any]]

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
    dev: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    **options: Any,
) -> FinetuneResult:
    """Fine-tunes a model for a task; the command ``bertfast finetune`` as a function.

    Args:
        model: folder or Hub id of a pretrained model.
        train, dev: labelled files.
        out: folder of the result.
        resume: go on from the last epoch of a run that was stopped (from the start where there was
            none), to the same result bit for bit.
        options: the other fields of `FinetuneConfig`.

    Raises:
        BertfastError: an option, a file or a folder cannot be used, or the loss became NaN; ``out``
            is as it was.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM; the same call with ``resume`` goes
            on.
    """
    config = FinetuneConfig(
        model=str(model), train=str(train), dev=str(dev), out=str(out), **options
    )
    target = Path(config.out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BertfastError(f"{config.out}: exists already; choose another --out")
    device = find_device(config.device)
    source = resolve(config.model, config.revision)
    columns = Columns(config.text_column, config.pair_column, config.label_column)
    task = find_task(config.task) if config.task else recognize_task(config.train)
    inferred = task is None  # of a table, whose labels are to be read first
    task = TASKS[DEFAULT] if task is None else task.configured(config.task_options)
    columns = task.columns(config.train, columns)
    train_examples = task.read(config.train, columns)
    if inferred:
        task = infer_task(train_examples, config.train).configured(config.task_options)
    config = replace(
        config,
        task=task.name,
        **{f"{name}_column": column for name, column in columns._asdict().items()},
    )
    dev_examples = task.read(config.dev, columns)
    shape = task.configure(load_config(source.folder), train_examples, config.train)
    task = task.of_model(shape)
    tokenizer = load_tokenizer(source.folder)
    check_tokenizer_fits(tokenizer, shape, f"{config.model}: the tokenizer")
    special = SpecialIds(tokenizer, source.folder)
    max_length = config.max_length or shape.max_length
    if max_length > shape.max_length:
        raise BertfastError(
            f"max-length is {max_length} and the model has {shape.max_length} positions"
        )
    train_data = _Data(task, train_examples, tokenizer, shape, max_length, config.train)
    dev_data = _Data(task, dev_examples, tokenizer, shape, max_length, config.dev)

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
        if config.adapter is not None:
            base = config.model if source.revision else str(source.folder.absolute())
            adapted = AdaptedModel(net, config.adapted_by(), base)
            adapted.train_too(new)
    inputs = {
        "options": json.dumps(
            {name: value for name, value in asdict(config).items() if name != "report_to"}
            | {"out": "", "device": None}
        ),
        "data": "".join(
            file_sha256(part) for data in (config.train, config.dev) for part in data_files(data)
        ),
        "model": "".join(
            file_sha256(path) for path in sorted(source.folder.iterdir()) if path.is_file()
        ),
    }
    start = f"random weights, the shape of {source}" if config.from_scratch else str(source)
    print(f"bertfast: starts from {start}", file=sys.stderr)
    with whole_folder(target) as folder, _work(target) as work:
        with Report(config.report_to, target, asdict(config), events=work) as report:
            task, history, best, seconds = _train(
                config,
                task,
                net.to(device),
                train_data,
                dev_data,
                device,
                work,
                inputs,
                resume,
                report,
            )
            report.finish(best)
        if (work / EVENTS).is_dir():
            shutil.move(work / EVENTS, folder / EVENTS)
        summary = _summary(config, train_data, dev_data, max_length, history, best, seconds)
        (net if adapted is None else adapted).save_pretrained(folder)
        _fill_folder(folder, task, net, tokenizer, special, config, summary, max_length)
    scores = {name: best[f"dev_{name}"] for name in task.scores}
    return FinetuneResult(Path(config.out), task.name, scores, best["epoch"], history)


@contextmanager
def _work(target: Path) -> Iterator[Path]:
    """The hidden folder of the run's checkpoints; it goes with success, and where it holds none."""
    work = target.with_name(f".{target.name}.run")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with locked(work):
            yield work
    except BaseException:
        if not checkpoints(work):
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _summary(
    config: FinetuneConfig,
    train_data: _Data,
    dev_data: _Data,
    max_length: int,
    history: list[dict[str, Any]],
    best: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "best_epoch": best["epoch"],
        **{name: value for name, value in best.items() if name.startswith("dev_")},
        "seconds": seconds,
        "train_examples": len(train_data.examples),
        "dev_examples": len(dev_data.examples),
        "truncated": {
            "train": train_data.truncated,
            "dev": dev_data.truncated,
            "max_length": max_length,
        },
        "settings": asdict(config),
        "epochs": history,
    }


class _Data:
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
    """The training batches: every epoch has the examples in an order of its own."""

    def __init__(self, data: _Data, batch_size: int, seed: int, features: Tensor | None) -> None:
        self.data, self.batch_size, self.seed, self.features = data, batch_size, seed, features
        self.per_epoch = -(-len(data.inputs) // batch_size)

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of number ``start`` and every later one."""
        epoch, index = divmod(start, self.per_epoch)
        while True:
            rng = np.random.default_rng(host_seed(self.seed, epoch + 1))
            order = rng.permutation(len(self.data.inputs))
            for place in range(index, self.per_epoch):
                rows = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
                batch = self.data.batch(rows)
                if self.features is not None:
                    batch.per_sequence["features"] = self.features[rows]
                yield epoch, batch
            epoch, index = epoch + 1, 0


class _Step(nn.Module):
    """A task's model as the trainer calls it."""

    def __init__(self, task: Task, model: PreTrainedModel) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: PackedBatch, *, seed: int) -> Any:
        return self.task.run(self.model, batch, seed)


class _HeadAlone(nn.Module):
    """A head over what a frozen encoder gave it, which batches bring along."""

    def __init__(self, model: ForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch, *, seed: int) -> dict[str, Tensor]:
        """The loss of the batch's labels."""
        features = batch.per_sequence["features"]
        assert batch.labels is not None
        logits = self.model.classify(features, torch.tensor([seed], device=features.device))
        return {"loss": classification_loss(logits, batch.labels, self.model.config)}


def _train(
    config: FinetuneConfig,
    task: Task,
    model: PreTrainedModel,
    train: _Data,
    dev: _Data,
    device: torch.device,
    work: Path,
    inputs: dict[str, str],
    resume: bool,
    report: Report,
) -> tuple[Task, list[dict[str, Any]], dict[str, Any], float]:
    """The task with what it keeps, every epoch's numbers, the best one's, and the seconds; the
    model has the best's weights in float32 then.
    """
    features: Tensor | None = None
    dev_features: Tensor | None = None
    step: nn.Module = _Step(task, model)
    # A task that runs its model in a way of its own may read more of it than the features.
    plain = type(task).run is Task.run and type(model).forward is ForSequenceClassification.forward
    if config.freeze_encoder and plain:
        assert isinstance(model, ForSequenceClassification)
        # The encoder never changes, so its outputs are computed once; without dropout, as at
        # prediction.
        half = config.precision == "bf16"
        reader = copy.deepcopy(model).bfloat16() if half else model
        features, dev_features = (_features(reader, data, device) for data in (train, dev))
        step = _HeadAlone(model)
    batches = _Epochs(
        train, config.batch_size, config.seed, None if features is None else features.cpu()
    )
    total = batches.per_epoch * config.epochs
    warmup = max(1, round(WARMUP_SHARE * total))

    @torch.no_grad()
    def evaluate(_: nn.Module) -> dict[str, float]:
        if dev_features is None:
            outputs = outputs_of(task, model, dev.inputs, device)
        else:
            assert isinstance(model, ForSequenceClassification)
            outputs = list(model.classify(dev_features).float().cpu())
        scores = task.score(outputs, dev.inputs, dev.examples, model.config)
        return {f"dev_{name}": scores[name] for name in task.scores}

    assert config.lr is not None
    trainer = Trainer(
        step,
        batches,
        out=work,
        steps=total,
        lr=config.lr,
        schedule=partial(linear_schedule, warmup=warmup, total=total),
        precision=config.precision,
        seed=config.seed,
        evaluate=evaluate,
        evaluate_every=batches.per_epoch,
        best=f"dev_{next(iter(task.scores))}",
        checkpoint_every=batches.per_epoch,
        log_every=batches.per_epoch,
        keep=1,
        device=device,
        models={"": model},
        inputs=inputs,
        label="finetune",
        callbacks=[report],
    )
    trainer.train(resume)
    losses = {line["step"]: line["loss"] for line in read_metrics(work)}
    history = [
        {
            "epoch": scores["step"] // batches.per_epoch,
            "train_loss": losses[scores["step"]],
            **{name: scores[name] for name in scores if name != "step"},
        }
        for scores in trainer.evaluations
    ]
    best = history[trainer.best["step"] // batches.per_epoch - 1]
    weights = load_checkpoint(checkpoint_folder(work, trainer.best["step"])).weights[""]
    model.float().load_state_dict(weights)
    if type(task).fit is not Task.fit:
        model.eval()
        outputs = outputs_of(task, model, dev.inputs, device)
        kept = task.fit(outputs, dev.inputs, dev.examples, model.config)
        task = task.configured(kept=kept)
    return task, history, best, trainer.seconds


@torch.no_grad()
def _features(model: ForSequenceClassification, data: _Data, device: torch.device) -> Tensor:
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
