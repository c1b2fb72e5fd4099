"""The optimizer's groups, the schedule, clipping, and float32 masters of bfloat16 weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bertfast.config import BertConfig
from bertfast.model import BertForPreTraining
from bertfast.training.optimizer import (
    BETAS,
    EPSILON,
    AdamW,
    build_optimizer,
    clip_at_next_step,
    linear_schedule,
    set_rate,
)
from bertfast.training.precision import Masters


def small_model() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )


def test_biases_and_norms_do_not_decay() -> None:
    model = small_model()
    optimizer = build_optimizer(model, lr=0.5, weight_decay=0.1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # with no gradient, decay is all that an update does
    kept = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    shrunk = [
        name
        for name, weight in model.named_parameters()
        if torch.allclose(weight, before[name] * 0.95) and name not in kept
    ]
    assert sorted(kept + shrunk) == sorted(before)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in kept)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in shrunk)
    assert "bert.embeddings.word_embeddings.weight" in shrunk


def test_frozen_parameters_are_left_out() -> None:
    model = small_model()
    model.bert.requires_grad_(False)
    trained = {
        id(p) for group in build_optimizer(model, 1e-3).param_groups for p in group["params"]
    }
    assert trained == {id(p) for p in model.cls.parameters() if p.requires_grad}


def test_the_schedule_rises_and_falls_linearly() -> None:
    shares = [linear_schedule(step, warmup=4, total=12) for step in range(12)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:] == pytest.approx([1 - step / 8 for step in range(8)])
    assert linear_schedule(12, 4, 12) == 0.0


@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_every_update_of_a_schedule_moves_at_most_at_the_peak_rate(
    total: int, share: float
) -> None:
    warmup = int(share * total)
    shares = [linear_schedule(step, warmup, total) for step in range(total)]
    assert all(0 < value <= 1 for value in shares)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)


def test_set_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(small_model(), 1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_clipping_scales_the_joint_norm() -> None:
    a, b = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = AdamW([{"params": [a, b]}], 1e-3)
    a.grad, b.grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    assert clip_at_next_step(optimizer, 10.0) == 5.0
    assert optimizer.gradient_scale == 1.0
    assert clip_at_next_step(optimizer, 1.0) == 5.0
    optimizer.step()
    torch.testing.assert_close(optimizer.state[b]["exp_avg"], torch.tensor([0.0, 0.08, 0.0]))
    assert optimizer.gradient_scale == 1.0


def test_a_step_is_that_of_torchs_adamw_with_clipping() -> None:
    mine, theirs = small_model(), small_model()
    optimizer = build_optimizer(mine, 1e-2)
    other = torch.optim.AdamW(
        build_optimizer(theirs, 1e-2).param_groups, 1e-2, betas=BETAS, eps=EPSILON
    )
    for step in range(3):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        clip_at_next_step(optimizer, 1.0)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        other.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in mine.parameters())
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_rate_and_age_may_be_tensors_that_a_graph_reads() -> None:
    mine, theirs = small_model(), small_model()
    optimizer, other = build_optimizer(mine, 0.0), build_optimizer(theirs, 1e-2)
    for step in range(3):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        optimizer.step(lr=torch.tensor(1e-2), age=torch.tensor(step + 1.0, dtype=torch.float64))
        other.step()
    assert all(
        torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True)
    )
    optimizer.count()
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


def test_masters_of_float32_are_the_weights_themselves() -> None:
    model = small_model()
    masters = Masters(model, "fp32")
    assert all(a is b for a, b in zip(masters.weights, model.parameters(), strict=True))


def test_masters_keep_updates_that_bfloat16_would_lose() -> None:
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight.fill_(1.0)
    masters = Masters(model, "bf16")
    assert model.weight.dtype == torch.bfloat16
    optimizer = build_optimizer(masters, 1e-4, weight_decay=0.0)
    for _ in range(100):  # each of these is far below bfloat16's spacing at 1
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        optimizer.zero_grad()
        assert model.weight.grad is None
    torch.testing.assert_close(masters.named()["weight"], torch.full((8, 8), 0.99))
    assert torch.equal(model.weight, masters.named()["weight"].bfloat16())


def test_masters_add_up_the_gradients_of_accumulated_parts_in_float32() -> None:
    model = nn.Linear(2, 1, bias=False)
    masters = Masters(model, "bf16")
    optimizer = build_optimizer(masters, 1e-4)
    for value in (1.0, 2.0**-12):  # their sum is no bfloat16
        model.weight.grad = torch.full((1, 2), value, dtype=torch.bfloat16)
        masters.accumulate()
    assert [gradient.tolist() for gradient in optimizer.gradients()] == [[[1.0 + 2.0**-12] * 2]]
