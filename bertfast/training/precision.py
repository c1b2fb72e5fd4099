"""bfloat16 training: the model computes in bfloat16, the optimizer keeps and updates float32
masters of its weights.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bertfast.errors import BertfastError
from bertfast.kernels import products
from bertfast.model.encoder import join_projections

PRECISIONS = ("fp32", "bf16")


# Of a model that is used, not trained.
INFERENCE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(precision: str) -> torch.dtype:
    """The data type of a model in that precision.

    Raises:
        BertfastError: it is none of `INFERENCE`.
    """
    if precision not in INFERENCE:
        raise BertfastError(f"precision is {precision!r}; it must be one of {', '.join(INFERENCE)}")
    return INFERENCE[precision]


def find_device(name: str | None = None) -> torch.device:
    """The device of that name; None is the GPU where PyTorch can use one, or else the CPU.

    Raises:
        BertfastError: it is no name of a device, or PyTorch cannot use it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise BertfastError(f"device is {name!r}; it must be cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BertfastError(
            f"device is {name!r}, and PyTorch can use {torch.cuda.device_count()} GPUs here"
        )
    return device


def say_what_it_saves(precision: str, device: torch.device) -> None:
    """One line on stderr, once, where bf16 is not the faster precision: on a CPU that does not
    multiply it.
    """
    if precision == "bf16" and device.type == "cpu" and not products.NATIVE[torch.bfloat16]:
        _say_bf16_saves_memory()


@functools.cache
def _say_bf16_saves_memory() -> None:
    print(
        "bertfast: this CPU does not multiply bfloat16; --precision bf16 saves memory here, "
        "not time",
        file=sys.stderr,
        flush=True,
    )


class Masters(nn.Module):
    """Float32 copies of a model's parameters, under the same names; the optimizer works on these.

    In fp32 they are the model's parameters themselves, and nothing is copied. In bf16 the model
    itself is cast; the optimizer reads its gradients and writes the new weights to it (``lower``).
    Only gradients of several parts are added up in float32, by `accumulate`. On a GPU the model's
    queries', keys' and values' weights are laid together (`join_projections`).

    Args:
        model: in float32.
        precision: "fp32" or "bf16".
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # What is not trained is saved as it was too, though the model computes with it rounded.
        frozen = [p for p in model.parameters() if not p.requires_grad]
        kept = [p.detach().clone() for p in frozen] if precision == "bf16" else frozen
        self.names = [name for name, _ in named]
        self.lower: dict[Tensor, Tensor] = {}
        if precision == "bf16":
            self.weights = nn.ParameterList([nn.Parameter(p.detach().clone()) for _, p in named])
            for (_, parameter), master in zip(named, self.weights, strict=True):
                # Where `save_pretrained` finds it, whoever calls that.
                parameter.master = master  # type: ignore[attr-defined]
            model.bfloat16()
            # A frozen buffer or parameter is cast too: forward sees one dtype.
            self.lower = dict(zip(self.weights, (p for _, p in named), strict=True))
        else:
            self.weights = nn.ParameterList([p for _, p in named])
        if any(p.device.type != "cpu" for p in model.parameters()):
            join_projections(model)
        self.by_parameter: dict[Tensor, Tensor] = dict(zip(frozen, kept, strict=True))
        self.by_parameter |= dict(zip((p for _, p in named), self.weights, strict=True))

    @property
    def by_weight(self) -> dict[Tensor, str]:
        """The name of each master."""
        return dict(zip(self.weights, self.names, strict=True))

    def shares(self, of_parameters: Mapping[nn.Parameter, float]) -> dict[Tensor, float]:
        """What is said of the model's parameters, said of their masters."""
        return {self.by_parameter[parameter]: share for parameter, share in of_parameters.items()}

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Lets an optimizer over the model's parameters work on their masters; returns it.

        Raises:
            BertfastError: it has a parameter that the model has not.
        """
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter not in self.by_parameter:
                    raise BertfastError(
                        f"the optimizer has a parameter of shape {tuple(parameter.shape)} that "
                        "the model has not"
                    )
            kept = [p for p in group["params"] if p in self.by_parameter]
            group["params"] = [self.by_parameter[p] for p in kept]
            for parameter in kept:
                # Some make their state before the first step.
                if parameter in optimizer.state:
                    state = optimizer.state.pop(parameter)
                    optimizer.state[self.by_parameter[parameter]] = state
        return optimizer

    @torch.no_grad()
    def accumulate(self) -> None:
        """Moves the model's gradients to the masters, in float32, on top of what is there."""
        for master, parameter in self.lower.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Writes the masters into the model's weights."""
        if self.lower:
            torch._foreach_copy_(list(self.lower.values()), list(self.lower))

    def of(self, model: nn.Module) -> dict[str, Tensor]:
        """The masters of a part of the model by that part's names, shared parameters under each of
        theirs.
        """
        return {
            name: self.by_parameter[parameter].detach()
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter in self.by_parameter
        }

    def named(self) -> dict[str, Tensor]:
        """The masters by the model's parameter names."""
        return dict(zip(self.names, (weight.detach() for weight in self.weights), strict=True))
