"""What a run takes: seconds, memory, and energy where the machine tells it."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bertfast.memory import CLEAR_REFS, status_bytes

RAPL = Path("/sys/class/powercap")


class Meter:
    """Measures what is done inside a ``with`` statement.

    Attributes:
        seconds: that it took.
        peak_bytes: on CUDA the most that tensors held, else the most that the process had in
            memory; None where the system does not say.
        joules: of the GPU, or of the processors, whatever else runs on them; None where the machine
            does not say.

    Args:
        device: that the work is done on.
        shared: other runs go on beside it, so that no energy is its own.
    """

    seconds: float
    peak_bytes: int | None
    joules: float | None

    def __init__(self, device: torch.device, shared: bool = False) -> None:
        self.device = device
        self.read = _gpu_joules if device.type == "cuda" else (_nothing if shared else _cpu_joules)

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
        self.before, self.started = self.read(self.device), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started
        after = self.read(self.device)
        self.joules = _spent(self.before, after)
        self.peak_bytes = None
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            with suppress(OSError, TypeError):
                self.peak_bytes = status_bytes("VmHWM")

    def values(self) -> dict[str, Any]:
        """The three by name."""
        return {"seconds": self.seconds, "peak_bytes": self.peak_bytes, "joules": self.joules}


# A counter's joules, and those at which it starts anew; None for never.
Counters = list[tuple[float, float | None]]


def _spent(before: Counters, after: Counters) -> float | None:
    """Joules between two readings; None where there is no counter."""
    if not before or len(before) != len(after):
        return None
    total = 0.0
    for (start, _), (end, limit) in zip(before, after, strict=True):
        total += end - start if end >= start else end - start + (limit or 0.0)
    return total


def _nothing(_: torch.device) -> Counters:
    return []


def _cpu_joules(_: torch.device) -> Counters:
    """Of each processor package, from Linux's RAPL counters, which may be root's alone."""
    found: Counters = []
    try:
        for package in sorted(RAPL.glob("intel-rapl:[0-9]*")):
            if package.name.count(":") == 1:
                used, limit = (
                    int((package / name).read_text()) / 1e6
                    for name in ("energy_uj", "max_energy_range_uj")
                )
                found.append((used, limit))
    except (OSError, ValueError):
        return []
    return found


def _gpu_joules(device: torch.device) -> Counters:
    """Of one GPU, from the driver's library that nvidia-smi asks too."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    except (OSError, AttributeError):
        return []
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    calls = (
        lambda: library.nvmlInit_v2(),
        lambda: library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)),
        lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)),
    )
    if any(call() != 0 for call in calls):
        return []
    return [(millijoules.value / 1e3, None)]
