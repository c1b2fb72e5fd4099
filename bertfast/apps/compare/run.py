"""Runs a sheet: its models, then its cells, several at once; each result is kept, and what was
stopped goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bertfast.errors import BertfastError
from bertfast.files import make_folder, read_object, write_text
from bertfast.training.precision import find_device

from .cells import run_cell
from .page import write_pages
from .plan import RESULT, Cell, Plan, make_models, make_plan
from .sheet import read_sheet

MARKER = "compare.json"
POLL = 0.5  # seconds between two looks at what others do
THREADS = 2  # of a run on a CPU, where nobody says how many go at once


def compare(
    path: str | Path,
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    variables: Mapping[str, str] | None = None,
    worker: int | None = None,
    parent: int | None = None,
    again: Sequence[str] = (),
    report_only: bool = False,
) -> Path:
    """Runs a sheet; the command ``bertfast compare`` as a function.

    Args:
        path: of the sheet.
        out: folder of the result; None is the sheet's name with ``-compared``, here. One that this
            sheet made before is gone on with: finished cells stay, others are added.
        jobs: cells that run at once; None is one for each GPU, or for each two cores.
        variables: of the sheet, in place of its own.
        worker: the number of this process among those that run the cells of a sheet that another
            one has prepared; None prepares it.
        parent: the process that started this worker, which ends with it.
        again: arguments of the command line that start a worker; empty for no others.
        report_only: write the pages of what is there, and run nothing.

    Returns:
        The HTML page.

    Raises:
        BertfastError: the sheet, a file, a model or an option cannot be used.
        Interrupted: after a checkpoint; the same call goes on.
    """
    sheet = read_sheet(path, variables)
    folder = Path(out) if out is not None else Path(f"{Path(path).stem}-compared")
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise BertfastError(f"jobs is {jobs!r}; it must be a whole number of at least 1")
    if worker is not None:
        _end_with(parent)
        _work(make_plan(sheet, folder), worker, jobs or 1)
        return folder
    fresh = _claim(folder)
    try:
        plan = make_plan(sheet, folder)
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _mark(plan, again)
    if report_only:
        return write_pages(plan, again)
    with ExitStack() as stack:
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            stack.enter_context(lock)
        except Timeout:
            raise BertfastError(f"{folder}: another process compares there") from None
        make_models(plan)
        cells = plan.cells()
        jobs = min(jobs or _room(), max(1, sum(not cell.done for cell in cells)))
        workers = [_start(again, number, jobs, folder) for number in range(1, jobs) if again]
        try:
            _work(plan, 0, len(workers) + 1, cells)
            page = write_pages(plan, again)
        except BaseException:
            for process in workers:
                process.terminate()
            raise
        finally:
            for process in workers:
                process.wait()
    shutil.rmtree(folder / "work", ignore_errors=True)
    return page


def _claim(folder: Path) -> bool:
    """Makes the folder and returns True, or returns False where a sheet has made it before."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / MARKER).is_file():
            raise BertfastError(f"{folder}: exists and holds no comparison; choose another --out")
        return False
    make_folder(folder)
    return True


def _mark(plan: Plan, again: Sequence[str]) -> None:
    text = json.dumps({"sheet": plan.sheet.values, "command": list(again)}, indent=2, default=str)
    write_text(plan.out / MARKER, text + "\n")


def _room() -> int:
    """How many cells run at once where nobody says: one a GPU, or one for each two cores."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return (
        max(1, len(os.sched_getaffinity(0)) // THREADS)
        if hasattr(os, "sched_getaffinity")
        else max(1, (os.cpu_count() or 1) // THREADS)
    )


def _start(again: Sequence[str], number: int, jobs: int, folder: Path) -> subprocess.Popen[bytes]:
    """Another process that runs cells of the sheet."""
    threads = str(max(1, torch.get_num_threads() // jobs))
    with open(folder / f"worker-{number}.log", "wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bertfast",
                *again,
                "--jobs",
                str(jobs),
                "--worker",
                str(number),
                "--parent",
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )


def _end_with(parent: int | None) -> None:
    """Ends this process soon after the one that started it, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(plan: Plan, worker: int, jobs: int, cells: Sequence[Cell] | None = None) -> None:
    """Runs cells that nobody else has taken, until all are done."""
    cells = plan.cells() if cells is None else cells
    locks = plan.out / "work"
    make_folder(locks)
    threads = torch.get_num_threads()
    if worker == 0 and jobs > 1:
        torch.set_num_threads(max(1, threads // jobs))
    device = find_device(plan.sheet.settings.get("device"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", worker % torch.cuda.device_count())
    told = {cell.folder for cell in cells if cell.done}
    if worker == 0 and told:
        _say(f"{len(told)} of {len(cells)} are there already")
    try:
        while True:
            took = False
            for cell in cells:
                if cell.done:
                    continue
                lock = FileLock(locks / f"{cell.folder.name}.lock", timeout=0)
                try:
                    with lock:
                        if not cell.done:
                            run_cell(plan, cell, device, jobs > 1)
                            took = True
                except Timeout:
                    continue
                if worker == 0:
                    _tell(cells, told)
            if worker == 0:
                _tell(cells, told)
            if all(cell.done for cell in cells):
                return
            if not took:
                time.sleep(POLL)
    finally:
        torch.set_num_threads(threads)


def _tell(cells: Sequence[Cell], told: set[Path]) -> None:
    """Says which cells are done since it was last said."""
    for cell in cells:
        if cell.folder not in told and cell.done:
            told.add(cell.folder)
            facts = read_object(cell.folder / RESULT)
            done = sum(other.folder in told for other in cells)
            _say(f"{done} of {len(cells)}: {cell.name}: {_outcome(facts)}")


def _outcome(facts: Mapping[str, Any]) -> str:
    if "failed" in facts:
        return f"failed: {facts['failed']}"
    name, value = next(iter(facts["scores"].items()))
    return f"{facts['words'][name]} {value:.4f}, {facts['training']['seconds']:.0f} s"


def _say(text: str) -> None:
    print(f"bertfast compare: {text}", file=sys.stderr, flush=True)
