"""A model's parameters by their layer: the first ones frozen, or each with a rate of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bertfast.errors import BertfastError
from bertfast.model import PreTrainedModel
from bertfast.model.encoder import num_blocks
from bertfast.model.family import member_of

ABOVE = ("pooler", "final_norm")  # modules of an encoder that stand past its last layer


def layers_of(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """The encoder's parameters: those of the embeddings, and of what all layers share, first, then
    those of each layer from the bottom. One that several layers share is in the highest of them.
    """
    base, member = model.base, member_of(model.config)
    above = {
        parameter
        for name in ABOVE
        if name in member.modules
        for parameter in _below(base, member.modules[name].path)
    }
    depths = {parameter: 0 for parameter in base.parameters() if parameter not in above}
    blocks = num_blocks(model.config)
    for number in range(blocks):
        for parameter in _below(base, member.layer_path(number, model.config)):
            depths[parameter] = number + 1
    layers: list[list[nn.Parameter]] = [[] for _ in range(blocks + 1)]
    for parameter, depth in depths.items():
        layers[depth].append(parameter)
    return layers


def _below(base: nn.Module, path: str) -> list[nn.Parameter]:
    """The parameters of the module at a path; none where the model lacks it."""
    module: nn.Module | None = base
    for name in path.split("."):
        module = getattr(module, name, None)
    return [] if module is None else list(module.parameters())


def freeze_layers(model: PreTrainedModel, number: int) -> None:
    """Leaves the embeddings and the first layers out of training.

    Raises:
        BertfastError: there are fewer layers, or they share their weights.
    """
    layers = layers_of(model)
    if number >= len(layers):
        raise BertfastError(f"freeze-layers is {number} and the model has {len(layers) - 1} layers")
    if number and not all(layers[1:]):
        raise BertfastError(
            f"freeze-layers is {number}, and the model's layers share their weights; "
            "freeze-encoder freezes them all"
        )
    for layer in layers[: number + 1] if number else []:
        for parameter in layer:
            parameter.requires_grad_(False)


def decayed_rates(model: PreTrainedModel, decay: float) -> dict[nn.Parameter, float]:
    """The share of the rate that each parameter of the encoder learns with.

    It is ``decay`` in the last layer, and ``decay`` times as much in each one as in the one above.
    The embeddings are the lowest. The head, and the pooler, learn with the whole rate. After Sun et
    al., "How to Fine-Tune BERT for Text Classification?", 2019, section 5.3.3.
    """
    layers = layers_of(model)
    return {
        parameter: decay ** (len(layers) - depth)
        for depth, layer in enumerate(layers)
        for parameter in layer
        if parameter.requires_grad
    }


@torch.no_grad()
def divide_logits(model: PreTrainedModel, temperature: float) -> None:
    """Divides the last layer's weight and bias, so that the logits are divided: whoever runs the
    model, `transformers` too, gets the same probabilities.
    """
    head: Any = model.task_head
    out = head.modules.out
    for parameter in (out.weight, out.bias):
        if parameter is not None:
            parameter /= temperature
