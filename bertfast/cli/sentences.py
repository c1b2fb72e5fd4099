"""Commands of sentence encoders and rerankers: training them, and searching with them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from . import spellings
from .command import (
    REGISTERED,
    RegistryOption,
    argument,
    command,
    device_option,
    option,
    revision_option,
    training_precision_option,
)
from .extensions import import_option
from .train import adamw_options, bf16_flag, report_option, resume_option, until_stopped


@command(spellings=spellings.SENTENCES)
@argument("model")
@option(
    "--train",
    multiple=True,
    required=True,
    metavar="FILE...",
    help="Rows of texts, each file a data set: TSV, CSV, JSON lines or Parquet; or plain text.",
)
@option(
    "--loss",
    cls=RegistryOption,
    kind="loss",
    multiple=True,
    required=True,
    metavar="NAME...",
    help=f"One for all data sets, or one for each: {REGISTERED}.",
)
@option("--out", required=True, help="Folder to write; it must not exist.")
@option(
    "--loss-option",
    "loss_options",
    multiple=True,
    metavar="NAME=VALUE...",
    help="What a loss alone has, as temperature=0.1; the guide lists them.",
)
@option(
    "--text-column",
    "text_columns",
    multiple=True,
    metavar="NAME...",
    help="Columns of the texts, in their order. Default: every column but the label's.",
)
@option("--label-column", help="Default: label, labels, score or scores.")
@option("--score-scale", type=float, default=1.0, help="What scores are divided by.")
@option("--sampling", default="size", help="Order of several data sets: size or round-robin.")
@option("--dev", help="File, or folder of BEIR, that the best evaluation is chosen on.")
@option(
    "--dev-text-column",
    "dev_text_columns",
    multiple=True,
    metavar="NAME...",
    help="Of --dev. Default: those of --train.",
)
@option("--dev-label-column", help="Of --dev. Default: that of --train.")
@revision_option
@option("--pooling", help="In place of the model's: mean, cls, max, ...")
@option(
    "--matryoshka",
    type=int,
    multiple=True,
    metavar="NUMBER...",
    help="Train the first numbers of the vectors too, as 256 128 64.",
)
@option("--layers", type=int, default=0, help="Earlier layers of each update (2D Matryoshka).")
@option("--epochs", type=int, default=1, help="Passes over the data.")
@option("--lr", type=float, default=2e-5, help="Peak learning rate.")
@option(
    "--warmup",
    type=int,
    help="Updates of warm-up; default: a tenth of all, as --warmup-ratio 0.1 says.",
)
@option("--warmup-ratio", type=float, help="The same, as a share of the updates.")
@adamw_options
@option("--batch-size", type=int, default=32, help="Rows of a batch.")
@option(
    "--mini-batch",
    type=int,
    help="Rows in memory at once, the others computed twice (GradCache). Default: the batch.",
)
@option("--max-length", type=int, help="Tokens of a text at most; default: the model's.")
@training_precision_option
@bf16_flag
@device_option
@option("--seed", type=int, default=0, help="Of new weights, order and dropout.")
@option("--evaluate-every", type=int, help="Updates between evaluations. Default: an epoch.")
@option(
    "--early-stopping",
    type=int,
    metavar="N",
    help="Stop after N evaluations in a row without a better one.",
)
@option("--log-every", type=int, help="Updates between lines to the trackers; default: an epoch.")
@report_option("none")
@import_option
@resume_option
def sentences(resume: bool, **values: Any) -> None:
    """Train a sentence encoder, from a folder or a Hub id, on rows of texts.

    The result is a folder of sentence-transformers.

    \b
    Example:
        bertfast sentences run --train pairs.tsv --loss multiple-negatives --out encoder
    """
    from bertfast.training.sentences import SentencesConfig, train_sentences

    options = {field.name: values[field.name] for field in fields(SentencesConfig)}
    result = until_stopped(lambda: train_sentences(**options, resume=resume))
    last = result.history[-1]
    if result.scores:
        said = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
        print(f"{result.out}: dev {said} (epoch {result.best_epoch:g})")
    else:
        print(f"{result.out}: loss {last['train_loss']:.4f} (epoch {last['epoch']:g})")
