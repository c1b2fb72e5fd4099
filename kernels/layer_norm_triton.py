"""LayerNorm and RMSNorm of a tile of rows inside Triton kernels."""

from __future__ import annotations

from .triton_compat import tl, triton


@triton.jit
def moments(s, real, columns, eps, RMS: tl.constexpr):
    """Mean (0 for RMSNorm) and reciprocal deviation of each row of ``s``, whose elements are zero
    where not ``real``.
    """
    if RMS:
        mean = tl.sum(s, 1) * 0.0
    else:
        mean = tl.sum(s, 1) / columns
    centred = tl.where(real, s - mean[:, None], 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, 1) / columns + eps)


@triton.jit
def norm_backward(normal, dy, weight, rstd, columns, RMS: tl.constexpr):
    """The gradient of the norm's input; ``normal`` and ``dy`` are zero where there is no
    element.
    """
    weighted = dy * weight
    along = tl.sum(weighted * normal, 1) / columns
    ds = weighted - normal * along[:, None]
    if not RMS:
        ds -= (tl.sum(weighted, 1) / columns)[:, None]
    return ds * rstd[:, None]


def padded_width(hidden: int) -> int:
    """Columns of a tile that holds whole rows."""
    return max(triton.next_power_of_2(hidden), 16)
