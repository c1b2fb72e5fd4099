"""The cases: a file an op, each with our call, what people run in its place, and the floor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..case import Case, Setup
from . import (
    add_layer_norm,
    attention,
    bias_gelu,
    dropout,
    embed,
    gather_rows,
    linear,
    linear_cross_entropy,
    mask_tokens,
    padding,
    rotary,
)

Build = Callable[[Setup], Case]

# What `bertfast bench` measures of each op.
OPS: dict[str, tuple[Build, ...]] = {
    "attention": (attention.case, partial(attention.case, dropout_p=0.1)),
    "linear": (linear.case,),
    "linear_cross_entropy": (linear_cross_entropy.case,),
    "add_layer_norm": (add_layer_norm.case,),
    "bias_gelu": (bias_gelu.case,),
    "embed": (embed.case,),
    "dropout": (dropout.case,),
    "gather_rows": (gather_rows.case,),
    "rotary": (rotary.case,),
    "pack": (padding.pack,),
    "unpack": (padding.unpack,),
    "mask_tokens": (mask_tokens.case,),
}
