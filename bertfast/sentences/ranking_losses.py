"""Losses of a reranker: what the scores of a query's documents should be, or how they are ordered.

Each is a function of the rows that a batch has. Those that sentence-transformers has too are equal
to it in value and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = -1e16  # the score of a document that is not there
MU = 10.0  # of LambdaLoss: what NDCG-Loss2 counts beside LambdaRank
LEAST = 1e-10  # gain of a whole list


@dataclass(frozen=True)
class Ranked:
    """The documents of a batch's queries.

    Attributes:
        scores: (queries, most documents) of the model, `FAR` where there is no document.
        labels: likewise, minus infinity there.
        real: likewise, whether there is one.
    """

    scores: Tensor
    labels: Tensor
    real: Tensor

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, queries: Tensor) -> Ranked:
        """From (documents,) scores, labels, and the number of each one's query, in order."""
        counts = torch.bincount(queries)
        starts = counts.cumsum(0) - counts
        column = torch.arange(len(queries), device=queries.device) - starts[queries]
        shape = (len(counts), int(counts.max()))
        real = torch.zeros(shape, dtype=torch.bool, device=scores.device)
        real[queries, column] = True
        padded = scores.new_full(shape, FAR).index_put((queries, column), scores)
        wanted = labels.new_full(shape, -math.inf)
        wanted[queries, column] = labels
        return cls(padded, wanted, real)


def binary(rows: Ranked) -> Tensor:
    """The mean cross-entropy of each score's sigmoid with its label."""
    return F.binary_cross_entropy_with_logits(rows.scores[rows.real], rows.labels[rows.real])


def mse(rows: Ranked) -> Tensor:
    """The mean square of each score less its label, a teacher's score."""
    return F.mse_loss(rows.scores[rows.real], rows.labels[rows.real])


def margin_mse(rows: Ranked) -> Tensor:
    """The mean square of how far each score is below the first one's, less how far its label is
    (Hofstätter et al., 2020).
    """
    later = rows.real[:, 1:]
    margins = (rows.scores[:, :1] - rows.scores[:, 1:])[later]
    return F.mse_loss(margins, (rows.labels[:, :1] - rows.labels[:, 1:])[later])


def list_net(rows: Ranked) -> Tensor:
    """The cross-entropy of the softmax of a query's scores with that of its labels (Cao et al.,
    "Learning to Rank", 2007).
    """
    return F.cross_entropy(rows.scores, rows.labels.softmax(1))


def lambda_loss(rows: Ranked) -> Tensor:
    """The mean of ``-w log2(sigmoid(s_i - s_j))`` over pairs of a query's documents of which i has
    the higher label.

    The weights are NDCG-Loss2++'s (Wang et al., "The LambdaLoss Framework", 2018).

    With the documents in the order of their scores, D the discounts and G the gains over that of
    the best order::

        w = (mu abs(1/D(d) - 1/D(d + 1)) + abs(1/D(i) - 1/D(j))) abs(G(i) - G(j)),  d = abs(i - j)
    """
    scores, order = rows.scores.sort(dim=1, descending=True)
    labels, real = rows.labels.gather(1, order), rows.real.gather(1, order)
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    inverse = 1 / torch.log2(1.0 + ranks)
    best = rows.labels.sort(dim=1, descending=True)[0].clamp(min=0)
    total = ((2**best - 1) * inverse).sum(1, keepdim=True).clamp(min=LEAST)
    gains = (2 ** labels.clamp(min=0) - 1) / total
    apart = (ranks[:, None] - ranks).abs()
    steps = torch.cat([inverse, 1 / torch.log2(1.0 + ranks[-1:] + 1)])
    by_distance = (steps[(apart - 1).clamp(min=0)] - steps[apart]).abs()
    by_rank = (inverse[:, None] - inverse).abs()
    weights = (MU * by_distance + by_rank) * (gains[:, :, None] - gains[:, None]).abs()
    taken = (labels[:, :, None] > labels[:, None]) & real[:, :, None] & real[:, None]
    differences = (scores[:, :, None] - scores[:, None])[taken]
    losses = weights[taken] * F.logsigmoid(differences) / math.log(2)
    return -losses.sum() / max(len(losses), 1)


# By name: the function, and a few words of help.
RANKING_LOSSES: dict[str, tuple[Callable[[Ranked], Tensor], str]] = {
    "binary": (binary, "relevant or not"),
    "mse": (mse, "a teacher's scores"),
    "margin-mse": (margin_mse, "a teacher's margins"),
    "list-net": (list_net, "the order of lists, by a softmax"),
    "lambda": (lambda_loss, "the order of lists, by their nDCG"),
}
