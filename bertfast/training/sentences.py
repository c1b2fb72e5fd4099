"""Training of sentence encoders: texts in rows in, a folder of sentence-transformers out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.checks import check_adam, number, one_of, whole_number
from bertfast.data.columnar import data_files
from bertfast.data.labels import class_names
from bertfast.data.text_rows import TextRows, read_text_rows
from bertfast.errors import BertfastError
from bertfast.files import check_new, file_sha256, whole_folder, write_text
from bertfast.packed import PackedBatch
from bertfast.resolve import resolve
from bertfast.seeds import LAYERS, SENTENCES, fold_in, host_seed
from bertfast.sentences import CrossEncoder, SentenceEncoder
from bertfast.sentences.encoder import pack_rows
from bertfast.sentences.losses import LOSSES, LayerReduction, Loss, Matryoshka, Rows

from .checkpoint import checkpoint_folder, hidden_run, load_checkpoint
from .finetune import mean_loss
from .metrics import read_metrics
from .optimizer import BETAS, EPSILON, linear_schedule
from .options import takes_fields_of
from .precision import PRECISIONS, find_device
from .sentence_evaluation import evaluator_of
from .trackers import EVENTS, Report, tracker_names
from .trainer import Trainer

SAMPLINGS = ("size", "round-robin")
WARMUP_SHARE = 0.1  # of the updates
FREE = ("out", "device", "log_every", "report_to")  # options that change nothing that is computed


@dataclass(frozen=True)
class SentencesConfig:
    """One training run of a sentence encoder.

    Attributes:
        model: folder of sentence-transformers or of a plain encoder, or its Hub id.
        train: files of rows (see `bertfast.data.text_rows`), each a data set.
        out: folder of the result; it must not exist.
        loss: the name of a registered one; or one for each data set.
        loss_options: of the losses, by name; or texts as "name=value".
        text_columns: columns of the texts, in their order; empty for every one but the label's.
        label_column: None for label, labels, score or scores.
        score_scale: what scores are divided by, as 5 where they go from 0 to 5.
        teacher: folder or Hub id of a reranker whose scores, before its activation, are the labels
            of rows that have none.
        sampling: the order of several data sets' batches. The choice "size" takes each as often as
            it has them, "round-robin" one after another until one has no more.
        dev: a file or folder that is measured (see `evaluator_of`), and decides which evaluation
            is the best; None keeps the last weights.
        dev_text_columns, dev_label_column: of ``dev``; empty and None for those of ``train``.
        pooling: in place of the folder's; a plain encoder's is the mean.
        matryoshka: numbers of a vector that the loss is of too; empty for all of them alone.
        layers: earlier layers that the loss is of too, drawn for each update (2D Matryoshka); 0
            for none.
        epochs: passes over the training data.
        lr: peak learning rate.
        warmup: updates over which the rate rises; it then falls linearly to zero at the end.
        warmup_ratio: the same as a share of the updates; None is a tenth, where ``warmup`` is None
            too.
        weight_decay: not of biases and norms.
        adam_beta1, adam_beta2, adam_epsilon: of AdamW's moments.
        clip_norm: the joint norm that gradients are scaled down to.
        batch_size: rows of a batch.
        mini_batch: rows that are in memory at once: the others are computed again for their
            gradients, with the same dropout (GradCache; Gao et al., 2021). None is the batch.
        max_length: tokens of a text at most, in training and later; None is the model's own.
        precision: "fp32", or "bf16" with float32 master weights.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        revision: branch, tag or commit of the model on the Hub.
        seed: of the loss's own weights, the order and the dropout.
        evaluate_every: updates between evaluations; None is an epoch.
        early_stopping: evaluations in a row without a better one after which training ends.
        log_every: updates that a line to the trackers averages over; None is an evaluation.
        report_to: trackers that get the numbers: of tensorboard, wandb, mlflow and trackio, or
            "all" that are installed.
    """

    model: str
    train: tuple[str, ...]
    loss: tuple[str, ...]
    out: str
    loss_options: Mapping[str, Any] | Sequence[str] = ()
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    score_scale: float = 1.0
    teacher: str | None = None
    sampling: str = "size"
    dev: str | None = None
    dev_text_columns: tuple[str, ...] = ()
    dev_label_column: str | None = None
    pooling: str | None = None
    matryoshka: tuple[int, ...] = ()
    layers: int = 0
    epochs: int = 1
    lr: float = 2e-5
    warmup: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = 0.01
    adam_beta1: float = BETAS[0]
    adam_beta2: float = BETAS[1]
    adam_epsilon: float = EPSILON
    clip_norm: float = 1.0
    batch_size: int = 32
    mini_batch: int | None = None
    max_length: int | None = None
    precision: str = "fp32"
    device: str | None = None
    revision: str | None = None
    seed: int = 0
    evaluate_every: int | None = None
    early_stopping: int | None = None
    log_every: int | None = None
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "loss", "text_columns", "dev_text_columns", "matryoshka"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str | Path | int) else tuple(value)
            if name == "train":
                value = tuple(map(str, value))
            object.__setattr__(self, name, value)
        object.__setattr__(self, "report_to", tracker_names(self.report_to))
        if len(self.loss) not in (1, len(self.train)):
            raise BertfastError(
                f"there are {len(self.loss)} losses and {len(self.train)} data sets; give one "
                "loss, or one for each"
            )
        whole_number("layers", self.layers, 0)
        if self.mini_batch is not None:
            whole_number("mini_batch", self.mini_batch, 1)
        number("score_scale", self.score_scale, above=0)
        check_updates(self)
        Matryoshka(self.matryoshka)
        self.losses()

    def losses(self) -> list[Loss]:
        """The loss of each data set, configured.

        Raises:
            BertfastError: there is no such loss, or none of them has one of the options.
        """
        options = self.loss_options
        if not isinstance(options, Mapping):
            pairs = [str(option).partition("=") for option in options]
            for name, equals, _ in pairs:
                if not equals:
                    raise BertfastError(f"loss-option is {name!r}; it must be NAME=VALUE")
            options = {name: value for name, _, value in pairs}
        found = [LOSSES.find(name) for name in self.loss]
        for name in options:
            if not any(name in loss.options for loss in found):
                found[0].configured({name: options[name]})
        made = [
            loss.configured({key: options[key] for key in options if key in loss.options})
            for loss in found
        ]
        return made * len(self.train) if len(made) == 1 else made


def check_updates(config: Any) -> None:
    """Refuses options of the training of a sentence encoder or a reranker that cannot be used."""
    if not config.train:
        raise BertfastError("train names no file")
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        whole_number(name, getattr(config, name), least)
    for name, least in (
        ("warmup", 0),
        ("max_length", 4),
        ("evaluate_every", 1),
        ("early_stopping", 1),
        ("log_every", 1),
    ):
        if getattr(config, name) is not None:
            whole_number(name, getattr(config, name), least)
    if config.warmup_ratio is not None:
        number("warmup_ratio", config.warmup_ratio, least=0, most=1)
        if config.warmup is not None:
            raise BertfastError("warmup and warmup-ratio say the same thing; give one of the two")
    check_adam(config)
    one_of("precision", config.precision, PRECISIONS)
    one_of("sampling", config.sampling, SAMPLINGS)
    if config.dev is None:
        for name in ("evaluate_every", "early_stopping"):
            if getattr(config, name) is not None:
                raise BertfastError(f"{name.replace('_', '-')} needs data to evaluate on: dev")


@dataclass(frozen=True)
class SentencesResult:
    """The folder that was made, the dev scores of its weights (empty without dev data), the epoch
    that they are of, and every evaluation's numbers.
    """

    out: Path
    scores: dict[str, float]
    best_epoch: float
    history: list[dict[str, Any]]


@takes_fields_of(SentencesConfig)
def train_sentences(
    model: str | Path,
    train: str | Path | Sequence[str | Path],
    loss: str | Sequence[str],
    out: str | Path,
    *,
    resume: bool = False,
    **options: Any,
) -> SentencesResult:
    """Trains a sentence encoder; the command ``bertfast sentences`` as a function.

    Args:
        model: folder or Hub id of a sentence encoder or of a plain one.
        train: files of rows, each a data set.
        loss: of all data sets, or of each.
        out: folder of the result.
        resume: go on from the last evaluation of a run that was stopped, to the same result bit for
            bit. Where nothing was evaluated, it goes on from the start.
        options: the other fields of `SentencesConfig`.

    Raises:
        BertfastError: an option, a file or a folder cannot be used, or the loss became NaN; ``out``
            is as it was.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM; the same call with ``resume`` goes
            on.
    """
    config = SentencesConfig(
        model=str(model),
        train=train,  # type: ignore[arg-type]
        loss=loss,  # type: ignore[arg-type]
        out=str(out),
        **options,
    )
    check_new(config.out)
    target, device = Path(config.out).absolute(), find_device(config.device)
    evaluator = None
    if config.dev is not None:
        evaluator = evaluator_of(
            config.dev,
            config.dev_text_columns or config.text_columns,
            config.dev_label_column or config.label_column,
        )
    files = [
        read_text_rows(path, config.text_columns, config.label_column) for path in config.train
    ]
    source = resolve(config.model, config.revision)
    encoder = SentenceEncoder.from_pretrained(source.folder, pooling=config.pooling)
    _limit(encoder, config)
    torch.manual_seed(config.seed)
    if config.teacher is not None:
        files = _taught(files, config, device)
    data = [
        _DataSet(rows, loss, encoder, config)
        for rows, loss in zip(files, config.losses(), strict=True)
    ]
    for name, parameter in encoder.encoder.named_parameters():
        if name.startswith("pooler."):  # which no vector reads
            parameter.requires_grad_(False)
    step = TrainingStep(encoder, data, config)
    inputs = digests(config, source.folder)
    print(f"bertfast: starts from {source}", file=sys.stderr)
    with whole_folder(target) as folder, hidden_run(target) as work:
        with Report(config.report_to, target, asdict(config), events=work) as report:
            batches = MixedEpochs(data, config)
            history, best, seconds = run_updates(
                config, step, encoder, batches, evaluator, device, work, inputs, resume, report
            )
            report.finish(best)
        if (work / EVENTS).is_dir():
            shutil.move(work / EVENTS, folder / EVENTS)
        encoder.save_pretrained(folder)
        summary = {
            "best_epoch": best["epoch"],
            **{name: value for name, value in best.items() if name.startswith("dev_")},
            "seconds": seconds,
            "data": [part.summary() for part in data],
            "settings": asdict(config),
            "epochs": history,
        }
        write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    scores = {
        name.removeprefix("dev_"): value for name, value in best.items() if name.startswith("dev_")
    }
    return SentencesResult(Path(config.out), scores, best["epoch"], history)


def _limit(encoder: SentenceEncoder, config: SentencesConfig) -> None:
    """Sets the longest text, and refuses widths that the vectors do not have."""
    if config.max_length is not None:
        positions = encoder.encoder.config.max_length
        if config.max_length > positions:
            raise BertfastError(
                f"max-length is {config.max_length} and the model has {positions} positions"
            )
        encoder.max_length = config.max_length
    for dim in config.matryoshka:
        if dim > encoder.width:
            raise BertfastError(
                f"matryoshka has {dim} and the vectors {encoder.width} numbers; it must be at most "
                "that"
            )


def _taught(
    files: Sequence[TextRows], config: SentencesConfig, device: torch.device
) -> list[TextRows]:
    """The rows with a teacher's scores as their label, where the loss takes scores and they have
    none.

    A score is of the first text with each other one.

    Raises:
        BertfastError: the teacher cannot be used, or no rows need it.
    """
    needs = [
        rows.label is None and loss.labels in ("score", "scores")
        for rows, loss in zip(files, config.losses(), strict=True)
    ]
    if not any(needs):
        raise BertfastError(
            f"teacher is {config.teacher!r}, and no rows want its scores: their loss takes none, "
            "or they have labels"
        )
    teacher = CrossEncoder.from_pretrained(resolve(str(config.teacher)).folder).to(device)
    if teacher.num_labels != 1:
        raise BertfastError(
            f"{config.teacher}: gives {teacher.num_labels} numbers a pair; a teacher has one"
        )
    return [
        _scored(rows, teacher) if need else rows for rows, need in zip(files, needs, strict=True)
    ]


def _scored(rows: TextRows, teacher: CrossEncoder) -> TextRows:
    """Rows with the teacher's scores as their labels."""
    pairs = [(row.texts[0], text) for row in rows.rows for text in row.texts[1:]]
    scores = iter(teacher.predict(pairs, activation="Identity", show_progress_bar=True).tolist())
    labelled = []
    for row in rows.rows:
        label = [next(scores) for _ in row.texts[1:]]
        labelled.append(replace(row, label=label if len(label) > 1 else label[0]))
    return replace(rows, label="the teacher's scores", rows=labelled)


