"""Losses of classes: PyTorch's where it has them, and their published formulas elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.errors import BertfastError
from bertfast.training.losses import ClassLoss, class_weights

SEEDS = st.integers(0, 2**32)


def some(seed: int, rows: int = 7, classes: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    logits = (3 * torch.randn(rows, classes)).requires_grad_()
    return logits, torch.randint(0, classes, (rows,)), torch.rand(classes) + 0.1


@given(SEEDS, st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
@settings(deadline=None)
def test_one_label_without_focus_is_cross_entropy(
    seed: int, smoothing: float, weighted: bool
) -> None:
    logits, labels, weights = some(seed)
    labels[0] = -100
    ours = ClassLoss(False, weights if weighted else None, smoothing)(logits, labels)
    options = {"weight": weights if weighted else None, "label_smoothing": smoothing}
    theirs = F.cross_entropy(logits, labels, **options)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@given(SEEDS, st.sampled_from([0.5, 2.0, 5.0]))
@settings(deadline=None)
def test_the_focal_loss_is_that_of_the_paper(seed: int, gamma: float) -> None:
    logits, labels, weights = some(seed)
    p = logits.double().softmax(-1).gather(1, labels[:, None])[:, 0]
    expected = (-weights[labels] * (1 - p) ** gamma * p.log()).sum() / weights[labels].sum()
    ours = ClassLoss(False, weights, gamma=gamma)(logits, labels)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


@given(SEEDS, st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 2.0]))
@settings(deadline=None)
def test_several_labels_are_binary_cross_entropies(
    seed: int, smoothing: float, gamma: float
) -> None:
    logits, _, weights = some(seed)
    labels = (torch.rand(logits.shape) < 0.5).float()
    wanted = labels * (1 - smoothing) + smoothing / 2
    ours = ClassLoss(True, weights, smoothing, gamma)(logits, labels)
    p = logits.double().sigmoid()
    expected = -weights * wanted * (1 - p) ** gamma * p.log()
    expected = (expected - (1 - wanted) * p**gamma * (1 - p).log()).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    if not gamma:
        theirs = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_sure_row_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [0.0, 0.0]], requires_grad=True)
    for several, labels in ((False, torch.tensor([0, 1])), (True, torch.eye(2))):
        loss = ClassLoss(several, gamma=gamma)(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(loss)


@given(SEEDS)
@settings(deadline=None)
def test_r_drops_term_is_the_mean_of_both_divergences(seed: int) -> None:
    one, _, _ = some(seed)
    other, _, _ = some(seed + 1)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    both = [F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p))]
    ours = ClassLoss(False).disagreement(one, other)
    assert ours.item() == pytest.approx(sum(both).item() / 2, rel=1e-4, abs=1e-6)
    assert ClassLoss(True).disagreement(one, one).item() == 0
    bernoulli = torch.distributions.Bernoulli
    divergence = torch.distributions.kl_divergence
    p, q = bernoulli(logits=one.double()), bernoulli(logits=other.double())
    expected = (divergence(p, q) + divergence(q, p)).sum(-1).mean() / 2
    ours = ClassLoss(True).disagreement(one, other)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)


def test_balanced_weights_are_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    targets = [0, 0, 0, 1, 2, 2]
    ours = class_weights("balanced", {"a": 0, "b": 1, "c": 2}, targets, False)
    theirs = utils.compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert ours.tolist() == pytest.approx(theirs.tolist())
    lists = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert class_weights("balanced", {"a": 0, "b": 1}, lists, True).tolist() == [
        3,
        pytest.approx(1 / 3),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 2, "b": 0.5}, None),
        ({"a": 2}, "the weight of 'b' is None; every label has a number above 0"),
        ({"a": 2, "b": 0}, "the weight of 'b' is 0"),
        ({"a": 2, "b": "1"}, "the weight of 'b' is '1'"),
        ({"a": 2, "b": 1, "c": 1}, "'c' is no label"),
    ],
)
def test_weights_come_from_a_file(content: Any, said: str | None, tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text(json.dumps(content))
    if said is None:
        assert class_weights(str(file), {"a": 0, "b": 1}, [0, 1], False).tolist() == [2, 0.5]
    else:
        with pytest.raises(BertfastError, match=said):
            class_weights(str(file), {"a": 0, "b": 1}, [0, 1], False)


def test_a_class_of_no_row_has_no_balanced_weight() -> None:
    with pytest.raises(BertfastError, match="'b' is in no training row"):
        class_weights("balanced", {"a": 0, "b": 1}, [0, 0], False)
    with pytest.raises(BertfastError, match="'a' is in every training row"):
        class_weights("balanced", {"a": 0}, [[1.0], [1.0]], True)
