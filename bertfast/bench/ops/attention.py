"""Attention, packed, against what pads, loops over the sequences, or takes boundaries too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Results, Setup, Sides, differentiated

BACKENDS = {
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
}


def case(setup: Setup, *, dropout_p: float = 0.0) -> Case:
    """Forward and backward; with dropout the sides are compared without it and timed with it."""
    lengths, device = setup.lengths, setup.device
    heads, head_dim = setup.config.num_attention_heads, setup.config.head_dim
    q, k, v = (setup.draw(lengths.tokens, heads, head_dim) for _ in range(3))
    dout = setup.draw(lengths.tokens, heads, head_dim).detach()
    boundaries = lengths.cu_seqlens(device)
    sides = Sides(setup)

    def ours(p: float) -> Call:
        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attention(q, k, v, boundaries, lengths.longest, dropout_p=p, seed=7)

        return differentiated(forward, (q, k, v), (dout,))

    sides.ours("attention", ours(dropout_p), ours(0.0), head_dim)
    _padded_peers(sides, q, k, v, dout, dropout_p)
    if lengths.fill < 1 and device == "cpu":
        _loop_peer(sides, q, k, v, dout, dropout_p)
    if device == "cuda":
        if dropout_p:
            sides.missing["varlen_attn, packed"] = "it has no dropout"
        else:
            varlen = differentiated(_varlen(boundaries, lengths.longest), (q, k, v), (dout,))
            sides.peer("varlen_attn, packed", varlen, varlen)
    return Case(
        "attention",
        lengths.name + (f", dropout {dropout_p}" if dropout_p else ""),
        setup.dtype_name,
        sides,
        floors.attention(lengths, heads, head_dim, setup.itemsize),
        products=True,
        facts={"fill": lengths.fill, "tokens": lengths.tokens, "longest": lengths.longest},
        missing=sides.missing,
    )


def _padded_peers(
    sides: Sides, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dropout_p: float
) -> None:
    """Eager, compiled, and `scaled_dot_product_attention` with its own choice of backend and with
    each; all on the padded batch.
    """
    lengths, device = sides.setup.lengths, sides.setup.device
    heads, head_dim = q.shape[1:]
    sequences, longest = len(lengths.values), lengths.longest
    rows = lengths.rows(device)

    def pad(x: Tensor) -> Tensor:
        flat = x.new_zeros(sequences * longest, heads, head_dim).index_copy(0, rows, x.detach())
        return flat.view(sequences, longest, heads, head_dim).transpose(1, 2).contiguous()

    def packed(call: Call) -> Call:
        return lambda: tuple(
            x.transpose(1, 2).reshape(sequences * longest, heads, head_dim)[rows] for x in call()
        )

    inputs = tuple(pad(x).requires_grad_() for x in (q, k, v))
    padded_dout = pad(dout)
    mask = None if lengths.fill == 1 else lengths.mask(device)[:, None, None, :]

    def run(forward: Callable) -> Call:
        return differentiated(forward, inputs, (padded_dout,))

    def eager(p: float) -> Callable:
        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = q @ k.transpose(2, 3) * head_dim**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            return F.dropout(scores.softmax(-1), p) @ v

        return forward

    def sdpa(p: float) -> Call:
        return run(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        )

    def forced(backend: SDPBackend, p: float) -> Call:
        def call() -> Results:
            with sdpa_kernel(backend):
                return sdpa(p)()

        return call

    sides.peer("eager, padded", run(eager(dropout_p)), packed(run(eager(0.0))))
    if sides.setup.compiled:
        compiled, plain = (run(torch.compile(eager(p), dynamic=False)) for p in (dropout_p, 0.0))
        sides.peer("eager, padded, compiled", compiled, packed(plain))
    sides.peer("sdpa, padded", sdpa(dropout_p), packed(sdpa(0.0)))
    for name, backend in BACKENDS[device].items():
        sides.peer(f"sdpa {name}, padded", forced(backend, dropout_p), packed(forced(backend, 0.0)))


def _loop_peer(
    sides: Sides, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dropout_p: float
) -> None:
    """A sequence at a time, without padding and with a call for each."""
    pieces = [
        [
            x.detach().transpose(0, 1)[None].contiguous()
            for x in torch.split(whole, list(sides.setup.lengths.values))
        ]
        for whole in (q, k, v, dout)
    ]
    for part in pieces[:3]:
        for piece in part:
            piece.requires_grad_()

    def loop(p: float) -> Call:
        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

        calls = [
            differentiated(forward, (one_q, one_k, one_v), (one_dout,))
            for one_q, one_k, one_v, one_dout in zip(*pieces, strict=True)
        ]
        return lambda: tuple(torch.cat(x, 2) for x in zip(*(call() for call in calls), strict=True))

    def packed() -> Results:
        return tuple(x[0].transpose(0, 1) for x in loop(0.0)())

    sides.peer("sdpa, a sequence at a time", loop(dropout_p), packed)


def _varlen(boundaries: Tensor, longest: int) -> Callable:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(q, k, v, boundaries, boundaries, longest, longest)
        assert isinstance(out, Tensor)
        return out

    return forward
