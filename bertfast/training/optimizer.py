"""AdamW with BERT's parameter groups, its learning-rate schedule, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-6  # Devlin et al., "BERT", appendix A.2


def build_optimizer(model: nn.Module, lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients, without decay on biases and norms.

    Args:
        model: its parameters of one dimension (biases, LayerNorm weights) are not decayed.
        lr: the peak rate.
        weight_decay: of the others, decoupled (Loshchilov and Hutter, 2019).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPSILON, fused=True)


def linear_schedule(step: int, warmup: int, total: int) -> float:
    """The share of the peak rate for the update with index ``step``: up over ``warmup`` updates, then down to 0 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(total - warmup, 1))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients down to a joint norm of ``max_norm`` where they exceed it; returns the norm they had."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
