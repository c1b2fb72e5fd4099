"""What ran a measurement: the processor or GPU, and the versions that figures depend on."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

import torch

from bertfast import __version__, processor

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "numpy", "pytest-benchmark")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(device: str) -> dict[str, Any]:
    """What ran the cases, without the host's name or paths."""
    flags = processor.fields().get("flags", "").split()
    machine: dict[str, Any] = {
        "device": device,
        "processor": processor.name(),
        "threads": torch.get_num_threads(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in flags],
        "system": platform.system(),
    }
    name = f"{processor.name()} {machine['threads']} threads"
    if device == "cuda":
        name = machine["gpu"] = torch.cuda.get_device_name()
        machine["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    machine["name"] = name
    machine["slug"] = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return machine


def versions() -> dict[str, str]:
    """Of bertfast, Python and the packages that figures depend on."""
    found = {"bertfast": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
