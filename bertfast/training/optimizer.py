"""AdamW with BERT's parameter groups, its learning-rate schedule, and gradient clipping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import kernels

from .precision import Masters

BETAS, EPSILON = (0.9, 0.999), 1e-6  # Devlin et al., "BERT", appendix A.2


class AdamW(torch.optim.Optimizer):
    """AdamW whose clipping, update and bfloat16 copy are one pass over the weights
    (`kernels.adamw`).

    Args:
        groups: of float32 parameters, as torch's optimizers take them; each with its
            ``weight_decay``.
        lr: the learning rate.
        betas, epsilon: of the moments.
        lower: for float32 masters, each one's parameter in bfloat16. Where the master has no
            gradient of its own, that parameter's is read. The new weights are written to it too.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        lower: dict[Tensor, Tensor] | None = None,
        *,
        betas: tuple[float, float] = BETAS,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": epsilon, "weight_decay": 0.0})
        self.lower = lower or {}
        self.gradient_scale: float | Tensor = 1.0

    def gradient(self, weight: Tensor) -> Tensor | None:
        """What the next step reads for a weight."""
        return (
            weight.grad
            if weight.grad is not None or weight not in self.lower
            else self.lower[weight].grad
        )

    def gradients(self) -> list[Tensor]:
        """What the next step reads, in the order of the groups' parameters."""
        found = [self.gradient(weight) for group in self.param_groups for weight in group["params"]]
        return [gradient for gradient in found if gradient is not None]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        lr: Tensor | None = None,
        age: Tensor | None = None,
    ) -> float | None:
        """Updates every parameter that has a gradient, which is multiplied by ``gradient_scale``
        first, for this step alone.

        Args:
            closure: makes the gradients anew and returns the loss.
            lr: in place of the groups' rates, for a CUDA graph: on the weights' device, read at
                each replay.
            age: likewise, how many updates this makes for each parameter, in place of their own
                counts. A replay does not change those: `count` does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # One call for all of the same age, dtypes and settings, the weight decay apart: nearly
        # always every weight.
        batches: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for group in self.param_groups:
            settings = (group["lr"] if lr is None else lr, *group["betas"], group["eps"])
            for weight in group["params"]:
                gradient = self.gradient(weight)
                if gradient is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(weight),
                        torch.zeros_like(weight),
                    )
                state["step"] += 1
                row = (weight, gradient, state["exp_avg"], state["exp_avg_sq"])
                copy = (self.lower[weight],) if weight in self.lower else ()
                step = int(state["step"]) if age is None else age
                key = (step, gradient.dtype, len(copy), *settings)
                batches[key].append((group["weight_decay"], *row, *copy))
        for (step, _, _, rate, beta1, beta2, eps), rows in batches.items():
            decays, *lists = zip(*rows, strict=True)
            kernels.adamw(
                *lists,
                lr=rate,
                step=step,
                betas=(beta1, beta2),
                eps=eps,
                weight_decay=decays,
                gradient_scale=self.gradient_scale,
            )
        self.gradient_scale = 1.0
        return loss

    def count(self) -> None:
        """Counts one more update of every parameter that had any: what a replayed `step` does not
        do.
        """
        torch._foreach_add_([state["step"] for state in self.state.values()], 1)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients, those of the lower-precision parameters too."""
        super().zero_grad(set_to_none)
        for parameter in self.lower.values():
            parameter.grad = None


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.01,
    shares: Mapping[Tensor, float] | None = None,
    betas: tuple[float, float] = BETAS,
    epsilon: float = EPSILON,
) -> AdamW:
    """AdamW over the parameters that require gradients, without decay on biases and norms.

    Args:
        model: its parameters of one dimension (biases, LayerNorm weights) are not decayed; or the
            `Masters` of a model.
        lr: the peak rate.
        weight_decay: of the others, decoupled (Loshchilov and Hutter, 2019).
        shares: of the rate, for some of the parameters; 1 for the others.
        betas, epsilon: of the moments.
    """
    shares = shares or {}
    groups: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[shares.get(parameter, 1.0), parameter.dim() > 1].append(parameter)
    # The first group's rate is the one that is logged: the highest.
    return AdamW(
        [
            {
                "params": groups[share, decays],
                "lr": lr * share,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for share, decays in sorted(groups, reverse=True)
        ],
        lr,
        model.lower if isinstance(model, Masters) else None,
        betas=betas,
        epsilon=epsilon,
    )


def linear_schedule(step: int, warmup: int, total: int) -> float:
    """The share of the peak rate for the update with index ``step``: up over ``warmup`` updates,
    then down to 0 at ``total``.
    """
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(total - warmup, 1))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_at_next_step(optimizer: AdamW, max_norm: float) -> Tensor:
    """Lets the next step scale the gradients down to a joint norm of ``max_norm`` where they exceed
    it; returns the norm they have.
    """
    norm = kernels.gradient_norm(optimizer.gradients())
    optimizer.gradient_scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return norm
