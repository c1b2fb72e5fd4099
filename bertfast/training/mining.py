"""Texts mined with a sentence encoder: hard negatives, paraphrases and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertfast.checks import number, one_of, whole_number
from bertfast.data.text_rows import read_text_rows
from bertfast.errors import BertfastError
from bertfast.sentences import SentenceEncoder
from bertfast.sentences.evaluation import similarity_of
from bertfast.sentences.search import hard_negatives, similar_pairs

MINED = ("negatives", "paraphrases", "duplicates")
ALIKE = 0.95  # score from which on two texts are duplicates, where nobody says


def mine(
    encoder: SentenceEncoder,
    path: str | Path,
    kind: str = "negatives",
    *,
    text_columns: Sequence[str] = (),
    negatives: int = 5,
    skip: int = 0,
    margin: float | None = None,
    ratio: float | None = None,
    least: float | None = None,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """Rows for training, or pairs of texts.

    Args:
        encoder: whose vectors are compared.
        path: of pairs of an anchor and its positive, for negatives; else of texts.
        kind: "negatives" gives each anchor's rows with texts that are like it and no positives of
            its. The kinds "paraphrases" and "duplicates" give pairs of texts, the most similar
            first.
        text_columns: as of `read_text_rows`.
        negatives, skip, margin, ratio: as of `hard_negatives`.
        least: score of a pair at least; None is 0.95 for duplicates.
        most: how many pairs are given; None for all.

    Raises:
        BertfastError: the file or an option cannot be used.
    """
    one_of("kind", kind, MINED)
    whole_number("negatives", negatives, 1)
    whole_number("skip", skip, 0)
    for name, value in (("margin", margin), ("ratio", ratio)):
        if value is not None:
            number(name, value, least=0)
    if most is not None:
        whole_number("most", most, 1)
    rows = read_text_rows(path, text_columns)
    if kind != "negatives":
        texts = list(dict.fromkeys(text for row in rows.rows for text in row.texts))
        found = similar_pairs(
            encoder.encode(texts),
            least=(ALIKE if kind == "duplicates" else -1.0) if least is None else least,
            most=most,
            similarity=similarity_of(encoder),
        )
        return [{"score": score, "first": texts[a], "second": texts[b]} for score, a, b in found]
    if rows.texts != 2:
        raise BertfastError(
            f"{path}: its rows have {rows.texts} texts; negatives are mined for pairs of an anchor "
            "and a positive, and --text-column names them"
        )
    corpus = {text: n for n, text in enumerate(dict.fromkeys(r.texts[1] for r in rows.rows))}
    answers: dict[str, list[int]] = {}
    for row in rows.rows:
        answers.setdefault(row.texts[0], []).append(corpus[row.texts[1]])
    texts, anchors = list(corpus), list(answers)
    # An anchor that stands in the corpus too answers nothing that it asks.
    known = [
        positives + ([corpus[anchor]] if anchor in corpus else [])
        for anchor, positives in answers.items()
    ]
    mined = hard_negatives(
        encoder.encode_query(anchors),
        encoder.encode_document(texts),
        known,
        negatives=negatives,
        skip=skip,
        margin=margin,
        ratio=ratio,
        similarity=similarity_of(encoder),
    )
    return [
        {
            "anchor": anchor,
            "positive": texts[positive],
            "negatives": [texts[row] for row in found],
        }
        for anchor, found in zip(anchors, mined, strict=True)
        for positive in dict.fromkeys(answers[anchor])
        if len(found) == negatives
    ]
