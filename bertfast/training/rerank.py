"""Training of rerankers: queries with documents in, a folder of `CrossEncoder` out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.checks import one_of
from bertfast.data.text_rows import TextRows, read_text_rows, score
from bertfast.errors import BertfastError
from bertfast.files import check_new, whole_folder, write_text
from bertfast.packed import PackedBatch
from bertfast.resolve import resolve
from bertfast.scoring import correlations, scores_of
from bertfast.sentences.cross_encoder import CrossEncoder, pack_pairs
from bertfast.sentences.evaluation import Evaluator, Reranking, Similarity, rerank_scores
from bertfast.sentences.ranking_losses import RANKING_LOSSES, Ranked

from .checkpoint import hidden_run
from .optimizer import BETAS, EPSILON
from .options import takes_fields_of
from .precision import find_device, inference_dtype
from .sentence_evaluation import evaluator_of
from .sentences import MixedEpochs, SentencesResult, check_updates, digests, run_updates
from .trackers import Report, tracker_names

LISTS = ("list-net", "lambda")  # of which a query's documents are one example


@dataclass(frozen=True)
class RerankConfig:
    """One training run of a reranker.

    Attributes:
        model: folder of a `CrossEncoder`, a sequence classifier of one number or a plain encoder,
            or its Hub id.
        train: files of rows (see `bertfast.data.text_rows`): a query, and one or several documents.
        out: folder of the result; it must not exist.
        loss: "binary" (labels from 0 to 1), "mse" and "margin-mse" (a teacher's scores), "list-net"
            or "lambda" (a query with a list of documents). Without labels the first document of
            several is relevant and the others are not.
        text_columns: columns of the texts, in their order; empty for every one but the label's.
        label_column: None for label, labels, score or scores.
        dev: a file that is measured, and decides which evaluation is the best: pairs with a
            number, or JSON lines of ``query``, ``positive`` and ``negative``. None keeps the last
            weights.
        dev_text_columns, dev_label_column: of ``dev``; empty and None for those of ``train``.
        sampling: the order of several data sets' batches: "size" or "round-robin".
        epochs: passes over the training data.
        lr: peak learning rate.
        warmup: updates over which the rate rises; it then falls linearly to zero at the end.
        warmup_ratio: the same as a share of the updates; None is a tenth, where ``warmup`` is None
            too.
        weight_decay: not of biases and norms.
        adam_beta1, adam_beta2, adam_epsilon: of AdamW's moments.
        clip_norm: the joint norm that gradients are scaled down to.
        batch_size: rows of a batch, each with all its documents.
        max_length: tokens of a pair at most, in training and later; None is the model's own.
        precision: "fp32", or "bf16" with float32 master weights.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        revision: branch, tag or commit of the model on the Hub.
        seed: of a new head, the order and the dropout.
        evaluate_every: updates between evaluations; None is an epoch.
        early_stopping: evaluations in a row without a better one after which training ends.
        log_every: updates that a line to the trackers averages over; None is an evaluation.
        report_to: trackers that get the numbers: of tensorboard, wandb, mlflow and trackio, or
            "all" that are installed.
    """

    model: str
    train: tuple[str, ...]
    out: str
    loss: str = "binary"
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    dev: str | None = None
    dev_text_columns: tuple[str, ...] = ()
    dev_label_column: str | None = None
    sampling: str = "size"
    epochs: int = 1
    lr: float = 2e-5
    warmup: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = 0.01
    adam_beta1: float = BETAS[0]
    adam_beta2: float = BETAS[1]
    adam_epsilon: float = EPSILON
    clip_norm: float = 1.0
    batch_size: int = 16
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
        for name in ("train", "text_columns", "dev_text_columns"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str | Path) else value
            object.__setattr__(self, name, tuple(map(str, value)))
        object.__setattr__(self, "report_to", tracker_names(self.report_to))
        one_of("loss", self.loss, RANKING_LOSSES)
        check_updates(self)


@takes_fields_of(RerankConfig)
def train_reranker(
    model: str | Path,
    train: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    **options: Any,
) -> SentencesResult:
    """Trains a reranker; the command ``bertfast rerank --train`` as a function.

    Args:
        model: folder or Hub id of a reranker, a classifier or a plain encoder.
        train: files of rows, each a data set.
        out: folder of the result.
        resume: go on from the last evaluation of a run that was stopped, to the same result bit for
            bit. Where nothing was evaluated, it goes on from the start.
        options: the other fields of `RerankConfig`.

    Raises:
        BertfastError: an option, a file or a folder cannot be used, or the loss became NaN; ``out``
            is as it was.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM; the same call with ``resume`` goes
            on.
    """
    config = RerankConfig(model=str(model), train=train, out=str(out), **options)  # type: ignore[arg-type]
    check_new(config.out)
    target, device = Path(config.out).absolute(), find_device(config.device)
    evaluator = None
    if config.dev is not None:
        columns = config.dev_text_columns or config.text_columns
        label = config.dev_label_column or config.label_column
        evaluator = _Measured(evaluator_of(config.dev, columns, label), config.dev)
    files = [
        read_text_rows(path, config.text_columns, config.label_column, uneven=True)
        for path in config.train
    ]
    source = resolve(config.model, config.revision)
    torch.manual_seed(config.seed)
    reranker = CrossEncoder.from_pretrained(source.folder, num_labels=1)
    if reranker.num_labels != 1:
        raise BertfastError(
            f"{config.model}: gives {reranker.num_labels} numbers a pair; a reranker has one"
        )
    if config.max_length is not None:
        positions = reranker.model.config.max_length
        if config.max_length > positions:
            raise BertfastError(
                f"max-length is {config.max_length} and the model has {positions} positions"
            )
        reranker.max_length = config.max_length
    if config.loss != "binary":
        reranker.activation = "Identity"
    data = [_Lists(rows, reranker, config.loss) for rows in files]
    print(f"bertfast: starts from {source}", file=sys.stderr)
    with whole_folder(target) as folder, hidden_run(target) as work:
        with Report(config.report_to, target, asdict(config), events=work) as report:
            history, best, seconds = run_updates(
                config,
                _Step(reranker, config.loss),
                reranker,
                MixedEpochs(data, config),
                evaluator,
                device,
                work,
                digests(config, source.folder),
                resume,
                report,
            )
            report.finish(best)
        reranker.save_pretrained(folder)
        summary = {
            "best_epoch": best["epoch"],
            **{name: value for name, value in best.items() if name.startswith("dev_")},
            "seconds": seconds,
            "settings": asdict(config),
            "epochs": history,
        }
        write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    scores = {
        name.removeprefix("dev_"): value for name, value in best.items() if name.startswith("dev_")
    }
    return SentencesResult(Path(config.out), scores, best["epoch"], history)


class _Lists:
    """Queries with their documents, as tokens with labels.

    Raises:
        BertfastError: a label is missing or cannot be used; its row is named.
    """

    def __init__(self, rows: TextRows, reranker: CrossEncoder, loss: str) -> None:
        self.labels = [_labels(rows, number, loss) for number in range(len(rows.rows))]
        pairs = [(row.texts[0], document) for row in rows.rows for document in row.texts[1:]]
        tokens = iter(reranker.tokenize(pairs))
        self.tokens = [[next(tokens) for _ in row.texts[1:]] for row in rows.rows]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int], source: int) -> PackedBatch:
        """These rows, packed."""
        batch = pack_pairs([pair for row in rows for pair in self.tokens[row]])
        labels = [label for row in rows for label in self.labels[row]]
        numbers = [number for number, row in enumerate(rows) for _ in self.tokens[row]]
        batch.per_sequence |= {
            "labels": torch.tensor(labels, dtype=torch.float32),
            "query": torch.tensor(numbers),
        }
        return batch


def _labels(rows: TextRows, number: int, loss: str) -> list[float]:
    """A label for each document of a row."""
    row = rows.rows[number]
    documents = len(row.texts) - 1
    where = f"{rows.path}, line {row.line}"
    if documents < 1:
        raise BertfastError(f"{where}: has one text; a query and a document are wanted")
    if loss in (*LISTS, "margin-mse") and documents < 2:
        raise BertfastError(f"{where}: has one document; the loss {loss!r} compares several")
    if rows.label is None:
        if documents < 2 or loss in ("mse", "margin-mse"):
            raise BertfastError(
                f"{rows.path}: has no label, which the loss {loss!r} needs for these columns; "
                "--label-column names it"
            )
        return [1.0] + [0.0] * (documents - 1)
    values = row.label if isinstance(row.label, list) else [row.label]
    labels = [score(value, rows, row) for value in values]
    if loss == "margin-mse" and len(labels) == documents - 1:
        labels = [0.0, *(-margin for margin in labels)]
    if len(labels) != documents:
        raise BertfastError(f"{where}: has {documents} documents and {len(labels)} label(s)")
    if loss == "binary" and not all(0 <= label <= 1 for label in labels):
        raise BertfastError(f"{where}: a label of the loss 'binary' must be from 0 to 1")
    return labels


class _Step(nn.Module):
    """A reranker with its loss, as the trainer calls it."""

    def __init__(self, reranker: CrossEncoder, loss: str) -> None:
        super().__init__()
        self.reranker, self.loss = reranker, RANKING_LOSSES[loss][0]

    def forward(self, batch: PackedBatch, *, seed: int) -> dict[str, Tensor]:
        scores = self.reranker(batch, seed=seed)[:, 0].float()
        labels, queries = (batch.per_sequence[name] for name in ("labels", "query"))
        return {"loss": self.loss(Ranked.of(scores, labels, queries))}


class _Measured:
    """What an evaluator's data say of a reranker.

    Attributes:
        scores: as of the evaluator.

    Raises:
        BertfastError: the data have nothing to rank.
    """

    def __init__(self, evaluator: Evaluator, source: str | Path) -> None:
        if not isinstance(evaluator, Similarity | Reranking):
            raise BertfastError(
                f"{source}: is data of {evaluator.name}; a reranker is measured on pairs with a "
                "number, or on JSON lines with query, positive and negative"
            )
        self.evaluator, self.scores = evaluator, evaluator.scores

    def __call__(self, reranker: CrossEncoder) -> dict[str, float]:
        data = self.evaluator
        if isinstance(data, Similarity):
            found = reranker.predict(list(zip(data.first, data.second, strict=True)))
            scores = scores_of(correlations(found, data.targets), data.examples)
            return {name: float(scores[name]) for name in self.scores}
        assert isinstance(data, Reranking)
        pairs = [(query, text) for query, good, bad in data.samples for text in (*good, *bad)]
        found, orders, start = reranker.predict(pairs), [], 0
        for _, good, bad in data.samples:
            end = start + len(good) + len(bad)
            relevant = np.array([1] * len(good) + [0] * len(bad))
            orders.append((relevant, found[start:end]))
            start = end
        return rerank_scores(orders, data.depth)


def evaluate_reranker(
    folder: str | Path,
    data: str | Path,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Measures a reranker on pairs with a number, or on queries with positives and negatives.

    Args:
        folder: of the reranker, or its Hub id.
        data, text_columns, label_column: as of `evaluator_of`.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        precision: of the computation: "fp32", "bf16" or "fp16".

    Returns:
        the kind, each of its scores, and how many examples there are.

    Raises:
        BertfastError: the model or the data cannot be used.
    """
    evaluator = evaluator_of(data, text_columns, label_column)
    measured = _Measured(evaluator, data)
    reranker = CrossEncoder.from_pretrained(resolve(folder).folder)
    reranker.to(find_device(device), inference_dtype(precision))
    return {"kind": evaluator.name, **measured(reranker), "examples": evaluator.examples}
