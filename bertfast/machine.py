"""What ran a measurement: the processor or GPU, and the versions that figures depend on."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bertfast import __version__, processor

CHECKOUT = Path(__file__).parents[1]
UNKNOWN = "unknown"
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


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of bertfast, Python and packages; those that times depend on unless others are named."""
    found = {"bertfast": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The checkout's, with "+changes" where files that are tracked differ from it; `UNKNOWN`
    outside of a checkout.
    """
    if not (CHECKOUT / ".git").exists():  # a package in some other project's environment
        return UNKNOWN
    git = ["git", "-C", str(CHECKOUT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!docs"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
