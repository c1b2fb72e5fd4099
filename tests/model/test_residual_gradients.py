"""The gradients of a residual and of the product beside it, added up in the product: as on a GPU,
here on whatever the tests run on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family import MEMBERS, small
from torch.utils.checkpoint import checkpoint

from bertfast import BertConfig, PackedBatch
from bertfast.config import ModernBertConfig
from bertfast.kernels import linear as plain_linear
from bertfast.kernels.linear import _Beside, linear_beside
from bertfast.model import functional
from bertfast.model.encoder import join_projections
from bertfast.model.members import member_class


def as_on_a_gpu(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> Any:
    wanted = torch.is_grad_enabled() and x.requires_grad
    return _Beside.apply(x, weight, bias) if wanted else (plain_linear(x, weight, bias), x)


def made(config_class: Any = BertConfig, **rates: float) -> Any:
    torch.manual_seed(0)
    model = member_class(small(config_class), "ForMaskedLM")(small(config_class, **rates)).train()
    join_projections(model)
    return model


def batch() -> PackedBatch:
    given = PackedBatch.from_sequences([[7, 8, 9, 10], [11], [12, 13, 14]])
    given.masked_positions = torch.tensor([1, 6])
    given.masked_labels = torch.tensor([20, 30])
    return given


def gradients(model: Any, times: int = 1) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(batch(), seed=1).loss
    for _ in range(times):
        loss.backward(retain_graph=times > 1)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("config_class", list(MEMBERS), ids=lambda x: x.__name__)
@pytest.mark.slow_unless(lambda config_class, p: config_class is BertConfig)
def test_every_members_gradients_are_what_they_were(
    config_class: Any, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = {} if config_class is ModernBertConfig else {"hidden_dropout_prob": p}
    model = made(config_class, **rate)
    wanted = gradients(model)
    monkeypatch.setattr(functional, "linear_beside", as_on_a_gpu)
    assert_same(gradients(model), wanted)


def test_a_second_backward_and_a_recomputed_block_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made(hidden_dropout_prob=0.1)
    once = gradients(model)
    monkeypatch.setattr(functional, "linear_beside", as_on_a_gpu)
    assert_same(gradients(model, times=2), {name: 2 * x for name, x in once.items()})
    model.base.encoder_run.checkpoint = lambda run, *args: checkpoint(
        run, *args, use_reentrant=False
    )
    assert_same(gradients(model), once)


def test_a_hidden_states_gradient_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = made(), []
    for beside in (linear_beside, as_on_a_gpu):
        monkeypatch.setattr(functional, "linear_beside", beside)
        states = model.base(batch(), output_hidden_states=True).hidden_states
        for state in states:
            state.retain_grad()
        states[-1].square().sum().backward()
        found.append([state.grad.clone() for state in states])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_no_gradient_of_a_hook_is_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout the norm gives both of its inputs one gradient."""
    model, seen, kept = made(), [], []
    monkeypatch.setattr(functional, "linear_beside", as_on_a_gpu)
    projection = model.base.encoder_run.blocks[0].attention_output

    def see(module: Any, douts: Any) -> None:
        seen.append(douts[0])
        kept.append(douts[0].clone())

    projection.register_full_backward_pre_hook(see)
    gradients(model)
    assert torch.equal(seen[0], kept[0])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("used", ["both", "product", "residual"])
def test_the_product_adds_to_the_residuals_gradient(used: str, with_bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (4, 6), (4,))[: 3 if with_bias else 2]
    leaves = [torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes]
    dy, dkept = (torch.randn(5, n, generator=draw, dtype=torch.float64) for n in (4, 6))

    def loss(call: Any) -> torch.Tensor:
        y, kept = call(*leaves)
        parts = {"product": (y.sin() * dy).sum(), "residual": (kept.sin() * dkept).sum()}
        return sum(part for name, part in parts.items() if used in ("both", name))  # type: ignore[return-value]

    def beside(x: Any, weight: Any, bias: Any = None) -> Any:
        return _Beside.apply(x, weight, bias)

    wanted = torch.autograd.grad(loss(linear_beside), leaves, allow_unused=True)
    got = torch.autograd.grad(loss(beside), leaves, allow_unused=True)
    torch.testing.assert_close(got, wanted)
    assert torch.autograd.gradgradcheck(
        lambda *leaves: tuple(out.sin() for out in beside(*leaves)), leaves
    )


def test_the_sum_takes_no_memory_of_its_own() -> None:
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(4, 6)
    (y, kept), seen = _Beside.apply(x, weight, None), []
    x.register_hook(seen.append)
    dkept = torch.randn(5, 6)
    torch.autograd.backward([y, kept], [torch.randn(5, 4), dkept])
    assert seen[0].data_ptr() == dkept.data_ptr()
