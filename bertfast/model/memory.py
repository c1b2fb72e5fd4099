"""Whether a model fits the machine, asked before its memory is taken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from torch import nn

from bertfast.errors import BertfastError

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int | None:
    """Bytes that this process can have: of the machine, its container and its limits; None where
    the system does not say.
    """
    limits = []
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # the latter of "max"
            limits.append(int(Path(path).read_text()))
    with suppress(ImportError):  # not on Windows
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])  # -1 where there is none
    return min((limit for limit in limits if limit > 0), default=None)


def check_memory(model: nn.Module, source: object, copies: int = 1) -> None:
    """Raises BertfastError if the parameters of ``model``, on the meta device, go beyond this
    machine's memory.

    Args:
        model: to be given memory.
        source: of its shape, for the message.
        copies: of the parameters: 1 to run it, 4 to train it (gradients and AdamW's two moments).
    """
    parameters = list(model.parameters())
    size = copies * sum(x.numel() * x.element_size() for x in parameters)
    limit = machine_memory()
    if limit is not None and size > limit:
        count = sum(x.numel() for x in parameters)
        with_training = " with gradients and the optimizer's states" if copies > 1 else ""
        raise BertfastError(
            f"{source}: describes {count:,} parameters, which take {size / 1e9:,.1f} GB"
            f"{with_training}; this machine has {limit / 1e9:,.1f} GB"
        )
