"""Files to measure a sentence encoder on: what they hold says what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bertfast.data.labelled import cell, table_rows
from bertfast.data.text_rows import TextRows, read_text_rows
from bertfast.errors import BertfastError
from bertfast.resolve import resolve
from bertfast.sentences import SentenceEncoder
from bertfast.sentences.evaluation import (
    Clustering,
    Evaluator,
    Probe,
    Reranking,
    Retrieval,
    Similarity,
    Triplets,
)

from .precision import find_device, inference_dtype

QUERIES, CORPUS, QRELS = "queries.jsonl", "corpus.jsonl", "qrels"  # of a folder of BEIR
RERANKED = {"query", "positive", "negative"}
KINDS = ("similarity", "triplets", "retrieval", "reranking", "probe", "clustering")


def evaluator_of(
    path: str | Path,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    kind: str | None = None,
) -> Evaluator:
    """What is measured on a file or a folder.

    A folder in BEIR's form is retrieval. So are pairs without labels, of which each second text
    answers the first. Pairs with a number are similarity, three texts triplets, and a text with a
    label a probe, or with ``kind`` clusters. JSON lines of a ``query`` with lists ``positive`` and
    ``negative`` are reranking.

    Args:
        path: of the file or folder.
        text_columns, label_column: as of `read_text_rows`.
        kind: of `KINDS`, where the columns are not to say it.

    Raises:
        BertfastError: the data cannot be used, or is not of that kind.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise BertfastError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if path.is_dir() and (path / CORPUS).exists():
        found: Evaluator = Retrieval(*read_beir(path))
    elif not path.is_dir() and path.suffix in (".jsonl", ".json") and _is_reranking(path):
        found = Reranking(_read_samples(path))
    else:
        found = _of_rows(read_text_rows(path, text_columns, label_column), kind)
    if kind not in (None, found.name):
        raise BertfastError(f"{path}: is data of {found.name}, and kind {kind!r}")
    return found


def _of_rows(rows: TextRows, kind: str | None) -> Evaluator:
    columns = [list(texts) for texts in zip(*(row.texts for row in rows.rows), strict=True)]
    if rows.texts == 2 and rows.label is not None:
        return Similarity(columns[0], columns[1], rows.scores())
    if rows.texts == 2:
        return _answers(*columns)
    if rows.texts == 3:
        return Triplets(*columns)
    if rows.texts == 1 and rows.label is not None:
        return (Clustering if kind == "clustering" else Probe)(columns[0], rows.words())
    raise BertfastError(
        f"{rows.path}: its rows have {rows.texts} texts ({', '.join(map(repr, rows.columns))}) and "
        f"{'no label' if rows.label is None else 'a label'}, which nothing is measured on. Give a "
        "pair with or without a number, three texts, or a text with a label"
    )


def _answers(queries: list[str], answers: list[str]) -> Retrieval:
    """Of each query its second text is to be found among those of all rows."""
    corpus = {text: str(number) for number, text in enumerate(dict.fromkeys(answers))}
    relevant: dict[str, dict[str, float]] = {}
    for query, answer in zip(queries, answers, strict=True):
        relevant.setdefault(query, {})[corpus[answer]] = 1.0
    return Retrieval(
        {query: query for query in relevant}, {id: text for text, id in corpus.items()}, relevant
    )


def read_beir(
    folder: str | Path, split: str | None = None
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """The queries, the corpus and the judgements of a folder in BEIR's form.

    ``queries.jsonl`` and ``corpus.jsonl`` each have ``_id`` and ``text``. The corpus may have a
    ``title``, which comes first. ``qrels/SPLIT.tsv`` has ``query-id``, ``corpus-id`` and ``score``.

    Args:
        folder: see above.
        split: of the judgements; None is test, dev or train, the first that there is.

    Raises:
        BertfastError: a file is missing, or a line of one cannot be used.
    """
    folder = Path(folder)
    splits = ("test", "dev", "train") if split is None else (split,)
    files = [folder / QRELS / f"{name}.tsv" for name in splits]
    judged = next((file for file in files if file.exists()), None)
    if judged is None:
        raise BertfastError(f"{folder / QRELS}: has no {' or '.join(file.name for file in files)}")
    texts = {}
    for name in (QUERIES, CORPUS):
        texts[name] = {
            _field(row, "_id", folder / name, line): " ".join(
                filter(
                    None, [_field(row, key, folder / name, line, "") for key in ("title", "text")]
                )
            )
            for line, row in table_rows(folder / name)
            if row is not None
        }
    relevant: dict[str, dict[str, float]] = {}
    for line, row in table_rows(judged):
        if row is None:
            continue
        query, document = (_field(row, f"{kind}-id", judged, line) for kind in ("query", "corpus"))
        if query not in texts[QUERIES]:
            raise BertfastError(f"{judged}, line {line}: there is no query {query!r}")
        try:
            relevant.setdefault(query, {})[document] = float(_field(row, "score", judged, line))
        except ValueError:
            raise BertfastError(
                f"{judged}, line {line}: the score is {row['score']!r}; a number is wanted"
            ) from None
    return texts[QUERIES], texts[CORPUS], relevant


def _field(
    row: Mapping[str, Any], name: str, path: Path, line: int, default: str | None = None
) -> str:
    if name not in row:
        if default is not None:
            return default
        raise BertfastError(f"{path}, line {line}: has no {name!r}")
    return cell(row[name], path, line, name, "a text is wanted")


def _is_reranking(path: Path) -> bool:
    first = next((row for _, row in table_rows(path) if row is not None), {})
    return set(first) >= RERANKED and isinstance(first["negative"], list)


def _read_samples(path: Path) -> list[tuple[str, list[str], list[str]]]:
    """A query, its positives and its negatives, of each line."""
    samples = []
    for line, row in table_rows(path):
        if row is None:
            continue
        lists = []
        for name in ("positive", "negative"):
            values = row.get(name, [])
            values = values if isinstance(values, list) else [values]
            lists.append([cell(value, path, line, name, "a text is wanted") for value in values])
        samples.append((_field(row, "query", path, line), lists[0], lists[1]))
    return samples


def evaluate_sentences(
    folder: str | Path,
    data: str | Path,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    *,
    kind: str | None = None,
    device: str | None = None,
    precision: str = "fp32",
    revision: str | None = None,
) -> dict[str, Any]:
    """Measures a sentence encoder.

    Args:
        folder: of the encoder, or its Hub id.
        data, text_columns, label_column, kind: as of `evaluator_of`.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one.
        precision: of the computation: "fp32", "bf16" or "fp16".
        revision: branch, tag or commit on the Hub.

    Returns:
        the kind, each of its scores, and how many examples there are.

    Raises:
        BertfastError: the model or the data cannot be used.
    """
    evaluator = evaluator_of(data, text_columns, label_column, kind)
    encoder = SentenceEncoder.from_pretrained(resolve(folder, revision).folder)
    encoder.to(find_device(device), inference_dtype(precision))
    with torch.no_grad():
        scores = evaluator(encoder)
    return {"kind": evaluator.name, **scores, "examples": evaluator.examples}


def shown_scores(found: Mapping[str, Any]) -> str:
    """What `evaluate_sentences` gave, as lines to read."""
    scores = [f"{name} {value:.4f}" for name, value in found.items() if isinstance(value, float)]
    return "\n".join([*scores, f"({found['kind']}, {found['examples']} examples)"])
