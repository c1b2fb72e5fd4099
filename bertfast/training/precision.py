"""bfloat16 training: the model computes in bfloat16, the optimizer keeps and updates float32 masters of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16")


class Masters(nn.Module):
    """Float32 copies of a model's parameters, under the same names; the optimizer works on these.

    In fp32 they are the model's parameters themselves, and nothing is copied. In bf16 the model itself is cast, `take_gradients` hands its
    gradients over in float32, and `refresh` writes the updated weights back.

    Args:
        model: in float32.
        precision: "fp32" or "bf16".
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.copies = precision == "bf16"
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        if self.copies:
            self.weights = nn.ParameterList([nn.Parameter(p.detach().clone()) for _, p in named])
            model.bfloat16()
            # A frozen buffer or parameter is cast too: forward sees one dtype.
        else:
            self.weights = nn.ParameterList([p for _, p in named])
        self.compute = [p for _, p in named]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Moves the model's accumulated gradients to the masters, in float32."""
        if not self.copies:
            return
        for master, parameter in zip(self.weights, self.compute, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Writes the masters into the model's weights."""
        if self.copies:
            computed: list[Tensor] = list(self.compute)
            torch._foreach_copy_(computed, list(self.weights))

    def named(self) -> dict[str, Tensor]:
        """The masters by the model's parameter names."""
        return dict(zip(self.names, (weight.detach() for weight in self.weights), strict=True))
