"""Layers of every member of the family: each parameter once, frozen or slowed from the bottom."""

from __future__ import annotations

from typing import Any

import pytest
from family import MEMBERS, small

from bertfast.errors import BertfastError
from bertfast.model import member_class
from bertfast.training.layers import decayed_rates, freeze_layers, layers_of
from bertfast.training.optimizer import build_optimizer


@pytest.fixture(params=MEMBERS, ids=lambda config: config.__name__)
def model(request: Any) -> Any:
    config = small(request.param)
    return member_class(config, "ForSequenceClassification")(config)


def test_each_parameter_of_the_encoder_is_in_one_layer(model: Any) -> None:
    layers = [parameter for layer in layers_of(model) for parameter in layer]
    assert len(layers) == len(set(layers))
    names = {parameter: name for name, parameter in model.base.named_parameters()}
    above = [name for parameter, name in names.items() if parameter not in set(layers)]
    assert all(name.startswith(("pooler", "final_norm")) for name in above)
    word = next(name for name in names.values() if "embeddings" in name)
    assert word in {names[parameter] for parameter in layers_of(model)[0]}


def test_the_rate_falls_from_the_head_to_the_embeddings(model: Any) -> None:
    optimizer = build_optimizer(model, 1e-3, 0.01, decayed_rates(model, 0.5))
    rate_of = {
        parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert rate_of.keys() == set(model.parameters())
    layers = layers_of(model)
    for depth, layer in enumerate(layers):
        expected = 1e-3 * 0.5 ** (len(layers) - depth)
        assert {rate_of[parameter] for parameter in layer} <= {expected}
    inside = {parameter for layer in layers for parameter in layer}
    assert {rate for parameter, rate in rate_of.items() if parameter not in inside} == {1e-3}
    assert optimizer.param_groups[0]["lr"] == 1e-3
    for group in optimizer.param_groups:
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_first_layers_are_frozen(model: Any) -> None:
    layers = layers_of(model)
    if not all(layers[1:]):
        with pytest.raises(BertfastError, match="layers share their weights"):
            freeze_layers(model, 1)
        return
    freeze_layers(model, 1)
    frozen = {parameter for layer in layers[:2] for parameter in layer}
    assert {parameter for parameter in model.parameters() if not parameter.requires_grad} == frozen
    with pytest.raises(BertfastError, match=f"the model has {len(layers) - 1} layers"):
        freeze_layers(model, len(layers))


def test_no_layer_frozen_leaves_the_embeddings_too(model: Any) -> None:
    freeze_layers(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
