"""``python -m benchmarks.gpu.worker``: one process of a part. It runs its share of a stage's items
one after another, and ends where one of them spoils it; `parts` starts the next.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import sys
import time
import traceback

import torch

from bertfast.machine import commit, describe_machine, versions
from bertfast.training.memory import keep_freed_memory

from ..results import say, sources, today
from ..settings import CURRENT
from .items import AGAIN, PARTS, Item, Missing, Part
from .journal import SCHEMA, Journal

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
LEAST = 5.0  # seconds that an item needs to be begun


def main() -> int:
    """Returns 0 where no item of the share is left, and `AGAIN` where one is."""
    parser = argparse.ArgumentParser()
    for name in ("part", "stage", "index", "workers"):
        parser.add_argument(name, type=int)
    parser.add_argument("deadline", type=float)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    if sys.platform == "linux":  # none of them outlives the command
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    part = PARTS[options.part - 1]
    journal = Journal(part.path(CURRENT.results))
    _say_machine(journal, part)
    try:
        items = share(part, options.stage, options.index, options.workers, options.only)
    except Exception as error:
        traceback.print_exc()
        journal.write("part", ended=f"{type(error).__name__}: {error}"[:500])
        return 1
    keep_freed_memory()
    return run(items, journal, options.deadline)


def share(part: Part, stage: int, index: int, workers: int, only: str) -> list[Item]:
    """Every so many-th item of the stage, from that one on; those that hold the words of
    ``only``.
    """
    module = importlib.import_module(f"benchmarks.gpu.{part.name}")
    items = [item for item in module.items(CURRENT) if item.stage == stage]
    words = only.replace(" and ", " ").split()
    return [item for item in items if all(word in item.name for word in words)][index::workers]


def run(items: list[Item], journal: Journal, deadline: float) -> int:
    """Runs the items that no process has begun yet; as of `main`."""
    ran, before = 0, journal.begun()
    for item in items:
        if item.name in before:
            continue
        left = deadline - time.time()
        if left < LEAST:
            journal.write("end", item=item.name, state="late", why="no time was left", seconds=0.0)
            continue
        if item.fresh and ran:
            return AGAIN
        ran += 1
        say(item.name)
        if not _run_one(item, journal, min(item.seconds, left)) or item.fresh:
            return AGAIN
    return 0


def _run_one(item: Item, journal: Journal, seconds: float) -> bool:
    """Whether the process can run another one."""
    journal.write("begin", item=item.name, process=os.getpid())
    started, state, why = time.monotonic(), "done", ""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        torch.manual_seed(0)
        item.run(journal)
    except (Missing, ModuleNotFoundError) as reason:
        state, why = "missing", str(reason)
    except Exception as error:
        traceback.print_exc()
        state, why = "failed", " ".join(f"{type(error).__name__}: {error}".split())[:500]
    finally:
        faulthandler.cancel_dump_traceback_later()
    taken = time.monotonic() - started
    journal.write("end", item=item.name, state=state, why=why, seconds=taken)
    return _usable()


def _usable() -> bool:
    """Whether the GPU still answers this process, and its memory is given back."""
    gc.collect()
    if CURRENT.device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.rand(1, device="cuda").item()
    except Exception:  # after a wrong address every call fails
        return False
    return True


def _say_machine(journal: Journal, part: Part) -> None:
    journal.write(
        "machine",
        schema=SCHEMA,
        part=part.number,
        machine=describe_machine(CURRENT.device),
        versions=versions(),
        commit=commit(),
        sources=sources(),
        date=today(),
        quick=CURRENT.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
