"""How good a sentence encoder is: similarity, triplets, retrieval, reranking, and what a linear
probe and clusters find in its vectors.

Each evaluator is made of texts, and called with an encoder. It gives scores by name. The first of
`Evaluator.scores` is the one that chooses between models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bertfast.errors import BertfastError
from bertfast.scoring import correlations, scores_of
from bertfast.scoring.ranking import average_precision, ndcg, ranking_scores, reciprocal_rank

from .encoder import SentenceEncoder
from .losses import SIMILARITIES
from .search import similarity_matrix, top_k


class Evaluator:
    """What is measured of an encoder.

    Attributes:
        name: of the kind.
        scores: the words that a person reads for each score.
        examples: how many there are.
    """

    name: ClassVar[str]
    scores: Mapping[str, str]
    examples: int

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        """Each of `scores`."""
        raise NotImplementedError


def similarity_of(encoder: SentenceEncoder) -> str:
    """How an encoder's vectors are compared."""
    return encoder.similarity_fn_name or "cosine"


def _pairwise(
    encoder: SentenceEncoder, a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.float64]:
    """How like each row of a is to that of b."""
    like = SIMILARITIES[similarity_of(encoder)]
    return like(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()


class Similarity(Evaluator):
    """Spearman's and Pearson's correlation of similarities with scores.

    Args:
        first, second: the texts of the pairs.
        targets: their scores.
    """

    name = "similarity"
    scores: Mapping[str, str] = MappingProxyType({"spearman": "Spearman", "pearson": "Pearson"})

    def __init__(
        self, first: Sequence[str], second: Sequence[str], targets: Sequence[float]
    ) -> None:
        self.first, self.second, self.targets = list(first), list(second), list(targets)
        self.examples = len(self.targets)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        like = _pairwise(encoder, encoder.encode(self.first), encoder.encode(self.second))
        found = scores_of(correlations(like, self.targets), self.examples)
        return {name: float(found[name]) for name in self.scores}


class Triplets(Evaluator):
    """The share of triplets whose anchor is more like the positive than the negative.

    Args:
        anchors, positives, negatives: the texts.
    """

    name = "triplets"
    scores: Mapping[str, str] = MappingProxyType({"accuracy": "accuracy"})

    def __init__(
        self, anchors: Sequence[str], positives: Sequence[str], negatives: Sequence[str]
    ) -> None:
        self.texts = [list(anchors), list(positives), list(negatives)]
        self.examples = len(self.texts[0])

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        anchors, positives, negatives = map(encoder.encode, self.texts)
        near = _pairwise(encoder, anchors, positives)
        far = _pairwise(encoder, anchors, negatives)
        return {"accuracy": float((near > far).mean())}


class Retrieval(Evaluator):
    """What a search of a corpus finds of the documents that answer queries: nDCG, MRR, MAP, recall,
    precision and accuracy at several depths.

    Args:
        queries: texts by id.
        corpus: texts by id.
        relevant: of each query the ids of its documents, with how relevant each is. Those that are
            not above 0 count as no answers; one without answers is left out.
        depths: see above.
    """

    name = "retrieval"

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant: Mapping[str, Mapping[str, float]],
        depths: Sequence[int] = (1, 10, 100),
    ) -> None:
        self.ids, self.documents = list(corpus), list(corpus.values())
        known = set(self.ids)
        answers = {
            query: {document for document, grade in of.items() if grade > 0 and document in known}
            for query, of in relevant.items()
        }
        self.queries = {query: text for query, text in queries.items() if answers.get(query)}
        self.answers = [answers[query] for query in self.queries]
        if not self.queries:
            raise BertfastError("no query has a relevant document in the corpus")
        self.depths, self.examples = tuple(depths), len(self.queries)
        at = 10 if 10 in self.depths else self.depths[-1]
        names = [f"{name}@{k}" for name in ("ndcg", "mrr", "map") for k in self.depths]
        names += [f"{name}@{k}" for name in ("recall", "precision", "accuracy") for k in depths]
        names.sort(key=lambda name: name != f"ndcg@{at}")
        self.scores = {name: name for name in names}

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        asked = encoder.encode_query(list(self.queries.values()))
        corpus = encoder.encode_document(self.documents)
        _, rows = top_k(asked, corpus, max(self.depths), similarity_of(encoder))
        found = [[self.ids[row] for row in line] for line in rows.tolist()]
        scores = ranking_scores(found, self.answers, self.depths)
        return {name: scores[name] for name in self.scores}