def digests(config: Any, model: Path) -> dict[str, str]:
    """Digests of what decides a run."""
    options = {name: value for name, value in asdict(config).items() if name not in FREE}
    files = [part for data in config.train for part in data_files(data)]
    if config.dev is not None:
        dev = Path(config.dev)
        files += sorted(dev.rglob("*")) if dev.is_dir() else [dev]
    return {
        "options": json.dumps(options, sort_keys=True, default=str),
        "data": "".join(file_sha256(file) for file in files if file.is_file()),
        "model": "".join(file_sha256(path) for path in sorted(model.rglob("*")) if path.is_file()),
    }


@dataclass
class TextBatch(PackedBatch):
    """The texts of rows, a row's one after another.

    ``per_sequence`` has ``texts``, the same number for the same text, and perhaps ``labels``, a
    row's beside each of its texts.

    Attributes:
        columns: texts of a row.
        source: number of the data set.
        lengths: tokens of each text.
    """

    columns: int = 1
    source: int = 0
    lengths: tuple[int, ...] = ()

    def part(self, first: int, last: int) -> PackedBatch:
        """The rows from ``first`` to before ``last``, without labels."""
        begin, end = first * self.columns, last * self.columns
        lengths = self.lengths[begin:end]
        start = sum(self.lengths[:begin])
        tokens = slice(start, start + sum(lengths))
        return PackedBatch(
            self.input_ids[tokens],
            self.segment_ids[tokens],
            self.position_ids[tokens],
            self.cu_seqlens[begin : end + 1] - start,
            max(lengths, default=0),
        )


