"""Commands that train: a tokenizer, a model on text, a model on labelled examples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from bertfast.errors import BertfastError

from . import spellings
from .command import (
    FILE,
    REGISTERED,
    RegistryOption,
    command,
    data_option,
    device_option,
    option,
    revision_option,
    say,
    stop,
    task_options_option,
    text_column_option,
    text_field_option,
    training_precision_option,
)
from .command import argument as argument
from .extensions import IMPORTED, import_option

T = TypeVar("T")
# Hugging Face's flags of a precision.
bf16_flag = option("--bf16", "precision", flag_value="bf16", hidden=True)
# What a corpus may be.
CORPUS = (
    "Files of text: plain (a blank line between documents), JSON lines, Parquet, Arrow, and gzip "
    "or Zstandard of text. Or folders, globs, Hub ids and addresses (s3://, gs://, hf://)."
)
resume_option = option(
    "--resume", is_flag=True, help="Go on from the last checkpoint of a stopped run."
)


def adamw_options(function: Any) -> Any:
    """Those of AdamW and of the clipping of its gradients."""
    for add in reversed(
        (
            option("--weight-decay", type=float, default=0.01, help="Not of biases and norms."),
            option("--adam-beta1", type=float, default=0.9, help="Of AdamW's first moment."),
            option("--adam-beta2", type=float, default=0.999, help="Of its second moment."),
            option("--adam-epsilon", type=float, default=1e-6, help="Beside its root."),
            option(
                "--clip-norm", type=float, default=1.0, help="Norm that gradients are scaled to."
            ),
        )
    ):
        function = add(function)
    return function


def report_option(default: str) -> Callable[[Any], Any]:
    """``--report-to``, for a command whose default is said so."""
    return option(
        "--report-to",
        multiple=True,
        metavar="NAME...",
        help="Trackers that get the numbers: tensorboard, wandb, mlflow, trackio, all that are "
        f"installed, or none. Default: {default}.",
    )


@command(spellings=spellings.TOKENIZER)
@data_option(help=CORPUS)
@option("--out", type=FILE, required=True, help="Folder to write; it must not exist.")
@option(
    "--type",
    "kind",
    default="wordpiece",
    help="wordpiece (BERT), mpnet (MPNet's WordPiece), bpe (RoBERTa's bytes) or unigram (ALBERT, "
    "DeBERTa v3).",
)
@option("--vocab-size", type=int, default=30522, help="Entries of the vocabulary.")
@option("--cased", is_flag=True, help="Keep upper case and accents, as bpe always does.")
@option(
    "--sample", type=float, default=1.0, help="Share of the documents to learn from, by chance."
)
@text_field_option
def tokenizer(
    data: tuple[str, ...],
    out: Path,
    kind: str,
    vocab_size: int,
    cased: bool,
    sample: float,
    text_field: str,
) -> None:
    """Train a tokenizer on text: WordPiece, byte-level BPE or Unigram.

    \b
    Example:
        bertfast tokenizer --data corpus.txt --vocab-size 8192 --out tok
    """
    from bertfast.data.corpus import Lines
    from bertfast.files import check_new
    from bertfast.tokenization import (
        save_tokenizer,
        train_byte_level_bpe,
        train_unigram,
        train_wordpiece,
    )

    check_new(out)
    lines = Lines(data, text_field, sample)
    if kind in ("wordpiece", "mpnet"):
        trained = train_wordpiece(lines, vocab_size, lowercase=not cased, mpnet=kind == "mpnet")
    elif kind == "unigram":
        trained = train_unigram(lines, vocab_size, lowercase=not cased)
    elif kind == "bpe":
        trained = train_byte_level_bpe(lines, vocab_size)
    else:
        raise BertfastError(f"type is {kind!r}; it must be one of wordpiece, bpe, unigram, mpnet")
    save_tokenizer(trained, out)
    print(f"{trained.get_vocab_size()} entries in {out}")


@command(spellings=spellings.TOKENIZER)
@data_option(help=CORPUS)
@option("--tokenizer", required=True, help="Folder or Hub id of the tokenizer.")
@option("--out", required=True, help="Folder of the store.")
@option("--workers", type=int, help="Processes that tokenize. Default: one a processor.")
@option("--shard-tokens", type=int, default=1 << 25, help="Tokens of a shard at most.")
@option("--drop-duplicates", is_flag=True, help="Leave out documents that were there before.")
@option(
    "--drop-near-duplicates",
    "near_duplicates",
    type=float,
    metavar="SHARE",
    help="Leave out documents that share this much of their runs of five words with an earlier "
    "one, by MinHash; 0.8 is usual.",
)
@option("--engine", default="local", help="local, or ray: the workers of a Ray cluster.")
@text_field_option
def prepare(data: tuple[str, ...], tokenizer: str, out: str, **options: Any) -> None:
    """Tokenize a corpus once, into shards that bertfast pretrain takes as --data.

    The same command goes on where a stopped or killed one was.

    \b
    Example:
        bertfast prepare --data 'corpus/*.jsonl.zst' --tokenizer tok --out store
    """
    from bertfast.data.prepare import prepare as run_prepare
    from bertfast.progress import BytesBar

    try:
        with BytesBar("prepare") as bar:
            made = run_prepare(data, tokenizer, out, on_progress=bar.advance, **options)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        raise
    left_out = "".join(
        f", {count:,} {what} left out"
        for count, what in (
            (made.duplicates, "duplicates"),
            (made.near_duplicates, "near-duplicates"),
        )
        if count
    )
    print(
        f"{made.out}: {made.tokens:,} tokens of {made.documents:,} documents in {made.shards:,} "
        f"shard{'s' * (made.shards != 1)}{left_out}"
    )


@command(spellings=spellings.PRETRAIN)
@data_option(
    help="Files of text: plain (a blank line between documents), JSON lines, or gzip of either. Or "
    "stores of bertfast prepare, folders or addresses, as STORE or STORE:WEIGHT."
)
@option("--tokenizer", help="Folder or Hub id of the tokenizer. Default: the one beside --model.")
@option("--out", required=True, help="Folder of the run.")
@option(
    "--shape",
    help="A new model, of random weights: a preset (bert-small, albert-base, electra-small, ...) "
    "or a config.json. Default: bert-small, where there is no --model.",
)
@option("--model", help="Folder or Hub id of a model to go on training from.")
@revision_option
@option(
    "--objective",
    cls=RegistryOption,
    kind="objective",
    help=f"One of {REGISTERED}. Default: by the model, mlm+nsp for BERT, mlm+sop for ALBERT, "
    "rtd for ELECTRA, else mlm.",
)
@option("--teacher", help="Folder or Hub id of the model to distill from.")
@option(
    "--generator-size",
    type=float,
    default=0.25,
    help="Width of the generator beside the discriminator's, with --objective rtd.",
)
@option("--masking", default="dynamic", help="dynamic (new each epoch) or static.")
@option("--mask-unit", default="token", help="What is hidden together: token, whole-word or span.")
@option("--mask-rate", type=float, default=0.15, help="Share of the tokens that are hidden.")
@option("--mask-rate-end", type=float, help="At the end of --steps; it changes evenly.")
@option("--steps", type=int, default=10_000, help="Updates.")
@option("--batch-tokens", type=int, default=8192, help="Tokens of a batch at most.")
@option("--batch-tokens-start", type=int, help="Of the first batch; it rises evenly.")
@option("--batch-warmup", type=int, default=0, help="Updates over which it rises.")
@option("--seq-len", type=int, default=128, help="Tokens of a sequence at most.")
@option(
    "--seq-len-stages",
    multiple=True,
    metavar="LENGTH:UPDATES...",
    help="Shorter sequences first: 64:1000 is a thousand updates of at most 64 tokens.",
)
@option(
    "--optimizer",
    default="adamw",
    help="adamw, lamb, or muon (PyTorch's) for the matrices of the layers.",
)
@option("--lr", type=float, default=1e-4, help="Peak learning rate.")
@option(
    "--warmup",
    type=int,
    help="Updates of warm-up; default: 1000, or a tenth of --steps if that is less.",
)
@option(
    "--schedule",
    default="linear",
    help="How the rate falls: linear, cosine, wsd (in the last --decay updates) or inverse-sqrt.",
)
@option("--decay", type=int, help="Updates of wsd's decay; default: a tenth of --steps.")
@option(
    "--branch",
    metavar="CHECKPOINT",
    help="Go on from a checkpoint of another run, under these options: for a decay from it.",
)
@option("--warmup-ratio", type=click.FloatRange(0, 1), help="The same, as a share of --steps.")
@adamw_options
@option(
    "--accumulation",
    type=int,
    help="Batches averaged for an update; torchrun's ranks, or srun's, share them. Default: one a "
    "rank.",
)
@option("--reduction", default="fp32", help="In which ranks sum gradients: fp32 or bf16.")
@option(
    "--rank-timeout",
    type=float,
    default=600.0,
    help="Seconds without an update after which ranks hang.",
)
@training_precision_option
@bf16_flag
@device_option
@option(
    "--cuda-graph/--no-cuda-graph",
    default=None,
    help="Send each update to the GPU at once; default: where it can be.",
)
@option("--seed", type=int, default=0, help="Of weights, data order, masks and dropout.")
@option(
    "--valid",
    multiple=True,
    metavar="FILE...",
    help="Files of text that is held out: the loss on it is measured, under masks that never "
    "change, and the best checkpoint is kept.",
)
@option("--valid-split", type=float, help="The same with the last documents of --data: a share.")
@option("--evaluate-every", type=int, help="Updates between; default: those of checkpoints.")
@option("--checkpoint-every", type=int, default=1000, help="Updates between checkpoints.")
@option("--keep", type=int, default=2, help="The newest checkpoints that are kept.")
@option(
    "--log-every",
    type=int,
    default=10,
    help="Updates that a line of metrics.jsonl averages over.",
)
@report_option("TensorBoard, where it is installed")
@text_field_option
@option(
    "--shard-cache",
    type=float,
    default=4.0,
    help="Gibibytes that the shards of an address may take in --out.",
)
@import_option
@resume_option
def pretrain(resume: bool, warmup_ratio: float | None, **values: Any) -> None:
    """Pretrain a BERT on text.

    \b
    Example:
        bertfast pretrain --data corpus.txt --tokenizer tok --shape bert-mini --steps 1000 --out run
    """
    from bertfast.ranks import launched
    from bertfast.training.pretrain import pretrain as run_pretrain

    options = _pretraining(values, warmup_ratio)
    result = until_stopped(lambda: run_pretrain(**options, resume=resume))
    if launched().first:
        print(
            f"{result.out}: step {result.steps}, loss {result.last.get('loss', float('nan')):.4f}"
        )


def _pretraining(values: dict[str, Any], warmup_ratio: float | None) -> dict[str, Any]:
    """What was given, as fields of `PretrainConfig`."""
    from bertfast.training.config import PretrainConfig

    if warmup_ratio is not None:
        if values["warmup"] is not None:
            raise BertfastError("--warmup and --warmup-ratio say the same thing; give one")
        values["warmup"] = round(warmup_ratio * values["steps"])
    # An empty list in a file of options is none, and nothing at all the default.
    source = click.get_current_context().get_parameter_source("report_to")
    if source is ParameterSource.DEFAULT:
        values["report_to"] = None
    return {
        field.name: values[field.name] for field in fields(PretrainConfig) if field.name in values
    }


def _adapting() -> list[click.Parameter]:
    """The options of `pretrain` that an existing model leaves open."""
    settled = {"shape", "model", "tokenizer", "teacher", "generator_size", "resume"}
    own = {"config", "print_config"}  # that every command gets
    found = [copy.copy(given) for given in pretrain.params if given.name not in settled | own]
    for given in found:
        if given.name == "steps":
            given.default = 1000
        elif given.name == "objective":
            given.help = "Default: mlm, and rtd for ELECTRA."
        elif given.name == "valid_split":
            given.help = "Share of the documents held out; default 0.05 without --valid."
    return found


@command(spellings=spellings.PRETRAIN, params=_adapting())
@argument("model")
@resume_option
def adapt(resume: bool, warmup_ratio: float | None, **values: Any) -> None:
    """Pretrain a model, a folder or a Hub id, further on own text, and check that it helps.

    The loss on held-out text must fall; it is measured before, on the way and at the end. What
    comes out is a pretrained model for bertfast finetune.

    \b
    Example:
        bertfast adapt run --data corpus.txt --steps 1000 --out adapted
    """
    from bertfast.ranks import launched
    from bertfast.training.adapt import adapt as run_adapt

    options = _pretraining(values, warmup_ratio)
    result, start = until_stopped(lambda: run_adapt(**options, resume=resume))
    best = result.best
    if launched().first:
        print(
            f"{result.out}: held-out loss {start:.4f} -> {best['valid_loss']:.4f} "
            f"(step {best['step']})"
        )


@command(spellings=spellings.FINETUNE)
@argument("model")
@option("--train", required=True, help="Training data: TSV, CSV or JSON lines with a header.")
@option("--dev", help="Data that the best epoch is chosen on.")
@option("--out", required=True, help="Folder to write; it must not exist.")
@option("--dev-split", type=float, help="In place of --dev, the share of --train held out.")
@option("--folds", type=int, help="In place of --dev, parts of --train held out in turn.")
@option("--fold", type=int, help="The one of --folds to run alone, from 1.")
@option("--split-seed", type=int, default=0, help="Of the parts of --train.")
@option("--max-train-samples", type=int, help="Train on so many examples alone, drawn by --seed.")
@revision_option
@option(
    "--task",
    cls=RegistryOption,
    kind="task",
    help=f"One of {REGISTERED}. Default: the one that the labels are of.",
)
@task_options_option
@text_column_option
@option("--pair-column", help="Second text of a pair. Default: found by the usual names.")
@option("--label-column", help="Default: label. A label is a word or a whole number.")
@option("--freeze-encoder", is_flag=True, help="Train the classifier alone.")
@option("--from-scratch", is_flag=True, help="Keep the model's shape, not its weights.")
@option(
    "--adapter",
    help="Train a small adapter and the head alone: lora, dora or ia3, saved as a folder of peft. "
    "bertfast merge makes it a whole model.",
)
@option("--adapter-rank", type=int, default=8, help="Rank of a LoRA or DoRA adapter.")
@option("--adapter-alpha", type=float, default=16.0, help="Its change is scaled by alpha / rank.")
@option("--adapter-dropout", type=float, default=0.0, help="Dropout before its factors.")
@option(
    "--adapter-targets",
    default="attention",
    help="Where it stands: attention (queries and values), all-linear, or ends of modules' names "
    "between commas.",
)
@option("--epochs", type=int, default=3, help="Passes over the data.")
@option(
    "--lr",
    type=float,
    help="Peak learning rate; default 5e-5, 5e-4 with an adapter, 1e-2 when frozen.",
)
@option(
    "--warmup",
    type=int,
    help="Updates of warm-up; default: a tenth of all, as --warmup-ratio 0.1 says.",
)
@option("--warmup-ratio", type=float, help="The same, as a share of the updates.")
@adamw_options
@option("--batch-size", type=int, default=32, help="Examples of a batch.")
@option("--batch-tokens", type=int, help="In its place, tokens of a batch at most.")
@option("--group-by-length", is_flag=True, help="Batch examples of like length together.")
@option("--accumulation", type=int, default=1, help="Batches of an update.")
@option(
    "--max-length",
    type=int,
    help="Tokens of an example at most; default: the model's positions.",
)
@training_precision_option
@bf16_flag
@device_option
@option("--seed", type=int, default=0, help="Of new weights, order and dropout.")
@option("--seeds", type=int, default=1, help="Runs from as many seeds, the first being --seed.")
@option("--evaluate-every", type=int, help="Updates between evaluations. Default: an epoch.")
@option(
    "--early-stopping",
    type=int,
    metavar="N",
    help="Stop after N evaluations in a row without a better one.",
)
@option(
    "--metric-for-best",
    metavar="SCORE",
    help="Which evaluation is the best: a score, loss or ece. Default: the task's first score.",
)
@option(
    "--class-weights",
    metavar="balanced|FILE",
    help="Weights of the labels in the loss: balanced, or a JSON file of label to weight.",
)
@option("--label-smoothing", type=float, default=0.0, help="Share of a label spread over all.")
@option("--focal-gamma", type=float, default=0.0, help="Exponent of the focal loss.")
@option("--rdrop", type=float, default=0.0, help="Weight of R-Drop's term; runs batches twice.")
@option("--freeze-layers", type=int, default=0, help="Embeddings and first N layers to leave.")
@option("--layer-decay", type=float, default=1.0, help="Rate of a layer, of that of the next.")
@option(
    "--calibrate/--no-calibrate",
    default=True,
    help="Divide the logits by the temperature that fits the dev data best.",
)
@option("--log-every", type=int, help="Updates between lines to the trackers; default: an epoch.")
@report_option("none")
@import_option
@resume_option
def finetune(resume: bool, **values: Any) -> None:
    """Fine-tune a pretrained model, a folder or a Hub id, for a task on labelled texts.

    \b
    Example:
        bertfast finetune run --train train.tsv --dev dev.tsv --epochs 3 --out classifier
    """
    from bertfast.tasks import TASKS
    from bertfast.training.finetune import FinetuneConfig
    from bertfast.training.finetune import finetune as run_finetune

    options = {field.name: values[field.name] for field in fields(FinetuneConfig)}
    result = until_stopped(lambda: run_finetune(**options, resume=resume))
    task = TASKS[result.task]
    said = ", ".join(task.said(result.scores))
    print(f"{result.out}: dev {said} (epoch {result.best_epoch:g})")
    if result.runs is not None:
        for name, values in result.runs["scores"].items():
            words = task.scores[name]
            each = ", ".join(f"{value:.4f}" for value in values["each"].values())
            print(f"{words}: {values['mean']:.4f} ± {values['spread']:.4f} of {each}")
        for name, why in result.runs["failed"].items():
            print(f"{name} failed: {why}")
        print(f"{result.out} has the model of {result.runs['chosen']}")


@command(spellings=spellings.FINETUNE)
@option("--model", required=True, help="Folder or Hub id of a pretrained model.")
@option(
    "--data",
    type=FILE,
    required=True,
    help="Folder with a folder for each task, as GLUE's download has them.",
)
@option("--out", type=FILE, required=True, help="Folder to write; it must not exist.")
@option(
    "--tasks",
    multiple=True,
    metavar="NAME...",
    help="CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI. Default: all that are there.",
)
@option(
    "--lr",
    "rates",
    multiple=True,
    type=float,
    metavar="RATE...",
    help="Rates of a run each, of which the best on the dev data is kept. Default: 5e-5 4e-5 3e-5 "
    "2e-5.",
)
@option("--epochs", type=int, default=3, help="Passes over the data.")
@option("--batch-size", type=int, default=32, help="Examples of a batch.")
@option("--max-length", type=int, help="Tokens of an example at most; default: 128.")
@option("--seed", type=int, default=0, help="Of new weights, order and dropout.")
@training_precision_option
@device_option
@resume_option
def glue(rates: tuple[float, ...], **values: Any) -> None:
    """Fine-tune a model for the tasks of GLUE from local files, with BERT's published settings.

    Of each task a model is kept, with its scores on the dev data; submission/ has the files for
    GLUE's server.

    \b
    Example:
        bertfast glue --model run --data glue_data --tasks SST-2 RTE --out glue
    """
    from bertfast.apps import glue as app

    made = until_stopped(
        lambda: app.glue(**values, rates=rates or app.RATES, say=lambda text: say(text, "glue"))
    )
    print(app.table(made), end="")


@command()
@option(
    "--out",
    type=FILE,
    default="demo-run",
    help="Folder to write; a folder of an earlier demo is replaced.",
)
@option("--seed", type=int, default=0, help="Of the whole demo.")
def demo(out: Path, seed: int) -> None:
    """Train, fine-tune and report on text that every Python ships: minutes on two cores, no
    network.

    \b
    Example:
        bertfast demo --out demo-run
    """
    from bertfast.apps.demo import run_demo
    from bertfast.training.trainer import Interrupted

    try:
        run_demo(out, seed=seed)
    except Interrupted as stopped:
        raise stop(stopped.args[0]) from None


@command()
@click.argument("sheet", type=FILE)
@option("--out", type=FILE, help="Folder of the result. Default: the sheet's name, -compared.")
@option(
    "--set",
    "variables",
    multiple=True,
    metavar="NAME=VALUE...",
    help="Values of the sheet's variables.",
)
@option(
    "--jobs",
    type=int,
    help="Runs at once. Default: one for each GPU, or for each two cores.",
)
@option("--report-only", is_flag=True, help="Write the pages of what is there, and run nothing.")
@option("--worker", type=int, hidden=True)
@option("--parent", type=int, hidden=True)
@import_option
def compare(
    sheet: Path,
    out: Path | None,
    variables: tuple[str, ...],
    jobs: int | None,
    report_only: bool,
    worker: int | None,
    parent: int | None,
) -> None:
    """Run a table of models, ways of adapting, numbers of labels and seeds on one data set.

    The same command goes on where it was stopped. The folder has one HTML page, Markdown and CSV.

    \b
    Example:
        bertfast compare sheet.yaml --out compared
    """
    from bertfast.apps.compare.run import compare as run_compare
    from bertfast.training.trainer import Interrupted

    given = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals:
            raise BertfastError(f"set is {variable!r}; it must be NAME=VALUE")
        given[name] = value
    again = ["compare", str(sheet)]
    again += [] if out is None else ["--out", str(out)]
    again += [part for variable in variables for part in ("--set", variable)]
    imports = click.get_current_context().meta.get(IMPORTED, ())
    again += [part for name in imports for part in ("--import", name)]
    try:
        page = run_compare(
            sheet,
            out,
            jobs=jobs,
            variables=given,
            worker=worker,
            parent=parent,
            again=again,
            report_only=report_only,
        )
    except Interrupted as stopped:
        say("stopped after a checkpoint; the same command goes on", "compare")
        raise stop(stopped.args[0]) from None
    if worker is None:
        print(page)


@command()
@click.argument("runs", type=FILE, nargs=-1, required=True)
@option("--out", type=FILE, default="curves.svg", help="Picture to write: .svg, .png or .pdf.")
def plot(runs: tuple[Path, ...], out: Path) -> None:
    """Draw the learning curves of pretraining runs.

    \b
    Example:
        bertfast plot run --out curves.svg
    """
    from bertfast.apps.plot import plot as draw

    draw(list(runs), out)
    print(out)


def until_stopped(run: Callable[[], T]) -> T:
    """What the run returns; where a signal stops it, says how it goes on."""
    from bertfast.ranks import launched
    from bertfast.training.trainer import Interrupted

    try:
        return run()
    except Interrupted as stopped:
        if launched().first:
            say("stopped after a checkpoint; the same command with --resume goes on")
        raise stop(stopped.args[0]) from None
