"""The JSON that a run leaves: the machine, the versions, the commit, and every case with its
samples.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bertfast.bench import rates
from bertfast.machine import commit, describe_machine, versions

from .importable import REPOSITORY
from .settings import Settings

# The part of a run's seconds by whose end the cases of a group have ended; what one group leaves,
# the next one has.
ENDS = {"ops": 0.4, "step": 0.85, "sweeps": 1.0}
FIRST_GUESS = {
    "ops": 10.0,
    "step": 60.0,
    "sweeps": 20.0,
}  # seconds of a case, before one of its kind was measured


def say(text: str) -> None:
    """A line of progress, past pytest's capture."""
    assert sys.__stderr__ is not None
    print(f"benchmarks: {text}", file=sys.__stderr__, flush=True)


class Results:
    """A run's record; `add` writes it out each time.

    Attributes:
        stopped: whether the user stopped the run, and waits.
    """

    stopped = False

    def __init__(self, settings: Settings, machine: dict[str, Any]) -> None:
        self.settings = settings
        self.started = time.monotonic()
        self.longest: dict[str, float] = {}  # seconds, by kind of case
        self.rates: dict[str, float] = {}  # measured as the cases need them
        self.commit, self.date = commit(), today()
        self.record: dict[str, Any] = {
            "machine": machine,
            "versions": versions(),
            "commit": self.commit,
            "date": self.date,
            "quick": settings.quick,
            "rates": self.rates,
            "cases": [],
            "skipped": {},
        }
        # The first figures of a kind of machine have no record to go into.
        if settings.update and self.path.exists():
            self.record = json.loads(self.path.read_text(encoding="utf-8"))

    @classmethod
    def start(cls, settings: Settings) -> Results:
        """Opens the record of this machine."""
        return cls(settings, describe_machine(settings.device))

    @property
    def path(self) -> Path:
        """The JSON's, named by the machine."""
        return self.settings.results / f"{self.record['machine']['slug']}.json"

    def seconds_left(self, group: str, kind: str) -> float:
        """What the group's time leaves after a case of this kind: at 0 or below none is to
        start.
        """
        end = self.started + ENDS[group] * self.settings.seconds
        return end - time.monotonic() - self.longest.get(kind, FIRST_GUESS[group])

    def took(self, kind: str, seconds: float) -> None:
        """Says how long a case took, for the next one's sake."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))

    def add(self, case: dict[str, Any]) -> None:
        """Takes a case in, then measures the rates that it is set beside.

        In a record that is updated, it takes the place of the same case's earlier figures.
        """
        cases = self.record["cases"]
        if self.settings.update:
            case |= {"commit": self.commit, "date": self.date, "rates": self.rates}
            same = [place for place, other in enumerate(cases) if identity(other) == identity(case)]
        else:
            same = []
        if same:
            cases[same[0]] = case
        else:
            cases.append(case)
        self._write()
        for name in sorted({f"matrix {case['dtype']}", "copy"} - self.rates.keys()):
            say(f"measuring this machine's rate, {name}, for some {rates.SECONDS:.0f} s")
            self.rates |= rates.measure(self.settings.device, [name], self.settings.quick)
            self._write()

    def skip(self, case: str, reason: str) -> None:
        """Says why a case has no figures."""
        self.record["skipped"][case] = reason
        self._write()

    def finish(self) -> None:
        """Measures the rates once more: the better of two is the machine's, should something else
        have run during the first.
        """
        if self.stopped:
            return
        again = rates.measure(self.settings.device, self.rates, self.settings.quick)
        self.rates |= {name: max(value, again[name]) for name, value in self.rates.items()}
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.record)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def identity(case: dict[str, Any]) -> tuple[Any, ...]:
    """What two measurements of one case have in common."""
    return tuple(case.get(name) for name in ("op", "shape", "dtype", "sweep", "x"))


def rounded(value: Any) -> Any:
    """Six digits are more than any clock here has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def today() -> str:
    """The date, as results have it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def sources() -> str:
    """A digest of the code that is measured and that measures: the same wherever a copy of it
    lies, with git or without.
    """
    digest = hashlib.sha256()
    for folder in ("bertfast", "benchmarks", "kernels", "csrc"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h") and path.is_file():
                digest.update(f"{path.relative_to(REPOSITORY).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
