"""Commands that use a model: scores, labels, words for masks, vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertfast.resolve import resolve

from . import spellings
from .command import (
    FILE,
    argument,
    check_folder_of,
    command,
    device_option,
    json_option,
    option,
    precision_option,
    revision_option,
    say,
    say_weights,
    task_options_option,
    text_column_option,
)
from .extensions import import_option

pair_column_option = option(
    "--pair-column",
    help="Second text of a pair; default: the one that the model was trained with.",
)


@command(spellings=spellings.EVALUATE)
@argument("model")
@option(
    "--data",
    required=True,
    help="Labelled data: TSV, CSV or JSON lines with a header. Of a pretraining run: text.",
)
@revision_option
@text_column_option
@pair_column_option
@option("--label-column", help="Default: label.")
@option(
    "--kind",
    help="Of a sentence encoder, what is measured: similarity, triplets, retrieval, reranking, "
    "probe or clustering. Default: by the data.",
)
@task_options_option
@device_option
@precision_option
@option("--out", type=FILE, help="Folder to write: scores.json and pictures; it must not exist.")
@import_option
@json_option
def evaluate(
    model: str,
    data: str,
    revision: str | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    kind: str | None,
    task_options: tuple[str, ...],
    device: str | None,
    precision: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score a fine-tuned model, a folder or a Hub id, on labelled data, with bootstrap intervals.

    A sentence encoder or a reranker is measured by what the data are; the guide lists it. A
    pretraining run, or one of its checkpoints, is measured on held-out text, as while it trained.

    \b
    Example:
        bertfast evaluate classifier --data test.tsv --json
    """
    from bertfast.files import check_new
    from bertfast.sentences.cross_encoder import is_cross_encoder
    from bertfast.training.evaluate import evaluate as run_evaluate
    from bertfast.training.evaluate import shown, write_evaluation

    if out is not None:
        check_new(out)
    source = resolve(model, revision)
    from bertfast.training.evaluate_run import evaluate_run, run_of

    if run_of(source.folder) is not None:
        found = evaluate_run(source.folder, [data], text_column, device=device, precision=precision)
        say_weights(source)
        lines = (f"{name.removeprefix('valid_')} {value:.4f}" for name, value in found.items())
        print(json.dumps(found) if as_json else "\n".join(lines))
        if out is not None:
            write_evaluation(found, out)
        return
    modules = (source.folder / "modules.json").exists()
    crosses = is_cross_encoder(source.folder)
    if kind is not None or modules or crosses:
        from bertfast.training.rerank import evaluate_reranker
        from bertfast.training.sentence_evaluation import evaluate_sentences, shown_scores

        columns = [name for name in (text_column, pair_column) if name is not None]
        given = (source.folder, data, columns, label_column)
        if crosses:
            found = evaluate_reranker(*given, device=device, precision=precision)
        else:
            found = evaluate_sentences(*given, kind=kind, device=device, precision=precision)
        say_weights(source)
        print(json.dumps(found) if as_json else shown_scores(found))
        if out is not None:
            write_evaluation(found, out)
        return
    scores = run_evaluate(
        source.folder,
        data,
        text_column,
        pair_column,
        label_column,
        device=device,
        precision=precision,
        task_options=task_options,
    )
    say_weights(source)
    _say_truncated(scores["truncated"], scores["max_length"])
    print(json.dumps(scores) if as_json else shown(scores))
    if out is not None:
        write_evaluation(scores, out)


@command()
@argument("model")
@argument("file", default="-")
@revision_option
@text_column_option
@pair_column_option
@task_options_option
@device_option
@precision_option
@option("--out", type=FILE, help="File to write; default: standard output.")
@option(
    "--format",
    "form",
    metavar="jsonl|csv|parquet",
    help="Default: by the ending of --out, or else jsonl.",
)
@import_option
def predict(
    model: str,
    file: str,
    revision: str | None,
    text_column: str | None,
    pair_column: str | None,
    task_options: tuple[str, ...],
    device: str | None,
    precision: str,
    out: Path | None,
    form: str | None,
) -> None:
    """Write a prediction for each line of the input, in its order, as JSON lines, CSV or Parquet.

    MODEL is a folder or a Hub id. FILE is labelled data without its labels; plain text, a text a
    line; or - for such lines on standard input. A blank line is an empty text.

    \b
    Example:
        bertfast predict classifier texts.tsv --out predictions.csv
    """
    from bertfast.data.writers import format_of, row_writer
    from bertfast.files import write_atomically
    from bertfast.training.predict import Predictor

    kind = format_of(out, form)
    if out is not None:
        check_folder_of(out)
    source = resolve(model, revision)
    predictor = Predictor(
        source.folder, device=device, precision=precision, task_options=task_options
    )
    examples = predictor.reader(file, text_column, pair_column)
    if out is None and file != "-":
        for _ in examples():  # a row that cannot be used is found before a line is written
            pass
    say_weights(source)
    cut = 0

    def write(path: Path | None) -> None:
        nonlocal cut
        with row_writer(path, kind) as writer:
            for made in predictor.stream(examples()):
                echoes = map(predictor.task.echo, made.examples)
                writer([a | b for a, b in zip(echoes, made.predictions, strict=True)])
                cut += made.truncated

    write(None) if out is None else write_atomically(out, write)
    _say_truncated(cut, predictor.max_length)


