"""What the system says of the processor."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def fields() -> dict[str, str]:
    """Linux's fields of the first core, ``flags`` and ``vendor_id`` among them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def name() -> str:
    """The processor's name."""
    return fields().get("model name") or platform.processor() or platform.machine()
