"""Scores of rankings: nDCG, MRR, MAP, recall, precision and accuracy at a depth."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def ranking_scores(
    found: Sequence[Sequence[str]], answers: Sequence[Collection[str]], depths: Sequence[int]
) -> dict[str, float]:
    """``ndcg@k``, ``mrr@k``, ``map@k``, ``recall@k``, ``precision@k`` and ``accuracy@k``, means
    over queries.

    An answer is worth 1 and another document 0. The mean precision is over the answers, or over k
    where there are more of them.

    Args:
        found: of each query the documents, the best first.
        answers: of each query; none is empty.
        depths: each k.
    """
    deepest = max(depths)
    hits = np.zeros((len(found), deepest))
    for line, (documents, right) in enumerate(zip(found, answers, strict=True)):
        for rank, document in enumerate(documents[:deepest]):
            hits[line, rank] = document in right
    counts = np.array([len(right) for right in answers], dtype=np.float64)
    ranks = np.arange(1, deepest + 1)
    discounts = 1 / np.log2(ranks + 1)
    ideal = discounts.cumsum()
    sums = hits.cumsum(1)
    scores: dict[str, float] = {}
    for k in depths:
        most = np.minimum(counts, k).astype(int)
        first = hits[:, :k].argmax(1)
        hit = hits[:, :k].any(1)
        scores |= {
            f"ndcg@{k}": float(((hits * discounts)[:, :k].sum(1) / ideal[most - 1]).mean()),
            f"mrr@{k}": float((hit / (first + 1)).mean()),
            f"map@{k}": float(((hits * sums / ranks)[:, :k].sum(1) / most).mean()),
            f"recall@{k}": float((sums[:, k - 1] / counts).mean()),
            f"precision@{k}": float((sums[:, k - 1] / k).mean()),
            f"accuracy@{k}": float(hit.mean()),
        }
    return scores


def average_precision(relevant: NDArray[np.int64], scores: NDArray[np.float32]) -> float:
    """The mean precision at the answers of one ranking; those of one score stand together."""
    order = np.argsort(-scores, kind="stable")
    right, sorted_scores = relevant[order].astype(bool), scores[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)
    sums = right.cumsum()[ends]
    precision, recall = sums / (ends + 1), sums / right.sum()
    return float((np.diff(recall, prepend=0) * precision).sum())


def reciprocal_rank(relevant: NDArray[np.int64], scores: NDArray[np.float32], depth: int) -> float:
    """1 over the rank of the first answer; 0 where none is among the first ``depth``."""
    order = np.argsort(-scores, kind="stable")[:depth]
    hits = np.flatnonzero(relevant[order])
    return 1 / (hits[0] + 1) if len(hits) else 0.0


def ndcg(relevant: NDArray[np.int64], scores: NDArray[np.float32], depth: int) -> float:
    """The discounted gain of one ranking over that of the best one, each cut at ``depth``.

    Those of one score share their gains (McSherry and Najork, 2008).
    """
    discounts = 1 / np.log2(np.arange(2, len(scores) + 2))
    discounts[depth:] = 0
    _, group = np.unique(-scores, return_inverse=True)
    gains = np.bincount(group, relevant) / np.bincount(group)
    sums = np.bincount(group, minlength=len(gains)).cumsum()
    share = np.diff(discounts.cumsum()[sums - 1], prepend=0)
    best = (np.sort(relevant)[::-1] * discounts).sum()
    return float((gains * share).sum() / best) if best else 0.0