@command()
@argument("model")
@argument("file")
@option("--out", type=FILE, required=True, help="Folder to write.")
@option(
    "--layers",
    default="last",
    help="last, second-to-last, sum-last-4, concat-last-4, sum-all, embeddings, or a layer's "
    "number.",
)
@option(
    "--pooling",
    default="first",
    help="first (the first token's vector), mean (of all tokens), or tokens (each one's).",
)
@text_column_option
@option("--pair-column", help="Second text of a pair. Default: found by the usual names.")
@option("--max-length", type=int, help="Tokens of a text at most; default: the model's positions.")
@revision_option
@device_option
@precision_option
def features(model: str, file: str, out: Path, **options: Any) -> None:
    """Write what a model's layers say of each text, as arrays that are read from the disk.

    MODEL is a folder or a Hub id. FILE is a table, whose labels are left alone, or plain text, a
    text a line. A folder that has these features already is left as it is.

    \b
    Example:
        bertfast features run train.tsv --layers concat-last-4 --out train-features
    """
    from bertfast.training.features import features as run_features

    found = run_features(model, file, out, **options)
    rows, width = found.values.shape
    texts = rows if found.offsets is None else len(found.offsets) - 1
    print(f"{texts} texts, {rows} vectors of {width} numbers in {out}")


@command()
@argument("model")
@argument("text")
@option("--top", type=int, default=5, help="How many words for each mask.")
@revision_option
@device_option
@precision_option
def fill(
    model: str, text: str, top: int, revision: str | None, device: str | None, precision: str
) -> None:
    """Print the likeliest words for each [MASK].

    MODEL is a folder or a Hub id of a model with a masked-LM head. TEXT has [MASK] (or the
    tokenizer's own mask) where a word is to go.

    \b
    Example:
        bertfast fill run "return the [MASK] of the list"
    """
    from bertfast.training.fill import MaskFiller

    source = resolve(model, revision)
    filler = MaskFiller(source.folder, device=device, precision=precision)
    masks, truncated = filler.fill(text, top)
    say_weights(source)
    _say_truncated(int(truncated), filler.model.config.max_position_embeddings)
    for number, fillers in enumerate(masks, 1):
        if len(masks) > 1:
            print(f"mask {number}")
        for choice in fillers:
            # A byte-level tokenizer's words may have line ends in them.
            word, filled = (" ".join(part.split()) for part in (choice.word, choice.text))
            print(f"{choice.probability:.4f}  {word:<16}  {filled}")


@command(spellings=spellings.EMBED)
@argument("model")
@argument("file")
@option(
    "--out",
    type=FILE,
    required=True,
    help="File to write: a NumPy array (.npy), float32, a row for each line.",
)
@option(
    "--quantize",
    default="float32",
    help="Store int8 or uint8 numbers, or the signs alone as binary or ubinary.",
)
@option("--batch-size", type=int, help="Texts of a batch at most; default: what suits the machine.")
@option("--normalize", is_flag=True, help="Make every vector's length 1.")
@option("--prompt-name", help="One of the model's prompts, to put before each text.")
@revision_option
@device_option
@precision_option
def embed(
    model: str,
    file: str,
    out: Path,
    quantize: str,
    batch_size: int | None,
    normalize: bool,
    prompt_name: str | None,
    revision: str | None,
    device: str | None,
    precision: str,
) -> None:
    """Write a vector for each line of a text. A line with nothing on it has one too, so that rows
    are lines.

    MODEL is a folder or a Hub id of a sentence-transformers model, or of a plain encoder. FILE is
    plain text, a text a line, or - for standard input.

    \b
    Example:
        bertfast embed run corpus.txt --out vectors.npy
    """
    import numpy as np

    from bertfast.data.readers import read_lines
    from bertfast.sentences import SentenceEncoder
    from bertfast.sentences.index import Made, write_index
    from bertfast.sentences.quantization import check_precision, ranges_of
    from bertfast.sentences.quantization import quantize as store
    from bertfast.training.precision import find_device, inference_dtype

    check_precision(quantize)
    texts = read_lines(file)
    check_folder_of(out)
    where, dtype = find_device(device), inference_dtype(precision)
    source = resolve(model, revision)
    encoder = SentenceEncoder.from_pretrained(source.folder).to(where, dtype)
    encoder.tokenize([], prompt_name=prompt_name)  # refuses an unknown name
    say_weights(source)
    width, cut, ranges = encoder.get_sentence_embedding_dimension(), 0, None

    def save(path: Path) -> None:
        nonlocal cut, ranges
        shape = (len(texts), width)
        vectors = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        cut = encoder.encode_into(
            vectors,
            texts,
            batch_size=batch_size,
            normalize=normalize,
            prompt_name=prompt_name,
            show_progress=True,
        )
        if quantize != "float32":
            ranges = ranges_of(vectors) if quantize.endswith("int8") else None
            made = store(vectors, quantize, ranges)
            with open(path, "wb") as stream:
                np.save(stream, made)

    local = Path(model).absolute() if Path(model).is_dir() else model
    draft = Made(str(local), revision, None if file == "-" else str(Path(file).absolute()))
    write_index(
        out,
        save,
        lambda: replace(
            draft,
            precision=quantize,
            width=width,
            ranges=None if ranges is None else ranges.tolist(),
        ),
    )
    print(f"{len(texts)} vectors of {width} numbers in {out}")
    _say_truncated(cut, encoder.max_length)


def _say_truncated(count: int, limit: int) -> None:
    if count:
        say(f"{count} input(s) were longer than {limit} tokens and were cut")
