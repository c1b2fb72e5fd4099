"""The modules past the pooling of a folder of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast.config import MOST_WIDTH
from bertfast.errors import BertfastError
from bertfast.model.functional import project
from bertfast.model.weights import open_weights

ACTIVATIONS = {
    cls.__name__: cls for cls in (nn.Tanh, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, width) to the same."""
        return F.normalize(x, dim=-1)


class Dense(nn.Module):
    """act(linear(x)), and with ``residual`` x, projected where the widths differ, on top."""

    def __init__(
        self,
        width: int,
        out: int,
        bias: bool = True,
        activation: str = "Tanh",
        residual: bool = False,
    ):
        super().__init__()
        self.linear = nn.Linear(width, out, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = residual
        self.residual = nn.Linear(width, out, bias=False) if residual and width != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, width) to (sequences, out)."""
        out = self.activation(project(self.linear, x))
        if not self.use_residual:
            return out
        return out + (x if self.residual is None else project(self.residual, x))


def read_dense(path: Path, settings: dict[str, Any]) -> Dense:
    """The Dense in a module's folder.

    Raises:
        BertfastError: its settings or its weights cannot be used.
    """
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise BertfastError(
            f"{path}: activation_function is {activation}; supported are {', '.join(ACTIVATIONS)}"
        )
    width, out = (
        positive_or_none(settings.get(size), f"{path}: {size}")
        for size in ("in_features", "out_features")
    )
    if width is None or out is None:
        raise BertfastError(f"{path}: its config.json lacks in_features or out_features")
    residual = bool(settings.get("use_residual", False))
    if max(width, out) > MOST_WIDTH:
        raise BertfastError(f"{path}: its vectors are wider than {MOST_WIDTH}")
    with torch.device("meta"):
        dense = Dense(width, out, bool(settings.get("bias", True)), name, residual)
    stored = open_weights(path)
    expected = {key: tuple(value.shape) for key, value in dense.state_dict().items()}
    found = {key: value.shape for key, value in stored.items()}
    if expected != found:
        raise BertfastError(
            f"{path}: the weights do not fit the Dense of its config.json: they are {found}, and "
            f"it asks for {expected}"
        )
    dense.to_empty(device=torch.get_default_device())
    dense.load_state_dict({key: value.read() for key, value in stored.items()})
    return dense


def dense_settings(dense: Dense) -> dict[str, Any]:
    """What its config.json holds."""
    activation = type(dense.activation)
    return {
        "in_features": dense.linear.in_features,
        "out_features": dense.linear.out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
        **({"use_residual": True} if dense.use_residual else {}),
    }


def positive_or_none(value: Any, what: str) -> int | None:
    """A whole number of at least 1 from a file, or None; ``what`` names it in the error."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise BertfastError(f"{what} is {value!r}; it must be a whole number of at least 1")
    return value