class _DataSet:
    """The rows of a file as tokens, with a loss.

    Raises:
        BertfastError: the rows do not fit the loss.
    """

    def __init__(
        self, rows: TextRows, loss: Loss, encoder: SentenceEncoder, config: SentencesConfig
    ) -> None:
        self.rows, self.loss = rows, loss
        least, most = loss.texts
        if rows.texts < least or (most is not None and rows.texts > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            raise BertfastError(
                f"{rows.path}: its rows have {rows.texts} texts "
                f"({', '.join(map(repr, rows.columns))}), and the loss {loss.name!r} takes "
                f"{wanted}; --text-column names them"
            )
        self.classes: list[str] = []
        self.labels = self._labels(config)
        self.columns = 2 if loss.twice else rows.texts
        self.numbers: dict[str, int] = {}
        for row in rows.rows:
            for text in row.texts:
                self.numbers.setdefault(text, len(self.numbers))
        tokens = encoder.tokenize(list(self.numbers))
        self.tokens, self.truncated = tokens.rows, tokens.cut
        if tokens.cut:
            print(
                f"bertfast: {rows.path}: {tokens.cut} of {len(self.numbers)} texts were longer "
                f"than {encoder.max_length} tokens and were cut",
                file=sys.stderr,
            )
        where = f"; the label is {rows.label!r}" if loss.labels != "none" else ""
        print(
            f"bertfast: {rows.path}: {len(rows.rows)} rows of "
            f"{', '.join(map(repr, rows.columns))}{where}; the loss is {loss.name}",
            file=sys.stderr,
        )

    def _labels(self, config: SentencesConfig) -> Tensor | None:
        """(rows,) or (rows, numbers), as the loss takes them."""
        rows, kind = self.rows, self.loss.labels
        if kind == "none":
            return None
        if rows.label is None:
            raise BertfastError(
                f"{rows.path}: has no label ({', '.join(map(repr, rows.columns))}), which the loss "
                f"{self.loss.name!r} needs; --label-column names it"
            )
        if kind == "class":
            words = rows.words()
            lines = [row.line for row in rows.rows]
            self.classes = class_names(zip(lines, words, strict=True), rows.path)
            number = {name: index for index, name in enumerate(self.classes)}
            return torch.tensor([number[word] for word in words])
        values = rows.scores() if kind == "score" else rows.lists()
        labels = torch.tensor(values, dtype=torch.float32) / config.score_scale
        self.loss.check_labels(labels, rows.texts, str(rows.path))
        return labels

    def __len__(self) -> int:
        return len(self.rows.rows)

    def batch(self, rows: Sequence[int], source: int) -> TextBatch:
        """These rows, packed."""
        times = 2 if self.loss.twice else 1
        texts = [self.numbers[text] for row in rows for text in self.rows.rows[row].texts * times]
        packed = pack_rows([self.tokens[text] for text in texts])
        packed.per_sequence["texts"] = torch.tensor(texts)
        if self.labels is not None:
            packed.per_sequence["labels"] = self.labels[rows].repeat_interleave(self.columns, 0)
        lengths = tuple(len(self.tokens[text]) for text in texts)
        return TextBatch(**vars(packed), columns=self.columns, source=source, lengths=lengths)

    def summary(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {
            "file": str(self.rows.path),
            "rows": len(self),
            "columns": list(self.rows.columns),
            "label": self.rows.label,
            "loss": self.loss.name,
            "loss_options": dict(self.loss.options),
            "classes": self.classes,
            "truncated": self.truncated,
        }


class MixedEpochs:
    """The batches of several data sets; every epoch has each set's rows, and the sets, in an order
    of its own.

    Attributes:
        per_epoch: batches of an epoch.
    """

    def __init__(self, data: Sequence[Any], config: Any) -> None:
        self.data, self.seed, self.size = data, config.seed, config.batch_size
        self.counts = [-(-len(part) // self.size) for part in data]
        self.in_turn = config.sampling == "round-robin"
        self.per_epoch = min(self.counts) * len(self.counts) if self.in_turn else sum(self.counts)

    def iterate(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        """(epoch, batch) of number ``start`` and every later one."""
        epoch, done = divmod(start, self.per_epoch)
        while True:
            orders = [
                np.random.default_rng(host_seed(self.seed, epoch + 1, number)).permutation(
                    len(part)
                )
                for number, part in enumerate(self.data)
            ]
            taken = [0] * len(self.data)
            for index, source in enumerate(self._sources(epoch)):
                first = taken[source] * self.size
                taken[source] += 1
                if index >= done:
                    rows = orders[source][first : first + self.size].tolist()
                    yield epoch, self.data[source].batch(rows, source)
            epoch, done = epoch + 1, 0

    def _sources(self, epoch: int) -> NDArray[np.int64]:
        """The data set of each batch of an epoch."""
        if self.in_turn:
            return np.tile(np.arange(len(self.data)), min(self.counts))
        sources = np.repeat(np.arange(len(self.data)), self.counts)
        rng = np.random.default_rng(host_seed(self.seed, epoch + 1, len(self.data)))
        return rng.permutation(sources)


class TrainingStep(nn.Module):
    """A sentence encoder with its losses, as the trainer calls it."""

    def __init__(
        self, encoder: SentenceEncoder, data: Sequence[Any], config: SentencesConfig
    ) -> None:
        super().__init__()
        self.encoder, self.losses = encoder, [part.loss for part in data]
        made = [part.loss.build(encoder.width, len(part.classes)) for part in data]
        self.heads = nn.ModuleList(nn.Identity() if head is None else head for head in made)
        self.matryoshka = Matryoshka(config.matryoshka) if config.matryoshka else None
        self.reduction = LayerReduction(config.layers) if config.layers else None
        self.mini_batch = config.mini_batch

    def forward(self, batch: TextBatch, *, seed: int) -> dict[str, Tensor]:
        """The ``loss`` of a batch."""
        states = [
            list(x.unflatten(0, (-1, batch.columns)).unbind(1)) for x in self.states(batch, seed)
        ]
        labels = batch.per_sequence.get("labels")
        texts = batch.per_sequence["texts"].unflatten(0, (-1, batch.columns))
        function, head = self.losses[batch.source], self.heads[batch.source]

        def loss(vectors: Sequence[Tensor]) -> Tensor:
            chosen = None if labels is None else labels[:: batch.columns]
            return function(Rows(vectors, chosen, texts, head))

        each = loss if self.matryoshka is None else partial(self.matryoshka, loss)
        if self.reduction is None:
            return {"loss": each(states[-1])}
        draw = torch.Generator().manual_seed(fold_in(seed, LAYERS))
        return {"loss": self.reduction(each, states, draw)}

    def states(self, batch: TextBatch, seed: int) -> list[Tensor]:
        """(sequences, width) of the last layer, or of each with a reduction.

        The rows of a mini-batch are computed alone, and where there are several, again for their
        gradients. Dropout is a function of the seed, so that both times are one.
        """
        rows = batch.num_sequences // batch.columns
        size = self.mini_batch or rows
        if size >= rows:
            return self._encode(batch, seed)
        parts = [
            torch.utils.checkpoint.checkpoint(
                self._encode,
                batch.part(first, min(first + size, rows)),
                fold_in(seed, SENTENCES, first),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for first in range(0, rows, size)
        ]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _encode(self, batch: PackedBatch, seed: int) -> list[Tensor]:
        if self.reduction is None:
            return [self.encoder(batch, seed=seed)]
        return self.encoder.layer_vectors(batch, seed=seed)


def run_updates(
    config: Any,
    step: nn.Module,
    model: nn.Module,
    batches: MixedEpochs,
    evaluator: Any,
    device: torch.device,
    work: Path,
    inputs: dict[str, str],
    resume: bool,
    report: Report,
) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """Every evaluation's numbers, those of the best one, or of the last where nothing is measured,
    and the seconds.

    The model, a part of the step, has its weights in float32 then.
    """
    total = batches.per_epoch * config.epochs
    warmup = config.warmup
    if warmup is None:
        ratio = WARMUP_SHARE if config.warmup_ratio is None else config.warmup_ratio
        warmup = max(1, round(ratio * total)) if ratio else 0
    if warmup > total:
        raise BertfastError(
            f"warmup is {warmup} and the run has {total} updates; warmup must not go beyond them"
        )

    def evaluate(_: nn.Module) -> dict[str, float]:
        assert evaluator is not None
        return {f"dev_{name}": value for name, value in evaluator(model).items()}

    every = config.evaluate_every or batches.per_epoch
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
        seed=config.seed,
        evaluate=None if evaluator is None else evaluate,
        evaluate_every=every,
        best=None if evaluator is None else f"dev_{next(iter(evaluator.scores))}",
        patience=config.early_stopping,
        checkpoint_every=every,
        log_every=config.log_every or every,
        keep=1,
        device=device,
        models={"": model},
        inputs=inputs,
        label="sentences",
        callbacks=[report],
    )
    trainer.train(resume)
    lines = read_metrics(work)
    evaluations = trainer.evaluations or [{"step": total}]
    starts = [0, *(scores["step"] for scores in evaluations)]
    history = [
        {
            "epoch": round(scores["step"] / batches.per_epoch, 4),
            "step": scores["step"],
            "train_loss": mean_loss(lines, start, scores["step"]),
            **{name: value for name, value in scores.items() if name != "step"},
        }
        for start, scores in zip(starts, evaluations, strict=False)
    ]
    best = trainer.best.get("step", total)
    weights = load_checkpoint(checkpoint_folder(work, best)).weights[""]
    model.float().load_state_dict(weights, strict=False)
    model.eval()
    found = next(line for line in history if line["step"] == best)
    return history, found, trainer.seconds
