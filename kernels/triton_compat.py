"""Triton where it is installed, and a stand-in that lets the op files import where it is not: on
a machine without a GPU, or one of macOS or Windows.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False
    triton = SimpleNamespace(jit=lambda fn: fn, cdiv=lambda a, b: -(-a // b))
    tl = SimpleNamespace(constexpr=int)  # type: ignore[no-redef, assignment, unused-ignore]

# Triton chooses between its compiler and its interpreter when a kernel is decorated, that is at
# import.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]
