"""Losses over sentence vectors: one small class each, and the registry that the command line reads.

An own loss is a subclass of `Loss` that is registered; those here use nothing else. Each that
sentence-transformers has too is equal to it in value and gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast.errors import BertfastError
from bertfast.registry import SUMMARIES, Registry

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Rows:
    """What a loss is made of.

    Attributes:
        vectors: a (rows, width) tensor for each text of a row.
        labels: (rows,) of scores or classes, (rows, numbers) of lists of scores; None for none.
        texts: (rows, texts of a row) int64, the same number for the same text; None where nobody
            knows.
        head: what `Loss.build` made.
    """

    vectors: Sequence[Tensor]
    labels: Tensor | None = None
    texts: Tensor | None = None
    head: nn.Module | None = None


class Loss:
    """What a row of texts teaches, from their vectors.

    Attributes:
        name: on the command line.
        summary: a few words of help.
        labels: what a row's label is: "none", "score" (a number), "scores" (a list of numbers) or
            "class".
        texts: how many texts a row has, at least and at most; None for any number.
        options: what ``--loss-option`` may set, each with its default.
        twice: whether a row's one text is embedded twice, under other dropouts.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    labels: ClassVar[str] = "none"
    texts: ClassVar[tuple[int, int | None]] = (2, 2)
    options: Mapping[str, Any] = MappingProxyType({})
    twice: ClassVar[bool] = False

    def configured(self, options: Mapping[str, Any]) -> Self:
        """This loss with some of its options set, as values or as their texts.

        Raises:
            BertfastError: it has no such option, or the value is of another type.
        """
        made = copy.copy(self)
        made.options = {
            **self.options,
            **{name: self._value(name, value) for name, value in options.items()},
        }
        made.check()
        return made

    def check(self) -> None:
        """Raises BertfastError for options that cannot be used."""
        for name in ("scale", "temperature"):
            value = self.options.get(name, 1.0)
            if not 0 < value < math.inf:
                raise BertfastError(f"{name} is {value}; it must be a number above 0")
        similarity = self.options.get("similarity", "cosine")
        if similarity not in SIMILARITIES:
            raise BertfastError(
                f"similarity is {similarity!r}; it must be one of {', '.join(SIMILARITIES)}"
            )

    def build(self, width: int, classes: int) -> nn.Module | None:
        """The weights of the loss's own, over vectors of that width; None for none."""
        return None

    def check_labels(self, labels: Tensor, texts: int, source: str) -> None:
        """Raises BertfastError for labels of rows of so many texts that the loss cannot use; the
        ``source`` is named.
        """

    def __call__(self, rows: Rows) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError

    def _value(self, name: str, value: Any) -> Any:
        """The value of an option, of its default's type."""
        if name not in self.options:
            known = ", ".join(f"{key} ({default})" for key, default in self.options.items())
            raise BertfastError(
                f"the loss {self.name!r} has no option {name!r}; "
                + (f"its options, and their defaults, are {known}" if known else "it has none")
            )
        kind = type(self.options[name])
        try:
            if isinstance(value, str) and kind is not str:
                value = (
                    {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
                )
            if type(value) is kind or (kind is float and type(value) is int):
                return kind(value)
        except (KeyError, ValueError, OverflowError):
            pass
        raise BertfastError(
            f"the option {name} of the loss {self.name!r} is {value!r}; it must be {KINDS[kind]}"
        )


LOSSES: Registry[Loss] = Registry("loss")
register_loss = LOSSES.register
"""Makes a subclass of `Loss` known under its name; a decorator. See `Registry.register`."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each row of a and of b, (rows,)."""
    return (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each row of a and of b, (rows,)."""
    return (a * b).sum(-1)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """The distance of each row of a and of b below 0, (rows,); its slope where they are one is
    0.
    """
    return -torch.linalg.vector_norm(a - b, dim=-1)


def manhattan(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the differences below 0, (rows,)."""
    return -(a - b).abs().sum(-1)


SIMILARITIES = {"cosine": cosine, "dot": dot, "euclidean": euclidean, "manhattan": manhattan}


def angle(a: Tensor, b: Tensor) -> Tensor:
    """AnglE's similarity of vectors as complex numbers, whose two parts are the two halves,
    (rows,).

    An odd width is filled with a 0. Source: Li and Li, "AnglE-optimized Text Embeddings", 2023.
    """
    a, b = (F.normalize(F.pad(x, (0, x.shape[-1] % 2)), dim=-1) for x in (a, b))
    (real, imaginary), (other_real, other_imaginary) = a.chunk(2, -1), b.chunk(2, -1)
    turned = imaginary * other_real - real * other_imaginary
    return ((a * b).sum(-1) + turned.sum(-1)).abs()


@register_loss
class MultipleNegatives(Loss):
    """-log of the softmax of a row's positive among all rows' positives and negatives.

    This is InfoNCE (van den Oord et al., 2018; Henderson et al., 2017, sections 4.4).

    Two kinds of candidates count as no negatives. The text of one is that of the row's anchor or
    positive. The other is the positive of the same anchor elsewhere. With ``symmetric`` half of it
    is the loss of finding the anchors, from the positives.
    """

    name, summary = "multiple-negatives", SUMMARIES["loss"]["multiple-negatives"]
    texts: ClassVar[tuple[int, int | None]] = (2, None)
    options = MappingProxyType(
        {"temperature": 0.05, "similarity": "cosine", "symmetric": False, "mask_duplicates": True}
    )

    def check(self) -> None:
        super().check()
        if self.options["similarity"] not in ("cosine", "dot"):
            raise BertfastError(
                f"similarity is {self.options['similarity']!r}; that of the loss {self.name!r} "
                "must be cosine or dot"
            )

    def __call__(self, rows: Rows) -> Tensor:
        vectors = rows.vectors
        if self.options["similarity"] == "cosine":
            vectors = [F.normalize(x, dim=-1) for x in vectors]
        anchors, candidates = vectors[0], torch.cat(list(vectors[1:]))
        count = len(anchors)
        own = torch.arange(count, device=anchors.device)
        scores = (anchors @ candidates.T).float() / self.options["temperature"]
        hidden = self._duplicates(rows.texts, own) if self.options["mask_duplicates"] else None
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        loss = F.cross_entropy(scores, own)
        if not self.options["symmetric"]:
            return loss
        back = scores[:, :count].T
        return (loss + F.cross_entropy(back, own)) / 2

    @staticmethod
    def _duplicates(texts: Tensor | None, own: Tensor) -> Tensor | None:
        """(rows, candidates), the candidates that are no negatives of a row."""
        if texts is None:
            return None
        rows = len(texts)
        candidates = texts[:, 1:].T.reshape(-1)
        hidden = candidates == texts[:, 1:2]
        # An anchor may stand as its own positive, as in SimCSE.
        hidden |= candidates == texts[:, :1]
        hidden[:, :rows] |= texts[:, 0] == texts[:, :1]
        hidden[own, own] = False
        return hidden


@register_loss
class SimCSE(MultipleNegatives):
    """A text is to be found among others by what another dropout makes of it (Gao et al., "SimCSE",
    2021).
    """

    name, summary = "simcse", SUMMARIES["loss"]["simcse"]
    texts = (1, 1)
    twice = True


@register_loss
class CoSENT(Loss):
    """log(1 + the sum of exp(scale (s_i - s_j))), with s a row's similarity (Su, "CoSENT", 2022).

    The sum is over pairs of rows i, j, of which j has the higher score.
    """

    name, summary = "cosent", SUMMARIES["loss"]["cosent"]
    labels = "score"
    options = MappingProxyType({"scale": 20.0})

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """(rows,) of two texts' vectors."""
        return cosine(a, b)

    def __call__(self, rows: Rows) -> Tensor:
        labels = rows.labels
        assert labels is not None
        scores = self.similarity(*rows.vectors).float() * self.options["scale"]
        differences = scores[:, None] - scores[None, :]
        wrong = differences.masked_fill(labels[:, None] >= labels[None, :], -torch.inf)
        return torch.cat([scores.new_zeros(1), wrong.flatten()]).logsumexp(0)


@register_loss
class AnglE(CoSENT):
    """`CoSENT` of the angles that `angle` measures."""

    name, summary = "angle", SUMMARIES["loss"]["angle"]

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return angle(a, b)


@register_loss
class Cosine(Loss):
    """The mean square of a pair's cosine less its score (Reimers and Gurevych, 2019)."""

    name, summary = "cosine", SUMMARIES["loss"]["cosine"]
    labels = "score"

    def check_labels(self, labels: Tensor, texts: int, source: str) -> None:
        if labels.abs().max() > 1:
            raise BertfastError(
                f"{source}: a score is {labels.abs().max():g}, which no cosine is; scores of the "
                "loss 'cosine' are from -1 to 1, and --score-scale divides them"
            )

    def __call__(self, rows: Rows) -> Tensor:
        labels = rows.labels
        assert labels is not None
        return F.mse_loss(cosine(*rows.vectors).float(), labels)


@register_loss
class Softmax(Loss):
    """Cross-entropy of a linear layer over (u, v, abs(u - v)) (Reimers and Gurevych, 2019)."""

    name, summary = "softmax", SUMMARIES["loss"]["softmax"]
    labels = "class"

    def build(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(3 * width, classes)

    def __call__(self, rows: Rows) -> Tensor:
        assert rows.head is not None
        labels = rows.labels
        assert labels is not None
        u, v = rows.vectors
        features = torch.cat([u, v, (u - v).abs()], -1)
        return F.cross_entropy(rows.head(features).float(), labels.long())


@register_loss
class Contrastive(Loss):
    """Half of the mean of d^2 for pairs labelled 1, and of max(margin - d, 0)^2 for those labelled
    0.

    d is one less the cosine (Hadsell et al., 2006).
    """

    name, summary = "contrastive", SUMMARIES["loss"]["contrastive"]
    labels = "score"
    options = MappingProxyType({"margin": 0.5})

    def check_labels(self, labels: Tensor, texts: int, source: str) -> None:
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise BertfastError(f"{source}: a label of the loss {self.name!r} must be 0 or 1")

    def __call__(self, rows: Rows) -> Tensor:
        labels = rows.labels
        assert labels is not None
        distance = 1 - cosine(*rows.vectors).float()
        near = labels * distance.square()
        far = (1 - labels) * F.relu(self.options["margin"] - distance).square()
        return (near + far).mean() / 2


@register_loss
class Triplet(Loss):
    """The mean of max(d(anchor, positive) - d(anchor, negative) + margin, 0) (Schroff et al.,
    2015).
    """

    name, summary = "triplet", SUMMARIES["loss"]["triplet"]
    texts = (3, 3)
    options = MappingProxyType({"margin": 5.0, "similarity": "euclidean"})

    def __call__(self, rows: Rows) -> Tensor:
        similarity = SIMILARITIES[self.options["similarity"]]
        anchor, positive, negative = rows.vectors
        worse = similarity(anchor, negative) - similarity(anchor, positive)
        return F.relu(worse + self.options["margin"]).mean()


@register_loss
class MarginMSE(Loss):
    """The mean square of an error in margins (Hofstätter et al., 2020).

    A margin is how much more a query has in common with the positive than with a negative. The
    error is the margin less what a teacher says.

    A row's label is the teacher's margin for each negative, or its score of each candidate.
    """

    name, summary = "margin-mse", SUMMARIES["loss"]["margin-mse"]
    labels = "scores"
    texts = (3, None)
    options = MappingProxyType({"similarity": "dot"})

    def check_labels(self, labels: Tensor, texts: int, source: str) -> None:
        _check_width(self, labels, (texts - 2, texts - 1), source)

    def __call__(self, rows: Rows) -> Tensor:
        labels = rows.labels
        assert labels is not None
        scores = _scores(rows.vectors, self.options["similarity"])
        if labels.shape[1] == scores.shape[1]:
            labels = labels[:, :1] - labels[:, 1:]
        return F.mse_loss(scores[:, :1] - scores[:, 1:], labels)


@register_loss
class DistillKL(Loss):
    """The Kullback-Leibler divergence from a teacher's softmax over a row's candidates to the
    student's.

    The student's is that of the query's similarities to them. The divergence is multiplied by the
    square of the temperature (Hinton et al., 2015).
    """

    name, summary = "distill-kl", SUMMARIES["loss"]["distill-kl"]
    labels = "scores"
    texts = (3, None)
    options = MappingProxyType({"similarity": "dot", "temperature": 1.0})

    def check_labels(self, labels: Tensor, texts: int, source: str) -> None:
        _check_width(self, labels, (texts - 1,), source)

    def __call__(self, rows: Rows) -> Tensor:
        labels = rows.labels
        assert labels is not None
        temperature = self.options["temperature"]
        student = (_scores(rows.vectors, self.options["similarity"]) / temperature).log_softmax(1)
        teacher = (labels / temperature).softmax(1)
        return F.kl_div(student, teacher, reduction="batchmean") * temperature**2


def _check_width(loss: Loss, labels: Tensor, widths: Sequence[int], source: str) -> None:
    if labels.shape[1] not in widths:
        raise BertfastError(
            f"{source}: a label has {labels.shape[1]} number(s); the loss {loss.name!r} takes "
            f"{' or '.join(map(str, widths))} for rows of these texts"
        )


def _scores(vectors: Sequence[Tensor], similarity: str) -> Tensor:
    """(rows, candidates), how like the first text each later one is."""
    like = SIMILARITIES[similarity]
    return torch.stack([like(vectors[0], x).float() for x in vectors[1:]], 1)


class Matryoshka:
    """A loss over the first numbers of the vectors too, made of length 1 (Kusupati et al.,
    "Matryoshka Representation Learning", 2022).

    Args:
        dims: how many numbers, each for a term of the sum.
        weights: of the terms; None is 1 each.
    """

    def __init__(self, dims: Sequence[int], weights: Sequence[float] | None = None) -> None:
        self.dims = tuple(dims)
        self.weights = (1.0,) * len(self.dims) if weights is None else tuple(weights)
        if len(self.weights) != len(self.dims):
            raise BertfastError(
                f"there are {len(self.weights)} weights and {len(self.dims)} widths; "
                "there must be one for each"
            )
        for dim in self.dims:
            if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
                raise BertfastError(
                    f"matryoshka is {dim!r}; it must be of whole numbers of at least 1"
                )

    def __call__(self, loss: Any, vectors: Sequence[Tensor]) -> Tensor:
        """The sum of ``loss(vectors)`` over the widths."""
        parts = [
            weight * loss([F.normalize(x[:, :dim], dim=-1) for x in vectors])
            for dim, weight in zip(self.dims, self.weights, strict=True)
        ]
        return torch.stack(parts).sum()


class LayerReduction:
    """A loss over the vectors of earlier layers too, and their distance from the last one's.

    2D Matryoshka adds these (Li et al., "2D Matryoshka Sentence Embeddings", 2024).

    Args:
        layers: how many earlier layers an update takes, drawn anew; 0 for all.
        temperature: of the softmaxes over a vector whose divergence is the distance; 0 leaves it
            out.
    """

    def __init__(self, layers: int = 1, temperature: float = 0.3) -> None:
        self.layers, self.temperature = layers, temperature

    def __call__(
        self, loss: Any, states: Sequence[Sequence[Tensor]], draw: torch.Generator
    ) -> Tensor:
        """The sum over layers.

        Args:
            loss: a function of vectors.
            states: the vectors of each layer, the embeddings first.
            draw: which layers are drawn from.
        """
        last, earlier = states[-1], range(len(states) - 1)
        chosen = list(earlier)
        if 0 < self.layers < len(chosen):
            order = torch.randperm(len(chosen), generator=draw)[: self.layers]
            chosen = order.tolist()
        total = loss(last)
        target = self._softmax(last).exp().detach() if self.temperature else None
        for layer in chosen:
            total = total + loss(states[layer]) / len(chosen)
            if target is not None:
                found = self._softmax(states[layer])
                distance = F.kl_div(found, target, reduction="batchmean")
                total = total + distance * self.temperature
        return total

    def _softmax(self, vectors: Sequence[Tensor]) -> Tensor:
        return (torch.cat(list(vectors)).float() / self.temperature).log_softmax(-1)
