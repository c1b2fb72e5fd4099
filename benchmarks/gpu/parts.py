"""Runs the parts, one after another, whatever becomes of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..importable import REPOSITORY
from ..results import say
from ..settings import Settings
from .items import AGAIN, TUNING, Part
from .journal import Journal

SECONDS = 440.0  # of a part, by which no item is begun any more; with what is begun then, 8 minutes
MARGIN = 25.0
POLL = 0.1
QUICK_WORKERS = 2


def run_parts(parts: Sequence[Part], settings: Settings, only: str = "") -> bool:
    """Runs these parts; whether all of them ran whole, with every check passed. An exception, as of
    a signal, leaves no process.
    """
    settings.results.mkdir(parents=True, exist_ok=True)
    clean = True
    for part in parts:
        say(f"part {part.number}, {part.summary}: at most {SECONDS + MARGIN:.0f} s")
        clean = run_part(part, settings, only) and clean
    return clean


def run_part(part: Part, settings: Settings, only: str = "") -> bool:
    """Runs a part into a journal of its own, which no earlier run's lines are in."""
    journal = Journal(part.path(settings.results))
    journal.path.unlink(missing_ok=True)
    tuning = settings.results / TUNING
    if part.name == "tune":
        tuning.unlink(missing_ok=True)
    environment = (
        os.environ
        | settings.environment()
        | {
            # No part but the one that tunes sees what was tuned.
            "BERTFAST_CACHE": str(tuning if part.name == "tune" else tuning.with_suffix(".none")),
        }
    )
    if settings.device == "cpu":
        environment |= {"TRITON_INTERPRET": "1"}
    started = time.time()
    for number, stage in enumerate(part.stages):
        deadline = started + stage.share * SECONDS
        workers = min(stage.workers, QUICK_WORKERS) if settings.quick else stage.workers
        shares = [
            Share([part.number, number, index, workers, deadline], only, environment, journal)
            for index in range(workers)
        ]
        try:
            while sum(share.step() for share in shares):  # each of them, not up to one that runs
                if time.time() > started + SECONDS + MARGIN:
                    break
                time.sleep(POLL)
        finally:
            for share in shares:
                share.end("the part's time was up")
    journal.write("part", ended="done")
    found = journal.lines()
    return not any(failed(line) for line in found)


def failed(line: dict[str, Any]) -> bool:
    """Whether a journal's line tells of something that is not as it should be."""
    return (
        (line["what"] == "check" and not line["passed"])
        or (line["what"] == "end" and line["state"] == "failed")
        or (line["what"] == "part" and line["ended"] != "done")
    )


class Share:
    """One worker's share of a stage, and the processes that it takes."""

    def __init__(
        self, arguments: list[Any], only: str, environment: dict[str, str], journal: Journal
    ) -> None:
        self.command = [sys.executable, "-m", "benchmarks.gpu.worker", *map(str, arguments)]
        self.command += ["--only", only] if only else []
        self.environment, self.journal, self.known = environment, journal, 0
        self.process: subprocess.Popen[bytes] | None = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.known = len(self.journal.begun())
        # In a session of its own, so that what it starts ends with it, and a stop from the terminal
        # reaches this process alone.
        return subprocess.Popen(
            self.command, cwd=REPOSITORY, env=self.environment, start_new_session=True
        )

    def step(self) -> bool:
        """Starts a new process where one has ended before its share; whether there is one."""
        if self.process is None or self.process.poll() is None:
            return self.process is not None
        process, self.process = self.process, None
        code = process.returncode
        if code == 0:
            return False
        # A worker that is out of time ends itself by this code.
        self._close(process.pid, "it took too long" if code == 1 else f"it ended with code {code}")
        if code == AGAIN or len(self.journal.begun()) > self.known:
            self.process = self._start()
        elif not any(line["what"] == "part" for line in self.journal.lines()):
            self.journal.write("part", ended=f"a process ended with code {code}")
        return self.process is not None

    def _close(self, process: int, why: str) -> None:
        """Writes the end of what the process had begun."""
        self.journal.mend()
        open_items = [
            line["item"]
            for line in self.journal.begun().values()
            if line["what"] == "begin" and line["process"] == process
        ]
        for item in open_items:
            say(f"{item}: {why}")
            self.journal.write("end", item=item, state="failed", why=why, seconds=0.0)

    def end(self, why: str) -> None:
        """Ends the process, if there is one, and all that it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close(self.process.pid, why)
        self.process = None
