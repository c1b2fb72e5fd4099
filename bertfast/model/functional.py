"""What is done with a model's linear layers and norms.

Where the module is PyTorch's own, that is the fused op. Where someone has put another in its place,
it is the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.kernels import products
from bertfast.kernels.linear import can_fuse_gelu, linear_beside, together, widened_products
from bertfast.seeds import ROWS, fold_in

GELUS = {
    "gelu": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}  # and how `kernels.bias_gelu` calls them
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: lambda x, form=form: kernels.bias_gelu(x, approximate=form)  # type: ignore[misc]
        for name, form in GELUS.items()
    },
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is that of PyTorch with nothing hooked to it, so that its weights may be
    used without calling it.
    """
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """x where seed is None."""
    return x if seed is None or p == 0 else kernels.dropout(x, p, seed=seed)


def project(module: Any, x: Tensor) -> Tensor:
    """module(x)."""
    if is_plain(module, nn.Linear):
        return kernels.linear(x, module.weight, module.bias)
    with widened_products(x):  # of an adapter, say
        y: Tensor = module(x)
    return y


def project_beside(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """module(x), and x for the residual beside it; where it may be used, `linear_beside` says."""
    if is_plain(module, nn.Linear):
        return linear_beside(x, module.weight, module.bias)
    return project(module, x), x


def project_together(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The modules' outputs side by side, (..., outputs), by one product, and x as of
    `project_beside`.

    None where the modules are not PyTorch's own or do not lie together.
    """
    if not all(is_plain(module, nn.Linear) for module in modules):
        return None
    weight = together([module.weight for module in modules])
    if weight is None:
        return None
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return linear_beside(x, weight)
    bias = None if any(bias is None for bias in biases) else together(biases)
    return None if bias is None else linear_beside(x, weight, bias)


def convolved(module: Any, x: Tensor) -> Tensor:
    """module(x) of a one-dimensional convolution."""
    if is_plain(module, nn.Conv1d) and products.widens(x):
        bias = None if module.bias is None else module.bias.float()
        shape = (module.stride, module.padding, module.dilation, module.groups)
        return F.conv1d(x.float(), module.weight.float(), bias, *shape).to(x.dtype)
    return project(module, x)


def activated(module: Any, x: Tensor, activation: str, gated: bool = False) -> Tensor:
    """act(module(x)); gated, act of the first half of the columns times the second half."""
    form = GELUS.get(activation)
    if form is not None and is_plain(module, nn.Linear):
        if not gated and can_fuse_gelu(x, module.weight):
            return kernels.linear(x, module.weight, module.bias, gelu=form)
        return kernels.bias_gelu(
            kernels.linear(x, module.weight), module.bias, approximate=form, gated=gated
        )
    x = project(module, x)
    if form is not None:
        return kernels.bias_gelu(x, approximate=form, gated=gated)
    if not gated:
        return ACTIVATIONS[activation](x)
    content, gate = x.chunk(2, -1)
    return ACTIVATIONS[activation](content) * gate


def activated_beside(module: Any, x: Tensor, activation: str, gated: bool) -> tuple[Tensor, Tensor]:
    """`activated`, and x for the residual beside it, as of `project_beside`."""
    form = GELUS.get(activation)
    plain = form is not None and is_plain(module, nn.Linear)
    if not plain or (not gated and can_fuse_gelu(x, module.weight)):
        return activated(module, x, activation, gated), x
    assert form is not None
    inner, x = linear_beside(x, module.weight)
    return kernels.bias_gelu(inner, module.bias, approximate=form, gated=gated), x


def are_plain(projection: nn.Module | None, following: nn.Module | None) -> bool:
    """Whether nobody else sees the gradient that the norm ``following`` gives its residual, and so
    `linear_beside` may write into it.
    """
    return is_plain(projection, nn.Linear) and is_plain(following, nn.LayerNorm)


def _adds_bias_on_the_way(x: Tensor) -> bool:
    return x.is_cpu


def project_to_norm(module: Any, x: Tensor, following: nn.Module) -> tuple[Tensor, Tensor | None]:
    """module(x) without its bias, and the bias, for the `norm` by ``following`` to add: there its
    gradient takes no pass of its own. Where the norm is not fused, module(x) and None; on a CPU
    too, where the products add a bias on their way.
    """
    if are_plain(module, following) and not _adds_bias_on_the_way(x):
        return kernels.linear(x, module.weight), module.bias
    return project(module, x), None


def norm(
    module: Any,
    x: Tensor,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    prenorm: bool = False,
    x_bias: Tensor | None = None,
) -> Any:  # a Tensor, or with prenorm a pair of them
    """LayerNorm of dropout(x + x_bias) + residual, with ``prenorm`` that sum too; no dropout where
    seed is None. ``x_bias`` is as `project_to_norm` gives it.
    """
    if residual is not None:
        x = x.to(residual.dtype)  # under autocast the residual stays in float32
    p = 0.0 if seed is None else dropout_p
    if is_plain(module, nn.LayerNorm):
        return kernels.add_layer_norm(
            x,
            residual,
            module.weight,
            module.bias,
            x_bias=x_bias,
            eps=module.eps,
            dropout_p=p,
            seed=0 if seed is None else seed,
            prenorm=prenorm,
        )
    assert x_bias is None
    summed = dropout(x, p, seed)
    if residual is not None:
        summed = summed + residual
    return (module(summed), summed) if prenorm else module(summed)


def norm_of_rows(
    module: Any,
    x: Tensor,
    residual: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    rows: Sequence[Tensor] | None,
    x_bias: Tensor | None,
) -> Tensor:
    """`norm` of tokens that several indexes gave, ``rows``, one's after another's.

    The bits dropped of one index's rows do not depend on how many tokens, or how much slack,
    another has.
    """
    if seed is None or rows is None or len(rows) == 1:
        return norm(module, x, residual, dropout_p, seed, x_bias=x_bias)
    sizes = [len(index) for index in rows]
    parts = enumerate(zip(x.split(sizes), residual.split(sizes), strict=True))
    return torch.cat(
        [
            norm(module, *part, dropout_p, fold_in(seed, ROWS, number), x_bias=x_bias)
            for number, part in parts
        ]
    )
