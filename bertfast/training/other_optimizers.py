"""Optimizers other than AdamW: LAMB, and Muon for the matrices within the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bertfast.errors import BertfastError

from .optimizer import AdamW

OPTIMIZERS = ("adamw", "lamb", "muon")


class Lamb(torch.optim.Optimizer):
    """LAMB: AdamW's update of each matrix, scaled to the matrix's own norm. You et al., "Large
    batch optimization for deep learning" (2020), algorithm 2.

    Args:
        groups: of float32 parameters; those whose ``weight_decay`` is 0 keep AdamW's scale.
        lr: the learning rate.
        betas, epsilon: of the moments.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": epsilon, "weight_decay": 0.0})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            gradients = [weight.grad for weight in weights]
            means = [self.state[weight]["exp_avg"] for weight in weights]
            squares = [self.state[weight]["exp_avg_sq"] for weight in weights]
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            ages = [int(self.state[weight]["step"]) for weight in weights]
            updates = torch._foreach_div(means, [1 - beta1**age for age in ages])
            roots = torch._foreach_div(squares, [1 - beta2**age for age in ages])
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_div_(updates, roots)
            if decay:
                torch._foreach_add_(updates, weights, alpha=decay)
                for weight, update in zip(weights, updates, strict=True):
                    norm, other = weight.norm(), update.norm()
                    update.mul_(torch.where((norm > 0) & (other > 0), norm / other, 1.0))
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss


class Muon(torch.optim.Optimizer):
    """PyTorch's Muon for some matrices, and AdamW for all else. Jordan et al., "Muon" (2024); Liu
    et al., "Muon is scalable for LLM training" (2025), whose scale lets both have one rate.

    Args:
        matrices: (rows, columns) float32 parameters.
        others: groups of the other parameters.
        lr: the learning rate.
        weight_decay: of the matrices.
        betas, epsilon: of AdamW's moments.

    Raises:
        BertfastError: this PyTorch has no Muon.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        *,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise BertfastError(
                f"optimizer muon needs PyTorch 2.9 or newer, and this is {torch.__version__}; "
                "install that, or take --optimizer adamw"
            )
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                list(matrices), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            AdamW(others, lr, betas=betas, epsilon=epsilon),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Gives the two the groups and the state that this has, which are saved and restored."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def other_optimizer(
    name: str,
    names: Sequence[str],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> Callable[[list[Tensor]], torch.optim.Optimizer] | None:
    """What makes the optimizer of that name over the model's weights; None for AdamW, which is the
    trainer's own. Biases and norms are not decayed.

    Args:
        name: one of `OPTIMIZERS`.
        names: of the weights, in their order. Muon takes the matrices whose name has ``layer`` or
            ``encoder`` in it: not the embeddings, and not the heads.
        lr, weight_decay, betas, epsilon: as of `build_optimizer`.
    """

    def of(weights: list[Tensor], inside: bool) -> list[Tensor]:
        return [
            weight
            for own, weight in zip(names, weights, strict=True)
            if (weight.dim() == 2 and is_hidden(own)) == inside
        ]

    def groups(weights: list[Tensor]) -> list[dict[str, Any]]:
        found = [
            {"params": [weight for weight in weights if weight.dim() > 1], "lr": lr}
            | {"weight_decay": weight_decay},
            {"params": [weight for weight in weights if weight.dim() <= 1], "lr": lr}
            | {"weight_decay": 0.0},
        ]
        return [group for group in found if group["params"]]

    if name == "lamb":
        return lambda weights: Lamb(groups(weights), lr, betas=betas, epsilon=epsilon)
    if name == "muon":
        return lambda weights: Muon(
            of(weights, True),
            groups(of(weights, False)),
            lr,
            weight_decay,
            betas=betas,
            epsilon=epsilon,
        )
    return None


def is_hidden(name: str) -> bool:
    """Whether a weight stands within a layer of the encoder, by its name."""
    parts = name.split(".")
    return any(
        part in ("layer", "layers", "albert_layers", "albert_layer_groups") for part in parts
    )
