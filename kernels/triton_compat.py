"""Triton where it is installed, and a stand-in elsewhere that lets the op files import.

Triton is missing on a machine without a GPU, or one of macOS or Windows.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    def _jit(function: Any = None, **_: Any) -> Any:
        """A kernel that is never launched, decorated with options or without."""
        return function or _jit

    triton = SimpleNamespace(jit=_jit, cdiv=lambda a, b: -(-a // b))
    tl = SimpleNamespace(  # type: ignore[no-redef, assignment, unused-ignore]
        constexpr=lambda value: value
    )

# Triton chooses between its compiler and its interpreter when a kernel is decorated, that is at
# import.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]
