"""``python -m benchmarks.note``: measures what pretraining changes, and writes docs/note.md.

A part that is there is not measured again, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError
from bertfast.files import check_file, read_object, write_text
from bertfast.machine import commit, describe_machine
from bertfast.training.trainer import Interrupted

from ..importable import REPOSITORY
from .page import write_note
from .parts import PARTS, Note
from .settings import QUICK, Amount, Data

RESULTS = Path(__file__).parent / "results"  # they are committed with the page
# Below --data, unless an option names another file.
FILES = {
    "text": "gutenberg/train.txt.gz",
    "held-out": "gutenberg/valid.txt",
    "train": "sst2_glue/train.tsv",
    "test": "sst2_glue/dev.tsv",
    "entities": "wnut17/wnut17train.conll",
    "entities-test": "wnut17/emerging.test.conll",
    "pairs": "stsbenchmark/sts-dev.csv",
}


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.note",
        description="Measure what pretraining changes: hours of two cores; what is there is kept.",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the files")
    for name, path in FILES.items():
        parser.add_argument(f"--{name}", type=Path, help=f"default: {path} below --data")
    for name in ("tags", "tags-test"):
        parser.add_argument(f"--{name}", type=Path, help="CoNLL with parts of speech")
    parser.add_argument("--out", type=Path, help="default: build/note")
    parser.add_argument("--only", choices=PARTS, help="one part; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny: does it run? means nothing")
    parser.add_argument("--page", action="store_true", help="write the page of what is there")
    given = parser.parse_args()
    out = given.out or REPOSITORY / "build" / ("note-quick" if given.quick else "note")
    # Figures that mean nothing stand in no page of the documentation.
    page = out / "note.md" if given.quick else REPOSITORY / "docs" / "note.md"
    results = out / "results" if given.quick else RESULTS
    files = {
        name.replace("-", "_"): getattr(given, name.replace("-", "_")) or given.data / path
        for name, path in FILES.items()
    }
    data = Data(**files, tags=given.tags, tags_test=given.tags_test)
    try:
        if not given.page:
            for path in vars(data).values():
                if path is not None:
                    check_file(path)
            note = Note(out, data, QUICK if given.quick else Amount())
            measure(note, results, given.only)
        write_note(page, read_results(results))
    except BertfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        print("stopped after a checkpoint; the same command goes on", file=sys.stderr)
        return 130
    print(page)
    return 0


def read_results(results: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by part."""
    files = {name: results / f"{name}.json" for name in PARTS}
    return {name: read_object(file) for name, file in files.items() if file.is_file()}


def measure(note: Note, results: Path, only: str | None) -> None:
    """Measures the parts that are not there."""
    results.mkdir(parents=True, exist_ok=True)
    for name in PARTS if only is None else (only,):
        path = results / f"{name}.json"
        if path.is_file():
            continue
        print(f"note: {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        found = PARTS[name](note)
        facts = {
            "command": shlex.join(["python", "-m", "benchmarks.note", "--only", name]),
            "commit": commit(),
            "machine": describe_machine("cpu")["name"],
            "seconds": time.monotonic() - started,
            "amount": vars(note.amount),
            **found,
        }
        write_text(path, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
