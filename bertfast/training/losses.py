"""Losses of classes beside the plain cross-entropy: weighted, smoothed, focal, and R-Drop's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.errors import BertfastError
from bertfast.files import read_object

BALANCED = "balanced"


class ClassLoss:
    """Cross-entropy with class weights ``w``, smoothed targets ``q`` and a focal exponent.

    Of one label a row, with ``p`` the softmax and ``y`` the label::

        sum over rows and classes of  w_c q_c (1 - p_c)^gamma (-log p_c),  over the rows' sum of w_y

    ``q`` is ``1 - smoothing`` at the label, and ``smoothing / classes`` more everywhere. With no
    gamma it is `torch.nn.functional.cross_entropy`; the focal term is that of Lin et al., "Focal
    Loss for Dense Object Detection", 2017.

    Of several labels a row, with ``p`` the sigmoid, it is the mean over rows and classes of::

        w_c q_c (1 - p_c)^gamma (-log p_c) + (1 - q_c) p_c^gamma (-log(1 - p_c))

    where ``q`` is ``smoothing / 2`` away from 0 and 1.

    Args:
        several: whether a row has several labels.
        weights: (classes,) or None for 1 each.
        smoothing: from 0 to below 1.
        gamma: at least 0.
        rdrop: the weight of `disagreement`.
    """

    def __init__(
        self,
        several: bool,
        weights: Tensor | None = None,
        smoothing: float = 0.0,
        gamma: float = 0.0,
        rdrop: float = 0.0,
    ) -> None:
        self.several, self.weights = several, weights
        self.smoothing, self.gamma, self.rdrop = smoothing, gamma, rdrop

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (rows, classes) and of labels (rows,), where a negative one counts for
        nothing, or (rows, classes) of 0 and 1.
        """
        logits = logits.float()
        weights = logits.new_ones(()) if self.weights is None else self.weights.to(logits.device)
        if self.several:
            wanted = labels.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
            yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
            parts = -weights * wanted * self._focal(no) * yes
            return (parts - (1 - wanted) * self._focal(yes) * no).mean()
        counted = labels >= 0
        labels = labels.clamp(min=0)
        surprise = -logits.log_softmax(-1)
        if self.gamma:
            # log(1 - p), of p near 1 too.
            rest = torch.log(-torch.expm1(-surprise.clamp(min=torch.finfo(torch.float32).tiny)))
            surprise = surprise * self._focal(rest)
        surprise = weights * surprise
        hit = surprise.gather(-1, labels[:, None])[:, 0]
        parts = (1 - self.smoothing) * hit + self.smoothing * surprise.mean(-1)
        total = weights.expand(logits.shape[-1])[labels]
        return (parts * counted).sum() / (total * counted).sum()

    def _focal(self, log_rest: Tensor) -> Tensor | float:
        """(1 - p)^gamma, of the logarithm of 1 - p."""
        return torch.exp(self.gamma * log_rest) if self.gamma else 1.0

    def disagreement(self, one: Tensor, other: Tensor) -> Tensor:
        """R-Drop's term: the mean over rows of the two Kullback-Leibler divergences between the
        predictions of two passes, halved. Wu et al., "R-Drop: Regularized Dropout for Neural
        Networks", 2021.

        Args:
            one, other: logits (rows, classes).
        """
        if self.several:
            # A sigmoid is a softmax over its logit and 0.
            one, other = (torch.stack([x, torch.zeros_like(x)], -1) for x in (one, other))
        p, q = one.float().log_softmax(-1), other.float().log_softmax(-1)
        both = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
        return (both.sum(-1) if self.several else both).mean()


def class_weights(
    wanted: str,
    label2id: Mapping[str, int],
    targets: Sequence[int] | Sequence[Sequence[float]],
    several: bool,
) -> Tensor:
    """(classes,): each class's weight.

    Args:
        wanted: `BALANCED` gives each class the same weight in all, as in scikit-learn: rows /
            (classes x its rows). With several labels a row, it is the rows without it / those with
            it. Or a JSON file with a number for each label.
        label2id: the classes.
        targets: of the training rows; see `ClassLoss`.
        several: whether a row has several labels.

    Raises:
        BertfastError: the file cannot be used, or names other labels; a label is in no row, or in
            all.
    """
    names = list(label2id)
    if wanted != BALANCED:
        return _weights_of(Path(wanted), names)
    if several:
        having = np.asarray(targets, np.float64).sum(0)
        counts, rows = having, len(targets) - having
    else:
        counts = np.bincount(np.asarray(targets), minlength=len(names)).astype(np.float64)
        rows = np.full(len(names), len(targets) / len(names))
    for name, with_it, others in zip(names, counts, rows, strict=True):
        if not with_it or not others:
            raise BertfastError(
                f"class-weights is {BALANCED}, and the label {name!r} is in "
                f"{'no' if not with_it else 'every'} training row"
            )
    return torch.from_numpy(rows / counts).float()


def _weights_of(path: Path, names: Sequence[str]) -> Tensor:
    found = read_object(path)
    for name in [*names, *found]:
        weight = found.get(name)
        if name not in names:
            raise BertfastError(f"{path}: {name!r} is no label of the training data")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise BertfastError(
                f"{path}: the weight of {name!r} is {weight!r}; every label has a number above 0"
            )
    return torch.tensor([float(found[name]) for name in names])
