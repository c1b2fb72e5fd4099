"""What the journals of a folder say, as the one record that the page, the plots and
``benchmarks/results`` are made of; and the way there.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertfast.bench import timing
from bertfast.errors import BertfastError
from bertfast.kernels import tuning
from bertfast.machine import UNKNOWN, commit

from ..importable import REPOSITORY
from ..page import page_text
from ..results import identity, sources, write_json
from .items import PARTS
from .journal import LARGEST, SCHEMA, Journal
from .step import as_samples

CONFIGS = REPOSITORY / "kernels" / "configs"
SAME = ("machine", "versions", "commit", "sources", "quick")  # in every part


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """The record of these journals.

    Raises:
        BertfastError: one is damaged, or they are not of one run's machine and code.
    """
    record: dict[str, Any] = {}
    for path in paths:
        try:
            lines = Journal(path).lines()
            heads = [line for line in lines if line["what"] == "machine"]
            if path.stat().st_size > LARGEST or not heads:
                raise ValueError("it says nothing of a machine, or too much")
            for head in heads:
                _take_head(record, head, path)
            ends = [line["ended"] for line in lines if line["what"] == "part"]
            record["parts"][str(heads[0]["part"])] = ends[0] if ends else "it was killed"
            _take_lines(record, lines)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BertfastError(
                f"{path}: is damaged ({type(error).__name__}: {error}); measure the part again"
            ) from error
    return record


def _take_head(record: dict[str, Any], head: dict[str, Any], path: Path) -> None:
    if head["schema"] != SCHEMA:
        raise BertfastError(f"{path}: is of form {head['schema']}, and this checkout's is {SCHEMA}")
    if not record:
        record |= {name: head[name] for name in SAME} | {
            "date": head["date"], "rates": {}, "cases": [], "skipped": {}, "parts": {},
            "checks": {"passed": 0, "failed": {}}, "state": {}, "profiles": {}, "tuned": [],
        }  # fmt: skip
    for name in SAME:
        if head[name] != record[name]:
            raise BertfastError(
                f"{path}: its {name} is {head[name]!r}, and another part's {record[name]!r}; "
                "give a folder of one run"
            )


def _take_lines(record: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    part = next(line["part"] for line in lines if line["what"] == "machine")
    open_items = {line["item"] for line in lines if line["what"] == "begin"}
    steps: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    checks = record["checks"]
    for line in lines:
        what = line["what"]
        if what == "check" and line["passed"]:
            checks["passed"] += 1
        elif what == "check":
            checks["failed"][line["item"]] = f"error {line['error']:.2e}, bound {line['bound']:.0e}"
        elif what == "end":
            open_items.discard(line["item"])
            if line["state"] == "failed" and part == 1:
                checks["failed"][line["item"]] = line["why"]
            elif line["state"] != "done":
                record["skipped"][line["item"]] = line["why"]
        elif what == "case":
            record["cases"].append(line["case"])
        elif what == "side":
            key = json.dumps([*identity(line["case"]), line["case"].get("tuned")])
            steps.setdefault(key, (line["case"], []))[1].append(line)
        elif what == "rates":
            for name, value in line["rates"].items():
                record["rates"].setdefault(name, value)
            record["state"] = record["state"] or line["state"]
        elif what == "profile":
            record["profiles"][line["name"]] = line["kernels"]
        elif what == "tuned":
            record["tuned"].append({name: x for name, x in line.items() if name != "what"})
    for item in sorted(open_items):
        record["skipped"][item] = "it was killed"
    for case, sides in steps.values():
        record["cases"] += _case_of_sides(case, sides)


def _case_of_sides(case: dict[str, Any], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A case whose sides ran one after another; none where ours did not run."""
    samples = {line["name"]: as_samples(line) for line in lines if "missing" not in line}
    kinds = [one.kind for one in samples.values()]
    if "ours" not in kinds:
        return []
    rounds = min(len(one.seconds) for one in samples.values())
    for one in samples.values():
        del one.seconds[rounds:], one.part_seconds[rounds:]
    errors = {line["name"]: line["error"] for line in lines if line.get("error") is not None}
    missing = {line["name"]: line["missing"] for line in lines if "missing" in line}
    found = {"errors": errors, "missing": missing, "sides": timing.summarize(samples)}
    return [case | found]


def import_folder(folder: Path, results: Path) -> Path:
    """Takes the journals of a folder into ``results``, and its tuned options into
    ``kernels/configs``; the file of the record.

    Raises:
        BertfastError: the folder holds no whole run of this checkout's code on a GPU.
    """
    paths = [part.path(folder) for part in PARTS if part.path(folder).exists()]
    if not paths:
        raise BertfastError(f"{folder}: holds no results of `make gpu`")
    record = read(paths)
    machine = record["machine"]
    if record["quick"] or machine["device"] != "cuda":
        raise BertfastError(f"{folder}: holds a try of tiny shapes, which measures nothing")
    slug = machine.get("slug")
    if not isinstance(slug, str) or not re.fullmatch("[a-z0-9-]+", slug):
        raise BertfastError(f"{folder}: its machine's name is {slug!r}")
    record["commit"] = _commit_of(record, folder)
    chosen = _options(record, folder)
    try:
        page_text([record])
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise BertfastError(
            f"{folder}: a case is damaged ({type(error).__name__}: {error})"
        ) from error
    target = results / f"{slug}.json"
    write_json(target, record)
    for path, content in chosen.items():
        path.write_text(content, encoding="utf-8")
    return target


def _commit_of(record: dict[str, Any], folder: Path) -> str:
    """The commit that was measured; of a copy without git, this checkout's, if the code is the
    same.
    """
    known: str = record["commit"]
    if known == UNKNOWN:
        if record["sources"] != sources():
            raise BertfastError(
                f"{folder}: is of other code than this checkout's (digest {record['sources']}, "
                f"here {sources()}); check out what was measured"
            )
        return commit()
    name = known.removesuffix("+changes")
    git = ["git", "-C", str(REPOSITORY), "cat-file", "-e", f"{name}^{{commit}}"]
    try:
        found = subprocess.run(git, capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise BertfastError(f"{folder}: is of commit {known}, which this checkout has not got")
    return known


def _options(record: dict[str, Any], folder: Path) -> dict[Path, str]:
    """The files of shipped options with what was tuned in its place."""
    major = int(record["machine"]["capability"].split(".")[0])
    capability = tuning.GENERATIONS.get(major)
    if capability is None:
        return {}
    path = CONFIGS / f"sm_{capability}.json"
    shipped = json.loads(path.read_text(encoding="utf-8"))
    for row in record["tuned"]:
        kernel, key, options = row["kernel"], row["key"], row["options"]
        usual = shipped.get(kernel, {}).get(key)
        fine = isinstance(options, dict) and all(
            type(value) is int and value > 0 for value in options.values()
        )
        if usual is None or not fine or options.keys() != usual.keys():
            raise BertfastError(f"{folder}: tuned options of {kernel}, {key}, fit no shipped ones")
        if row["source"] != tuning.source(kernel):
            raise BertfastError(f"{folder}: tuned another {kernel} than this checkout's")
        shipped[kernel][key] = options
    return {path: _text(shipped)} if record["tuned"] else {}


def _text(shipped: dict[str, dict[str, dict[str, int]]]) -> str:
    """Options as the shipped files have them, a line for each size."""
    kernels = []
    for kernel, sizes in shipped.items():
        lines = ",\n".join(f"  {json.dumps(size)}: {json.dumps(x)}" for size, x in sizes.items())
        kernels.append(f" {json.dumps(kernel)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(kernels) + "\n}\n"
