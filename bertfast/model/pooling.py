"""From the tokens of each sequence to one vector, under the names that sentence-transformers gives
the ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import kernels

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(x: Tensor, cu_seqlens: Tensor, modes: Sequence[str]) -> Tensor:
    """(tokens, hidden) of a packed batch to (sequences, len(modes) * hidden), one of `MODES` beside
    the other; zeros for an empty sequence.

    The mean over the root of the length is that of Arora et al., "A Simple but Tough-to-Beat
    Baseline", 2017. In the weighted one a token weighs as much as its place, counted from 1
    (Muennighoff, "SGPT", 2022, equation 4). Sums are float32, and no value is read on the way.
    """
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    lengths = (ends - starts)[:, None].clamp(min=1)
    pooled = []
    for mode in modes:
        if mode in ("cls", "lasttoken"):
            rows = starts if mode == "cls" else ends - 1
            pooled.append(kernels.gather_rows(x, torch.where(ends > starts, rows, -1)))
        elif mode == "max":
            pooled.append(_of_bags(x, cu_seqlens, "max").to(x.dtype))
        elif mode == "weightedmean":
            token = torch.arange(len(x), device=x.device)
            weights = (
                token
                + 1
                - starts[torch.searchsorted(ends, token, right=True).clamp(max=len(ends) - 1)]
            )
            total = _of_bags(x.float() * weights[:, None], cu_seqlens, "sum")
            pooled.append((total / (lengths * (lengths + 1) / 2)).to(x.dtype))
        else:
            total = _of_bags(x, cu_seqlens, "sum")
            pooled.append((total / (lengths if mode == "mean" else lengths.sqrt())).to(x.dtype))
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1)


def mean_pooled(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(tokens, hidden) to (sequences, hidden), the mean of each sequence's tokens; zeros for an
    empty one.
    """
    return pool(x, cu_seqlens, ("mean",))


def _of_bags(x: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """The sum or the largest of each sequence's rows, as of the bags of a table.

    Every row is in one bag. Slack is in a last one, which is left out.

    On a CPU an order of magnitude faster than `torch.segment_reduce`, and without the atomic sums
    that `index_add` has on a GPU.
    """
    rows = torch.arange(len(x), device=x.device)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return F.embedding_bag(rows, x, cu_seqlens.long(), mode=mode)[:-1]
