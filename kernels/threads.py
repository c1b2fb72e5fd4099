"""How many of OpenMP's threads an op takes: PyTorch's number, or one in a thread of Python that
works beside another.
"""

from __future__ import annotations

import threading

import torch

_own = threading.local()


def run_on_one_thread() -> None:
    """Has the ops that this thread of Python calls from now on start no thread of OpenMP's.

    The number that PyTorch hands to threads that come later becomes 1; the caller sets it again.
    """
    torch.set_num_threads(1)
    _own.alone = True


def num_threads() -> int:
    """What `run_on_one_thread` said, or else PyTorch's number, which is one of the whole
    process.
    """
    return 1 if getattr(_own, "alone", False) else torch.get_num_threads()
