"""The ways that people do the ops' work today, forward and backward.

Each function returns sides whose `probe` gives the op's output and gradients in our packed form, so that every one can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .lengths import Lengths
from .timing import Side

Gradients = tuple[Tensor, ...]


def reason(error: BaseException) -> str:
    """The first line of an error, for the record of what could not run."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def attention_sides(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lengths: Lengths, dropout_p: float
) -> tuple[list[Side], dict[str, str]]:
    """Attention as peers run it: padded with a mask, in a loop over the sequences, and by torch's variable-length op.

    Args:
        q, k, v, dout: (tokens, heads, head_dim), packed.
        lengths: of the sequences.
        dropout_p: of the probabilities; above 0 outputs are random, and nothing is compared.

    Returns:
        The sides, and those that cannot run here with the reason.
    """
    device = q.device.type
    heads, head_dim = q.shape[1:]
    sequences, longest = len(lengths.values), lengths.longest
    rows = lengths.rows(device)

    def pad(x: Tensor) -> Tensor:
        flat = x.new_zeros(sequences * longest, heads, head_dim).index_copy(0, rows, x.detach())
        return flat.view(sequences, longest, heads, head_dim).transpose(1, 2).contiguous()

    def packed(results: Gradients) -> Gradients:
        return tuple(x.transpose(1, 2).reshape(sequences * longest, heads, head_dim)[rows] for x in results)

    inputs = tuple(pad(x).requires_grad_() for x in (q, k, v))
    padded_dout = pad(dout)
    full = lengths.fill == 1.0
    mask = None if full else lengths.mask(device)[:, None, None, :]
    scale = head_dim**-0.5

    def differentiate(out: Tensor, wrt: tuple[Tensor, ...] = inputs, of: Tensor = padded_dout) -> Gradients:
        return out.detach(), *torch.autograd.grad(out, wrt, of)

    def eager() -> Gradients:
        scores = inputs[0] @ inputs[1].transpose(2, 3) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        probabilities = F.dropout(scores.softmax(-1), dropout_p, training=dropout_p > 0)
        return differentiate(probabilities @ inputs[2])

    def sdpa() -> Gradients:
        return differentiate(F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout_p))

    pieces = [
        [x.detach().transpose(0, 1)[None].contiguous() for x in torch.split(whole, list(lengths.values))]
        for whole in (q, k, v, dout)
    ]
    for part in pieces[:3]:
        for piece in part:
            piece.requires_grad_()

    def loop() -> Gradients:
        results: list[Gradients] = []
        for one_q, one_k, one_v, one_dout in zip(*pieces, strict=True):
            out = F.scaled_dot_product_attention(one_q, one_k, one_v, dropout_p=dropout_p)
            results.append(differentiate(out, (one_q, one_k, one_v), one_dout))
        return tuple(torch.cat(x, 2) for x in zip(*results, strict=True))

    def looped_packed(results: Gradients) -> Gradients:
        return tuple(x[0].transpose(0, 1) for x in results)

    calls: list[tuple[str, Callable[[], Gradients], Callable[[Gradients], Gradients]]] = [
        ("eager, padded", eager, packed),
        ("sdpa, padded", sdpa, packed),
    ]
    if not full and device == "cpu":
        calls.append(("sdpa, a sequence at a time", loop, looped_packed))
    if device == "cuda":
        kinds = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        for name, backend in (kinds | {"efficient": SDPBackend.EFFICIENT_ATTENTION}).items():

            def forced(backend: SDPBackend = backend) -> Gradients:
                with sdpa_kernel(backend):
                    return sdpa()

            calls.append((f"sdpa {name}, padded", forced, packed))
        if dropout_p == 0:
            calls.append(("varlen_attn, packed", _varlen(q, k, v, dout, lengths), lambda results: results))

    sides, missing = [], {}
    for name, call, view in calls:
        try:
            call()
        except (RuntimeError, ImportError, TypeError) as error:
            missing[name] = reason(error)
            continue

        def probe(call: Callable = call, view: Callable = view) -> Gradients:
            return view(call())

        sides.append(Side(name, "peer", call, probe if dropout_p == 0 else None))
    return sides, missing


def _varlen(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lengths: Lengths) -> Callable[[], Gradients]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in (q, k, v))
    boundaries, longest = lengths.cu_seqlens(q.device.type), lengths.longest

    def call() -> Gradients:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(*inputs, boundaries, boundaries, longest, longest)
        assert isinstance(out, Tensor)
        return out.detach(), *torch.autograd.grad(out, inputs, dout)

    return call


def dropout_sides(x: Tensor, dout: Tensor, p: float) -> list[Side]:
    """torch's dropout, whose bits are its own; and the floor, a copy of the input and one of the gradient."""

    def eager() -> Gradients:
        out = F.dropout(x, p, training=True)
        return out.detach(), *torch.autograd.grad(out, x, dout)

    target = torch.empty_like(x)

    def floor() -> None:
        target.copy_(x.detach())
        target.copy_(dout)

    return [Side("F.dropout", "peer", eager), Side("floor: two copies", "floor", floor)]


def gather_sides(x: Tensor, index: Tensor, dout: Tensor) -> list[Side]:
    """index_select and indexing; and the floor: the rows copied each way, and zeros elsewhere."""

    def select() -> Gradients:
        out = x.index_select(0, index)
        return out.detach(), *torch.autograd.grad(out, x, dout)

    def indexed() -> Gradients:
        out = x[index]
        return out.detach(), *torch.autograd.grad(out, x, dout)

    rows, whole = torch.empty_like(dout), torch.empty_like(x)

    def floor() -> None:
        rows.copy_(x.detach()[: rows.shape[0]])
        whole[rows.shape[0] :].zero_()
        whole[: rows.shape[0]].copy_(dout)

    return [
        Side("index_select", "peer", select, select),
        Side("x[index]", "peer", indexed, indexed),
        Side("floor: copies and zeros", "floor", floor),
    ]


def cross_entropy_sides(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> list[Side]:
    """linear and cross_entropy; and the floor: the three matrix products that the loss and its gradients need."""
    inputs = (hidden, weight, bias)

    def eager() -> Gradients:
        loss = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    table, states = weight.detach(), hidden.detach()
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    dhidden, dweight = torch.empty_like(states), torch.empty_like(table)

    def floor() -> None:
        torch.mm(states, table.T, out=logits)
        torch.mm(logits, table, out=dhidden)
        torch.mm(logits.T, states, out=dweight)

    return [
        Side("F.linear + F.cross_entropy", "peer", eager, eager),
        Side("floor: the three matrix products", "floor", floor),
    ]
