"""Exact search of vectors, block by block, and what is mined with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bertfast.errors import BertfastError

BLOCK = 1 << 24  # scores that are held at once
ROWS = 1 << 14  # of the corpus in a block, at most
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def similarity_matrix(a: Tensor, b: Tensor, similarity: str = "cosine") -> Tensor:
    """(rows of a, rows of b): how like each two vectors are; distances are below 0.

    Raises:
        BertfastError: an unknown similarity.
    """
    if similarity == "cosine":
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    if similarity == "dot":
        return a @ b.T
    if similarity == "euclidean":
        return -torch.cdist(a, b)
    if similarity == "manhattan":
        return -torch.cdist(a, b, p=1)
    raise BertfastError(
        f"similarity is {similarity!r}; it must be one of {', '.join(SIMILARITIES)}"
    )


def top_k(
    queries: NDArray[Any] | Tensor,
    corpus: NDArray[Any] | Tensor,
    k: int = 10,
    similarity: str = "cosine",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The most similar rows of a corpus, which may lie in a memory-mapped array of any length.

    Args:
        queries: (queries, width).
        corpus: (rows, width).
        k: how many; where the corpus has fewer, as many as it has.
        similarity: cosine, dot, euclidean or manhattan.

    Returns:
        (queries, k) scores, the highest first, and the rows that have them; of equal scores the
        first row comes first.

    Raises:
        BertfastError: shapes that do not fit, or an unknown similarity.
    """
    check_vectors(queries, "queries")
    check_vectors(corpus, "corpus", queries.shape[1])
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise BertfastError(f"k is {k!r}; it must be a whole number of at least 1")
    k = min(k, len(corpus))
    asked = torch.as_tensor(np.asarray(queries) if isinstance(queries, np.ndarray) else queries)
    asked = asked.float()
    scores = asked.new_full((len(asked), 0), 0.0)
    rows = torch.zeros((len(asked), 0), dtype=torch.int64, device=asked.device)
    for start, block in blocks(corpus, len(asked), asked.device):
        found = similarity_matrix(asked, block, similarity)
        best, at = found.topk(min(k, found.shape[1]), dim=1)
        scores, rows = torch.cat([scores, best], 1), torch.cat([rows, at + start], 1)
        # Rows in their order first, so that a stable sort leaves equal scores in it.
        order = rows.argsort(dim=1)
        scores, rows = scores.gather(1, order), rows.gather(1, order)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        scores, rows = scores.gather(1, order), rows.gather(1, order)
    return scores.cpu().numpy(), rows.cpu().numpy()


def blocks(
    corpus: NDArray[Any] | Tensor, beside: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows as float32) of a corpus, as many at once as ``beside`` queries leave room
    for.
    """
    size = max(1, min(ROWS, BLOCK // max(beside, 1)))
    for start in range(0, len(corpus), size):
        block = corpus[start : start + size]
        if isinstance(block, np.ndarray):
            block = torch.from_numpy(np.array(block, dtype=np.float32))
        yield start, block.to(device, torch.float32)


def check_vectors(vectors: Any, name: str, width: int | None = None) -> None:
    """Raises BertfastError for what is no (rows, width) of numbers."""
    shape = tuple(getattr(vectors, "shape", ()))
    if len(shape) != 2 or (width is not None and shape[1] != width):
        wanted = f"(rows, {'width' if width is None else width})"
        raise BertfastError(f"{name} has shape {shape}; it must be {wanted}")


def similar_pairs(
    vectors: NDArray[Any] | Tensor,
    *,
    least: float = -1.0,
    k: int = 100,
    most: int | None = None,
    similarity: str = "cosine",
) -> list[tuple[float, int, int]]:
    """Pairs of rows that are alike, (score, row, later row), the most similar first: paraphrases,
    or with a high ``least`` duplicates.

    Args:
        vectors: (rows, width).
        least: score of a pair at least.
        k: how many neighbours of a row are looked at.
        most: how many pairs are given; None for all.
        similarity: as of `top_k`.
    """
    check_vectors(vectors, "vectors")
    found: dict[tuple[int, int], float] = {}
    for start, block in blocks(vectors, len(vectors)):
        scores, rows = top_k(block, vectors, k + 1, similarity)
        for at, (line, others) in enumerate(zip(scores, rows, strict=True), start):
            for score, other in zip(line.tolist(), others.tolist(), strict=True):
                if other != at and score >= least:
                    found.setdefault((min(at, other), max(at, other)), score)
    pairs = sorted((-score, a, b) for (a, b), score in found.items())
    return [(-score, a, b) for score, a, b in pairs[:most]]


def hard_negatives(
    queries: NDArray[Any] | Tensor,
    corpus: NDArray[Any] | Tensor,
    positives: Sequence[Sequence[int]],
    *,
    negatives: int = 5,
    skip: int = 0,
    deepest: int = 100,
    margin: float | None = None,
    ratio: float | None = None,
    highest: float | None = None,
    similarity: str = "cosine",
) -> list[list[int]]:
    """Of each query the rows that are most like it and no positives.

    Args:
        queries: (queries, width).
        corpus: (rows, width).
        positives: the rows that answer each query.
        negatives: how many of a query, at most.
        skip: how many of the most similar are passed over, as likely answers.
        deepest: how many of the most similar are looked at.
        margin: how far the score must be below that of the best positive; None for no bound.
        ratio: of the score of the best positive, at most (de Souza et al., "NV-Retriever", 2024).
        highest: score of a negative at most.
        similarity: as of `top_k`.
    """
    scores, rows = top_k(queries, corpus, deepest + max(map(len, positives), default=0), similarity)
    found = []
    for number, answers in enumerate(positives):
        bound = np.inf if highest is None else highest
        if answers and (margin is not None or ratio is not None):
            own, _ = top_k(queries[number : number + 1], corpus[np.asarray(answers)], 1, similarity)
            if margin is not None:
                bound = min(bound, float(own[0, 0]) - margin)
            if ratio is not None:
                bound = min(bound, float(own[0, 0]) * ratio)
        ranked = zip(rows[number].tolist(), scores[number].tolist(), strict=True)
        others = [(row, score) for row, score in ranked if row not in answers][skip:deepest]
        found.append([row for row, score in others if score <= bound][:negatives])
    return found
