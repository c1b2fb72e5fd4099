"""The memory that a call needs on top of what was held before it, measured."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Calls once; returns the bytes held at the peak beyond those held before, results included.

    On CUDA by PyTorch's own count. On the CPU by the process's resident pages, whose high-water
    mark Linux sets back on request; None where it does not. Pages that the allocator keeps from
    earlier calls are given back first, or they would be used unseen. What a library keeps for good
    after its first call, such as a scratchpad, is not counted: call once before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    with suppress(OSError, AttributeError, TypeError):  # glibc's alone; Windows raises TypeError
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
        resident = status_bytes("VmRSS")
        result = call()
        peak = status_bytes("VmHWM")
    except (OSError, TypeError):
        return None
    del result
    return max(0, peak - resident)


def status_bytes(field: str) -> int:
    """A size that Linux tells of this process, such as ``VmRSS``, the bytes in memory.

    Raises:
        OSError: the system does not tell of processes.
        TypeError: the kernel does not say.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024  # type: ignore[index]
