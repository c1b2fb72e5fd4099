"""The matrix product of tiles, for Triton's compiler and for its interpreter."""

from __future__ import annotations

from .triton_compat import HAS_TRITON, INTERPRETED, tl, triton

# The interpreter multiplies bfloat16 tiles as the integers they are stored in; widened, the
# products are the same exact ones.
WIDEN = tl.constexpr(INTERPRETED) if HAS_TRITON else False


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """a @ b + total, accumulated in float32."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(a, b, total, input_precision=PRECISION)
