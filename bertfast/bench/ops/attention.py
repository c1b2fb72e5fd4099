"""Attention, packed, against what pads, loops over the sequences, or takes boundaries too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Differentiated, Results, Setup, Sides, differentiated

BACKENDS = {
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
}
# Its backward is for a process of its own: https://github.com/pytorch/pytorch/issues/186142.
APART = "cudnn"


def case(setup: Setup, *, dropout_p: float = 0.0, cudnn_backward: bool = False) -> Case:
    """Forward and backward; with dropout the sides are compared without it and timed with it.

    Args:
        cudnn_backward: on a GPU, against cuDNN's forward and backward alone, which is for a process
            of its own. Otherwise cuDNN's forward alone is among the peers.
    """
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
    _padded_peers(sides, q, k, v, dout, dropout_p, cudnn_backward)
    if lengths.fill < 1 and device == "cpu":
        _loop_peer(sides, q, k, v, dout, dropout_p)
    if device == "cuda" and not cudnn_backward:
        _packed_peers(sides, q, k, v, dout, dropout_p)
    return Case(
        "attention",
        lengths.name
        + (f", dropout {dropout_p}" if dropout_p else "")
        + ", cuDNN's backward" * cudnn_backward,
        setup.dtype_name,
        sides,
        floors.attention(lengths, heads, head_dim, setup.itemsize),
        products=True,
        facts={"fill": lengths.fill, "tokens": lengths.tokens, "longest": lengths.longest},
        missing=sides.missing,
    )


def _padded_peers(
    sides: Sides,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    dropout_p: float,
    cudnn_backward: bool,
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
            x.detach().transpose(1, 2).reshape(sequences * longest, heads, head_dim)[rows]
            for x in call()
        )

    inputs = tuple(pad(x).requires_grad_() for x in (q, k, v))
    padded_dout = pad(dout)
    mask = None if lengths.fill == 1 else lengths.mask(device)[:, None, None, :]

    def run(forward: Callable) -> Differentiated:
        return differentiated(forward, inputs, (padded_dout,))

    def eager(p: float) -> Callable:
        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = q @ k.transpose(2, 3) * head_dim**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            return F.dropout(scores.softmax(-1), p) @ v

        return forward

    def sdpa(p: float) -> Differentiated:
        return run(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        )

    def forced(backend: SDPBackend, p: float) -> Differentiated:
        return replace(sdpa(p), context=partial(sdpa_kernel, backend))

    backends = dict(BACKENDS[device])
    if cudnn_backward:
        cudnn = partial(forced, BACKENDS["cuda"][APART])
        sides.peer("sdpa cudnn, padded", cudnn(dropout_p), packed(cudnn(0.0)))
        return
    sides.peer("eager, padded", run(eager(dropout_p)), packed(run(eager(0.0))))
    if sides.setup.compiled:
        compiled, plain = (run(torch.compile(eager(p), dynamic=False)) for p in (dropout_p, 0.0))
        sides.peer("eager, padded, compiled", compiled, packed(plain))
    if APART in backends:
        # What `scaled_dot_product_attention` chooses by itself may be this one.
        backend = backends.pop(APART)
        rest = partial(sdpa_kernel, list(backends.values()))
        chosen, plain = (replace(sdpa(p), context=rest) for p in (dropout_p, 0.0))
        sides.peer("sdpa but cudnn, padded", chosen, packed(plain))
        forward, plain_forward = (forced(backend, p).forward for p in (dropout_p, 0.0))
        sides.peer("sdpa cudnn, padded", forward, packed(plain_forward), kind="forward")
    else:
        sides.peer("sdpa, padded", sdpa(dropout_p), packed(sdpa(0.0)))
    for name, backend in backends.items():
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


def _packed_peers(
    sides: Sides, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dropout_p: float
) -> None:
    """What takes boundaries, as we do: PyTorch's own, and FlashAttention-3 where it is
    installed.
    """
    lengths = sides.setup.lengths
    boundaries = lengths.cu_seqlens(sides.setup.device)

    def run(forward: Callable, p: float) -> Call:
        return differentiated(partial(forward, boundaries, lengths.longest, p), (q, k, v), (dout,))

    for name, (forward, drops, absent) in PACKED.items():
        why = absent() or ("it has no dropout" if dropout_p and not drops else "")
        if why:
            sides.missing[name] = why
        else:
            sides.peer(name, run(forward, dropout_p), run(forward, 0.0))


def _varlen(bounds: Tensor, longest: int, p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, bounds, bounds, longest, longest)
    assert isinstance(out, Tensor)
    return out


def _flash_2(bounds: Tensor, longest: int, p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = by_name(
        torch.ops.aten._flash_attention_forward.default,
        query=q,
        key=k,
        value=v,
        cum_seq_q=bounds,
        cum_seq_k=bounds,
        max_q=longest,
        max_k=longest,
        dropout_p=p,
        is_causal=False,
        return_debug_mask=False,
    )[0]
    return out


def _efficient(bounds: Tensor, longest: int, p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = by_name(
        torch.ops.aten._efficient_attention_forward.default,
        query=q[None],
        key=k[None],
        value=v[None],
        bias=None,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=p,
        custom_mask_type=0,
        compute_log_sumexp=True,
    )[0]
    return out[0]


def _flash_3(bounds: Tensor, longest: int, p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
    )
    return out[0] if isinstance(out, tuple) else out


def by_name(op: Any, **arguments: Any) -> Any:
    """Calls an op of PyTorch's, of those that are not public and change: by names alone.

    Raises:
        TypeError: this PyTorch's has other ones.
    """
    known = {argument.name: argument for argument in op._schema.arguments}
    other = [name for name in arguments if name not in known]
    needed = [name for name, x in known.items() if not x.has_default_value()]
    absent = [name for name in needed if name not in arguments]
    if other or absent:
        raise TypeError(
            f"PyTorch {torch.__version__} has another {op}: "
            f"without {', '.join(other) or 'none'}, with {', '.join(absent) or 'none'} besides"
        )
    return op(**arguments)


def _present() -> str:
    return ""


def _no_flash_3() -> str:
    known = importlib.util.find_spec("flash_attn_interface") is not None
    return "" if known else "flash_attn_interface is not installed"


# By name: the call, whether it has dropout, and why it cannot run here.
PACKED: dict[str, tuple[Callable, bool, Callable[[], str]]] = {
    "varlen_attn, packed": (_varlen, False, _present),
    "FlashAttention-2 varlen, packed": (_flash_2, True, _present),
    "efficient varlen, packed": (_efficient, True, _present),
    "FlashAttention-3 varlen, packed": (_flash_3, False, _no_flash_3),
}
