"""Commands of sentence encoders and rerankers: training them, and searching with them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError
from bertfast.resolve import resolve

from . import spellings
from .command import (
    FILE,
    REGISTERED,
    RegistryOption,
    argument,
    check_folder_of,
    command,
    device_option,
    json_option,
    option,
    precision_option,
    revision_option,
    say_weights,
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
@option("--teacher", help="Reranker whose scores are the labels of rows that have none.")
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
    _say_result(until_stopped(lambda: train_sentences(**options, resume=resume)))


@command(spellings=spellings.SENTENCES)
@argument("model")
@option("--query", "queries", multiple=True, metavar="TEXT...", help="Order documents for these.")
@option("--documents", help="File of the documents, a text a line, or - for standard input.")
@option("--top", type=int, help="How many documents of each query. Default: all.")
@option(
    "--train",
    multiple=True,
    metavar="FILE...",
    help="Train in place of that: rows of a query and documents: TSV, JSON lines, Parquet ...",
)
@option("--out", help="Folder to write when training; it must not exist.")
@option(
    "--loss",
    default="binary",
    help="binary (relevant or not), mse or margin-mse (a teacher's scores), list-net or lambda "
    "(lists of documents).",
)
@option(
    "--text-column",
    "text_columns",
    multiple=True,
    metavar="NAME...",
    help="Columns of the texts, in their order. Default: every column but the label's.",
)
@option("--label-column", help="Default: label, labels, score or scores.")
@option("--dev", help="File that the best evaluation is chosen on.")
@option(
    "--dev-text-column",
    "dev_text_columns",
    multiple=True,
    metavar="NAME...",
    help="Of --dev. Default: those of --train.",
)
@option("--dev-label-column", help="Of --dev. Default: that of --train.")
@option("--sampling", default="size", help="Order of several data sets: size or round-robin.")
@revision_option
@option("--epochs", type=int, default=1, help="Passes over the data.")
@option("--lr", type=float, default=2e-5, help="Peak learning rate.")
@option(
    "--warmup",
    type=int,
    help="Updates of warm-up; default: a tenth of all, as --warmup-ratio 0.1 says.",
)
@option("--warmup-ratio", type=float, help="The same, as a share of the updates.")
@adamw_options
@option("--batch-size", type=int, default=16, help="Rows of a batch, each with its documents.")
@option("--max-length", type=int, help="Tokens of a pair at most; default: the model's.")
@training_precision_option
@bf16_flag
@device_option
@option("--seed", type=int, default=0, help="Of a new head, order and dropout.")
@option("--evaluate-every", type=int, help="Updates between evaluations. Default: an epoch.")
@option(
    "--early-stopping",
    type=int,
    metavar="N",
    help="Stop after N evaluations in a row without a better one.",
)
@option("--log-every", type=int, help="Updates between lines to the trackers; default: an epoch.")
@report_option("none")
@json_option
@resume_option
def rerank(
    queries: tuple[str, ...],
    documents: str | None,
    top: int | None,
    as_json: bool,
    resume: bool,
    **values: Any,
) -> None:
    """Order documents by a reranker (--query, --documents), or train one (--train, --out).

    MODEL is a folder or a Hub id of a CrossEncoder of sentence-transformers; to train, of any
    encoder. A document's score, its line and its text are printed, the best first.

    \b
    Example:
        bertfast rerank reranker --query "a moving film" --documents sentences.txt --top 5
    """
    if bool(queries) == bool(values["train"]):
        raise BertfastError("give --query and --documents to score, or --train and --out to train")
    if not queries:
        _train_reranker(values, resume)
        return
    if documents is None:
        raise BertfastError("documents is missing; --documents names a file, a text a line")
    from bertfast.checks import whole_number
    from bertfast.data.readers import read_lines
    from bertfast.escape import one_line
    from bertfast.sentences import CrossEncoder
    from bertfast.training.precision import find_device, inference_dtype

    if top is not None:
        whole_number("top", top, 1)
    lines = read_lines(documents)
    source = resolve(values["model"], values["revision"])
    reranker = CrossEncoder.from_pretrained(source.folder)
    reranker.to(find_device(values["device"]), inference_dtype(values["precision"]))
    if values["max_length"] is not None:
        whole_number("max_length", values["max_length"], 4)
        reranker.max_length = min(values["max_length"], reranker.model.config.max_length)
    say_weights(source)
    for query in queries:
        hits = [
            {"score": hit["score"], "line": hit["corpus_id"] + 1, "text": lines[hit["corpus_id"]]}
            for hit in reranker.rank(query, lines, top)
        ]
        if as_json:
            print(json.dumps({"query": query, "hits": hits}, ensure_ascii=False))
            continue
        if len(queries) > 1:
            print(one_line(query))
        for hit in hits:
            print(f"{hit['score']:.4f}\t{hit['line']}\t{one_line(hit['text'])}")


def _train_reranker(values: dict[str, Any], resume: bool) -> None:
    from bertfast.training.rerank import RerankConfig, train_reranker

    if values["out"] is None:
        raise BertfastError("out is missing; --out names the folder to write")
    options = {field.name: values[field.name] for field in fields(RerankConfig)}
    _say_result(until_stopped(lambda: train_reranker(**options, resume=resume)))


def _say_result(result: Any) -> None:
    """The scores of the weights that were kept, or else the last loss."""
    if result.scores:
        said = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
        print(f"{result.out}: dev {said} (epoch {result.best_epoch:g})")
    else:
        last = result.history[-1]
        print(f"{result.out}: loss {last['train_loss']:.4f} (epoch {last['epoch']:g})")


@command()
@argument("index", type=FILE)
@argument("queries", nargs=-1, required=True)
@option("--model", help="Folder or Hub id of the encoder. Default: the one that made the index.")
@option("--texts", type=FILE, help="File of the texts. Default: the one that was embedded.")
@option("--top", type=int, default=10, help="How many lines for each query.")
@option(
    "--engine",
    default="exact",
    help="exact, or faiss or usearch, which keep a graph beside the index.",
)
@option("--rescore", type=FILE, help="The same vectors in float32, that order what was found.")
@option("--oversample", type=int, default=4, help="Times --top that are found before ordering.")
@device_option
@precision_option
@json_option
def search(
    index: Path,
    queries: tuple[str, ...],
    model: str | None,
    texts: Path | None,
    top: int,
    engine: str,
    rescore: Path | None,
    oversample: int,
    device: str | None,
    precision: str,
    as_json: bool,
) -> None:
    """Print the lines that are most like a query: score, number of the line, and text.

    INDEX is what bertfast embed wrote. QUERIES are texts, or - for a text a line on standard input.

    \b
    Example:
        bertfast search vectors.npy "a moving film" --top 5
    """
    from bertfast.checks import whole_number
    from bertfast.data.readers import read_lines
    from bertfast.escape import one_line
    from bertfast.sentences import SentenceEncoder
    from bertfast.sentences.evaluation import similarity_of
    from bertfast.sentences.index import VectorIndex
    from bertfast.training.precision import find_device, inference_dtype

    for name, value in (("top", top), ("oversample", oversample)):
        whole_number(name, value, 1)
    found = VectorIndex.open(index)
    finer = None if rescore is None else VectorIndex.open(rescore)
    name, file = model or found.made.model, texts or found.made.texts
    if not name:
        raise BertfastError(f"{index}: nothing beside it says which model made it; give --model")
    lines = None if file is None else read_lines(file)
    if lines is not None and len(lines) != len(found):
        raise BertfastError(
            f"{file}: has {len(lines)} lines and {index} {len(found)} vectors; give the --texts "
            "that were embedded"
        )
    asked = read_lines("-") if queries == ("-",) else list(queries)
    source = resolve(name, None if model else found.made.revision)
    encoder = SentenceEncoder.from_pretrained(source.folder)
    encoder.to(find_device(device), inference_dtype(precision))
    say_weights(source)
    scores, rows = found.search(
        encoder.encode_query(asked),
        top,
        similarity=similarity_of(encoder),
        engine=engine,
        rescore=finer,
        oversample=oversample,
    )
    for query, line_scores, line_rows in zip(asked, scores.tolist(), rows.tolist(), strict=True):
        hits = [
            {"score": score, "line": row + 1} | ({} if lines is None else {"text": lines[row]})
            for score, row in zip(line_scores, line_rows, strict=True)
        ]
        if as_json:
            print(json.dumps({"query": query, "hits": hits}, ensure_ascii=False))
            continue
        if len(asked) > 1:
            print(one_line(query))
        for hit in hits:
            print(f"{hit['score']:.4f}\t{hit['line']}\t{one_line(hit.get('text', ''))}")


@command()
@argument("model")
@argument("file")
@option("--out", type=FILE, required=True, help="File of JSON lines to write.")
@option("--kind", default="negatives", help="negatives, paraphrases or duplicates.")
@option(
    "--text-column",
    "text_columns",
    multiple=True,
    metavar="NAME...",
    help="Columns of the texts. Default: every one but the label's.",
)
@option("--negatives", type=int, default=5, help="Of each anchor; with fewer it is left out.")
@option("--skip", type=int, default=0, help="How many of the most similar are passed over.")
@option("--margin", type=float, help="Score of a negative below the positive's, at least.")
@option("--ratio", type=float, help="Score of a negative by the positive's, at most.")
@option("--least", type=float, help="Score of a pair at least; default 0.95 for duplicates.")
@option("--most", type=int, help="How many pairs. Default: all.")
@revision_option
@device_option
@precision_option
def mine(
    model: str,
    file: str,
    out: Path,
    kind: str,
    revision: str | None,
    device: str | None,
    precision: str,
    **options: Any,
) -> None:
    """Mine hard negatives for pairs of texts, or paraphrases or duplicates among texts.

    FILE has pairs of an anchor and a positive, or texts, a text a line.

    \b
    Example:
        bertfast mine encoder pairs.tsv --negatives 3 --out mined.jsonl
    """
    from bertfast.files import check_new, write_text
    from bertfast.sentences import SentenceEncoder
    from bertfast.training.mining import mine as run_mine
    from bertfast.training.precision import find_device, inference_dtype

    check_folder_of(out)
    check_new(out)
    source = resolve(model, revision)
    encoder = SentenceEncoder.from_pretrained(source.folder)
    encoder.to(find_device(device), inference_dtype(precision))
    rows = run_mine(encoder, file, kind, **options)
    say_weights(source)
    write_text(out, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    print(f"{len(rows)} rows in {out}")
