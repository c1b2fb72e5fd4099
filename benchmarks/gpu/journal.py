"""The file that a part writes a line to whenever it knows something more, so that it outlives what
kills the part.

Each line is an object of JSON. Its "what" is "machine", "begin" and "end" of an item, "check",
"case", "side", "rates", "profile", "cost", "tuned", or "part" when the part has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ..results import rounded

SCHEMA = 1
LARGEST = 16 << 20  # bytes of a file that is brought back from a machine
FIELDS = {
    "machine": {"schema", "part", "machine", "versions", "commit", "sources", "date", "quick"},
    "begin": {"item", "process"},
    "end": {"item", "state", "why", "seconds"},
    "check": {"item", "passed", "error", "bound"},
    "case": {"case"},
    "side": {"case", "name"},
    "rates": {"rates", "state"},
    "profile": {"name", "kernels"},
    "tuned": {
        "kernel",
        "key",
        "options",
        "usual",
        "seconds",
        "usual_seconds",
        "tried",
        "left_out",
        "source",
    },
    "cost": {"kernel", "candidate", "cost"},
    "part": {"ended"},
}


class Journal:
    """A part's file, which several processes may write to.

    Args:
        path: of the file; it is made by the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, **values: Any) -> None:
        """Appends a line, whole, and sees it onto the disk; one that would make the file too large
        to bring back is left out.
        """
        assert values.keys() >= FIELDS[what]
        line = json.dumps(rounded({"what": what, **values})).encode() + b"\n"
        target = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(target, fcntl.LOCK_EX)
            if os.fstat(target).st_size + len(line) <= LARGEST:
                os.write(target, line)
                os.fsync(target)
        finally:
            os.close(target)

    def mend(self) -> None:
        """Takes away the line that a killed process was writing."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(file.read().rfind(b"\n") + 1)

    def lines(self) -> list[dict[str, Any]]:
        """What was written, in order; a last line that was cut off is left out.

        Raises:
            ValueError: a line is none of a journal's.
        """
        found = []
        content = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, text in enumerate(content.splitlines(keepends=True), 1):
            if not text.endswith("\n"):
                break
            try:
                line = json.loads(text)
                fine = FIELDS[line["what"]] <= line.keys()
            except (ValueError, KeyError, TypeError, AttributeError):
                fine = False
            if not fine:
                raise ValueError(f"line {number} is none of a journal's")
            found.append(line)
        return found

    def begun(self) -> dict[str, dict[str, Any]]:
        """The items that were begun, by name: the line of the end, or else of the beginning."""
        return {line["item"]: line for line in self.lines() if line["what"] in ("begin", "end")}
