"""The queries', keys' and values' weights that lie together: one product for the three, and nothing
else that a user could tell.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family import MEMBERS, small
from torch import nn

from bertfast import BertConfig, PackedBatch
from bertfast.config import AlbertConfig, ModernBertConfig
from bertfast.kernels import products
from bertfast.kernels.linear import together
from bertfast.model import functional
from bertfast.model.encoder import join_projections
from bertfast.model.members import member_class
from bertfast.training.optimizer import build_optimizer
from bertfast.training.precision import Masters


def made(config: Any = None) -> Any:
    config = config or small(BertConfig)
    torch.manual_seed(0)
    return member_class(config, "ForMaskedLM")(config).train()


def batch() -> PackedBatch:
    given = PackedBatch.from_sequences([[7, 8, 9, 10], [11], [12, 13, 14]])
    given.masked_positions = torch.tensor([1, 6])
    given.masked_labels = torch.tensor([20, 30])
    return given


def of_first_layer(model: Any) -> list[nn.Linear]:
    block = model.base.encoder_run.blocks[0]
    return [block.query, block.key, block.value]


def differentiated(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch(), seed=1).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def products_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights that a forward multiplies by."""
    shapes: list[tuple[int, ...]] = []

    def seen(call: Any) -> Any:
        def product(x: Any, weight: Any, *rest: Any, **options: Any) -> Any:
            shapes.append(tuple(weight.shape))
            return call(x, weight, *rest, **options)

        return product

    with monkeypatch.context() as patched:
        patched.setattr(functional.kernels, "linear", seen(functional.kernels.linear))
        patched.setattr(functional, "linear_beside", seen(functional.linear_beside))
        model(batch(), seed=1)
    return shapes


@pytest.mark.parametrize("config_class", list(MEMBERS), ids=lambda x: x.__name__)
def test_every_members_loss_and_gradients_are_what_they_were(config_class: Any) -> None:
    one, other = (made(small(config_class)) for _ in range(2))
    join_projections(other)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(x, other.state_dict()[n]) for n, x in one.state_dict().items())
    if config_class is not ModernBertConfig:  # whose checkpoints have one weight for the three
        assert together([layer.weight for layer in of_first_layer(other)]) is not None
    wanted, got = differentiated(one), differentiated(other)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_three_products_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    before = products_of(model, monkeypatch)
    join_projections(model)
    after = products_of(model, monkeypatch)
    layers = model.config.num_hidden_layers
    assert after.count((96, 32)) == layers
    assert len(before) - len(after) == 2 * layers


def test_layers_that_are_shared_are_joined_once() -> None:
    model = made(small(AlbertConfig))
    join_projections(model)
    places = [p.data_ptr() for p in model.parameters()]
    join_projections(model)
    assert places == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize("what", ["adapter", "hook", "frozen", "copied", "cast", "no bias"])
def test_what_is_done_to_one_projection_keeps_working(what: str) -> None:
    one, other = made(), made()
    join_projections(other)
    for model in (one, other):
        query, key, _ = of_first_layer(model)
        if what == "adapter":
            key.register_forward_hook(lambda module, args, out: out * 2)
        elif what == "hook":
            query.register_full_backward_pre_hook(lambda module, douts: (douts[0] * 3,))
        elif what == "frozen":
            key.weight.requires_grad_(False)
        elif what == "no bias":
            key.bias = None
    if what == "copied":
        other = copy.deepcopy(other)
    if what == "cast":
        one, other = one.double(), other.double()
    wanted, got = differentiated(one), differentiated(other)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_folder_has_each_weight_by_its_name(tmp_path: Path) -> None:
    one, other = made(), made()
    join_projections(other)
    for model, name in ((one, "one"), (other, "other")):
        model.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
    other.load_state_dict({n: x + 1 for n, x in one.state_dict().items()})
    assert together([layer.weight for layer in of_first_layer(other)]) is not None
    again = type(one).from_pretrained(tmp_path / "other")
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in one.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_updates_reach_each_weight(precision: str) -> None:
    """As on a GPU, where `Masters` joins."""
    found = []
    for joins in (False, True):
        model = made()
        masters = Masters(model, precision)
        if joins:
            join_projections(model)
        optimizer = build_optimizer(masters, 1e-3)
        for _ in range(3):
            model(batch(), seed=1).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if joins:
            assert together([layer.weight for layer in of_first_layer(model)]) is not None
        found.append(masters.named())
    close = {"rtol": 1e-3, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.02, "atol": 3e-3}
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, **close)


def test_masters_join_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = made()
    Masters(model, "bf16")
    assert together([layer.weight for layer in of_first_layer(model)]).shape == (96, 32)  # type: ignore[union-attr]
    model = made()
    Masters(model, "bf16")
    assert together([layer.weight for layer in of_first_layer(model)]) is None


@pytest.mark.slow
def test_compiled_it_is_three_products_again() -> None:
    one, other = made(), made()
    join_projections(other)
    wanted = one(batch(), seed=1).loss
    got = torch.compile(other, backend="eager")(batch(), seed=1).loss
    torch.testing.assert_close(got, wanted)
    assert products.is_plain(got)