class Reranking(Evaluator):
    """How a query's candidates are ordered: MAP, and MRR and nDCG at a depth.

    Args:
        samples: a query, its positives and its negatives each. One without either is left out.
        depth: see above.
    """

    name = "reranking"

    def __init__(
        self, samples: Sequence[tuple[str, Sequence[str], Sequence[str]]], depth: int = 10
    ) -> None:
        self.samples = [sample for sample in samples if sample[1] and sample[2]]
        if not self.samples:
            raise BertfastError("no query has positives and negatives")
        self.depth, self.examples = depth, len(self.samples)
        self.scores = {name: name for name in ("map", f"mrr@{depth}", f"ndcg@{depth}")}

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        asked = encoder.encode_query([query for query, _, _ in self.samples])
        texts = [text for _, good, bad in self.samples for text in (*good, *bad)]
        vectors = torch.from_numpy(encoder.encode_document(texts))
        orders, start = [], 0
        for query, (_, good, bad) in zip(torch.from_numpy(asked), self.samples, strict=True):
            end = start + len(good) + len(bad)
            like = similarity_matrix(query[None], vectors[start:end], similarity_of(encoder))
            orders.append((np.array([1] * len(good) + [0] * len(bad)), like[0].numpy()))
            start = end
        return rerank_scores(orders, self.depth)


def rerank_scores(
    orders: Sequence[tuple[NDArray[Any], NDArray[Any]]], depth: int
) -> dict[str, float]:
    """MAP, and MRR and nDCG at a depth, of (relevance, score) of each query's candidates."""
    return {
        "map": float(np.mean([average_precision(*order) for order in orders])),
        f"mrr@{depth}": float(np.mean([reciprocal_rank(*order, depth) for order in orders])),
        f"ndcg@{depth}": float(np.mean([ndcg(*order, depth) for order in orders])),
    }


class Probe(Evaluator):
    """What a logistic regression over the vectors tells of texts' labels.

    Its scores are accuracy and macro F1 of predictions for each fold of the data by the others.

    Args:
        texts: see above.
        labels: of the texts.
        folds: see above; stratified, in an order of a fixed seed.
    """

    name = "probe"
    scores: Mapping[str, str] = MappingProxyType({"accuracy": "accuracy", "macro_f1": "macro F1"})

    def __init__(self, texts: Sequence[str], labels: Sequence[str], folds: int = 5) -> None:
        self.texts, self.labels, self.folds = list(texts), np.array(labels), folds
        self.examples = len(self.texts)
        counts = np.unique(self.labels, return_counts=True)[1]
        if len(counts) < 2 or counts.min() < folds:
            raise BertfastError(
                f"the rarest of {len(counts)} labels has {counts.min()} rows; a probe of {folds} "
                "folds needs two labels of as many rows each"
            )

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        sklearn()
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, f1_score
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        parts = StratifiedKFold(self.folds, shuffle=True, random_state=0)
        vectors = encoder.encode(self.texts)
        found = cross_val_predict(LogisticRegression(max_iter=1000), vectors, self.labels, cv=parts)
        return {
            "accuracy": float(accuracy_score(self.labels, found)),
            "macro_f1": float(f1_score(self.labels, found, average="macro")),
        }


class Clustering(Evaluator):
    """How the clusters of k-means over the vectors go with texts' labels: V-measure, normalised and
    adjusted.

    Args:
        texts: see above.
        labels: of the texts; as many clusters are made as there are.
    """

    name = "clustering"
    scores: Mapping[str, str] = MappingProxyType(
        {
            "v_measure": "V-measure",
            "adjusted_rand": "adjusted Rand",
            "adjusted_mutual": "adjusted mutual information",
        }
    )

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        self.texts, self.labels = list(texts), list(labels)
        self.examples = len(self.texts)

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        sklearn()
        from sklearn import metrics
        from sklearn.cluster import KMeans

        kinds = len(set(self.labels))
        found = KMeans(kinds, n_init=10, random_state=0).fit_predict(encoder.encode(self.texts))
        return {
            "v_measure": float(metrics.v_measure_score(self.labels, found)),
            "adjusted_rand": float(metrics.adjusted_rand_score(self.labels, found)),
            "adjusted_mutual": float(metrics.adjusted_mutual_info_score(self.labels, found)),
        }


def sklearn() -> None:
    """Raises BertfastError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise BertfastError(
            "probes and clusters are scikit-learn's, which is not installed; pip install "
            "'bertfast[demo]'"
        ) from None
