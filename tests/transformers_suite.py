"""Runs transformers' own tests of the family's models, as they are and with every model
accelerated, and lists what fails only accelerated.

    python tests/transformers_suite.py --source ~/transformers
    python tests/transformers_suite.py --source ~/transformers --models bert,albert -k "not sdpa"

The source is a checkout of the installed version of transformers, for its folder ``tests``; nothing
of it is copied. In the second run every model that a test makes, or loads, goes through
`bertfast.accelerate` before the test sees it. Slow tests are skipped and the network is off: a test
that needs either fails, or is skipped, in both runs and says nothing.

The exit status is 0 if all that passes as it is passes accelerated, 1 if something does not, 2 if
there is nothing to run.

This file is the command, and the pytest plugin that it runs the suite with.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODELS = ("bert", "roberta", "electra", "distilbert", "albert", "deberta_v2")
ACCELERATE = "bertfast.hub.accelerate:accelerate"
Outcomes = dict[
    str, tuple[str, str]
]  # of each test: passed, failed or skipped; the first line of why


class SuiteError(Exception):
    """There is nothing to run, or nothing to compare; one line."""


# --- The plugin ---


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bertfast")
    group.addoption("--outcomes", help="file that gets a line of JSON for each test's outcome")
    group.addoption(
        "--accelerate-with",
        help="MODULE:FUNCTION that every model of --accelerate-models goes through",
    )
    group.addoption("--accelerate-models", help="modules with models, separated by commas")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--outcomes")
    if file is None:
        return
    recorder = Recorder(Path(file))
    config.pluginmanager.register(recorder)
    if name := config.getoption("--accelerate-with"):
        module, _, function = name.partition(":")
        accelerate = getattr(importlib.import_module(module), function)
        for models in config.getoption("--accelerate-models").split(","):
            accelerate_new_models(importlib.import_module(models), accelerate, recorder)


class Recorder:
    """Writes each outcome as it comes, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accelerated = 0

    def write(self, *entry: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test is its call, unless it stops before it or fails after it; a subtest reports under
        # the name of its test, before it.
        if report.when == "call" or not report.passed:
            self.write(report.nodeid, report.outcome, first_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(report.nodeid, report.outcome, first_line(report))

    def pytest_sessionfinish(self) -> None:
        self.write("accelerated", self.accelerated, "")


def first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Of what a failure says."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext.strip().rpartition("\n")[2]
    return text.strip().partition("\n")[0]


def accelerate_new_models(
    module: ModuleType, accelerate: Callable[[Any], Any], recorder: Recorder
) -> None:
    """Has every model of the module's classes accelerated once it is complete: after the outermost
    ``__init__`` or ``from_pretrained``.
    """
    from transformers import PreTrainedModel

    depth = 0

    def outermost(
        function: Callable[..., Any], of: type[PreTrainedModel], makes: bool
    ) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                result = function(*args, **kwargs)
            finally:
                depth -= 1
            model = (result[0] if isinstance(result, tuple) else result) if makes else args[0]
            # A subclass that a test defines is not complete when its parent is.
            if depth == 0 and (makes or type(model).__init__ is of.__init__):
                recorder.accelerated += 1
                if accelerate(model) is not model:
                    raise TypeError(
                        f"{accelerate.__name__} gave another object than the {type(model).__name__}"
                    )
            return result

        return wrapper

    for cls in list(vars(module).values()):
        if (
            isinstance(cls, type)
            and issubclass(cls, PreTrainedModel)
            and cls.__module__ == module.__name__
        ):
            for name in ("from_pretrained", "_from_config"):
                bound = getattr(cls, name).__func__
                setattr(cls, name, classmethod(outermost(bound, cls, makes=True)))
            if "__init__" in vars(cls):
                cls.__init__ = outermost(cls.__init__, cls, makes=False)  # type: ignore[method-assign]


# --- The command ---


def find_suite(source: Path | None, models: list[str]) -> tuple[Path, dict[str, Path]]:
    """The root to run from, and each model's test file.

    Raises:
        SuiteError: there is none.
    """
    if source is None:
        spec = importlib.util.find_spec("transformers")
        if spec is None or spec.origin is None:
            raise SuiteError("transformers is not installed: pip install 'bertfast[hf]'")
        source = Path(spec.origin).parents[2]  # of a checkout that is installed editable
        if not (source / "tests" / "models").is_dir():
            raise SuiteError(
                "the installed transformers has no tests beside it; "
                "give a checkout of it with --source DIR"
            )
    root = source.resolve()
    if root.name == "tests" and not (root / "tests").is_dir():
        root = root.parent
    if not (root / "tests" / "models").is_dir():
        raise SuiteError(
            f"{source}: holds no tests/models; --source takes a checkout or unpacked source of "
            "transformers"
        )
    files = {
        model: root / "tests" / "models" / model / f"test_modeling_{model}.py" for model in models
    }
    for model, file in files.items():
        if not file.is_file():
            raise SuiteError(
                f"{model}: {file} does not exist; name models that the source tests with --models"
            )
    return root, files


def run_suite(root: Path, file: Path, options: list[str]) -> tuple[Outcomes, int]:
    """Each test's outcome, and how many models were accelerated.

    Raises:
        SuiteError: no test could be run.
    """
    folder = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(x for x in (folder, os.environ.get("PYTHONPATH")) if x)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "RUN_SLOW": "0"}
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "outcomes"
        plugin = [
            "-p",
            Path(__file__).stem,
            "--outcomes",
            str(written),
            "-p",
            "no:cacheprovider",
            "-q",
        ]
        process = subprocess.run(
            [sys.executable, "-m", "pytest", *plugin, *options, str(file.relative_to(root))],
            cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        lines = written.read_text(encoding="utf-8").splitlines() if written.exists() else []
    outcomes: Outcomes = {}
    for name, outcome, why in map(json.loads, lines):
        if outcomes.get(name, ("",))[0] != "failed":
            outcomes[name] = (outcome, why)
    accelerated, _ = outcomes.pop("accelerated", (0, ""))
    if not any(outcome != "failed" or "::" in name for name, (outcome, _) in outcomes.items()):
        output = [why for _, why in outcomes.values()] or process.stdout.strip().splitlines()[-1:]
        raise SuiteError(
            f"{file}: no test ran (pytest exits with {process.returncode}): {' '.join(output)}"
        )
    return outcomes, int(accelerated)


def compare(plain: Outcomes, accelerated: Outcomes) -> list[str]:
    """A line for each test that passes as it is and not accelerated."""
    lines = []
    for name, (outcome, _) in plain.items():
        now, why = accelerated.get(name, ("missing", "it did not come to its end"))
        if outcome == "passed" != now:
            lines.append(f"{name}: {now}: {why}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    description, _, example = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", type=Path, help="checkout of transformers; default: the one that is installed"
    )
    parser.add_argument(
        "--models", default=",".join(MODELS), help="separated by commas; default: %(default)s"
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests that match, as pytest's -k")
    parser.add_argument(
        "--with", dest="function", default=ACCELERATE, metavar="MODULE:FUNCTION",
        help="what every model goes through; default: %(default)s"
    )  # fmt: skip
    options = parser.parse_args(arguments)
    selection = ["-k", options.k] if options.k else []
    differences = 0
    try:
        root, files = find_suite(options.source, options.models.split(","))
        for model, file in files.items():
            plain, _ = run_suite(root, file, selection)
            acceleration = ["--accelerate-with", options.function]
            acceleration += ["--accelerate-models", f"transformers.models.{model}.modeling_{model}"]
            accelerated, count = run_suite(root, file, [*selection, *acceleration])
            if not count:
                raise SuiteError(
                    f"{model}: no test made a model of its own, so that none was accelerated"
                )
            lines = compare(plain, accelerated)
            counts = Counter(outcome for outcome, _ in plain.values())
            print(
                f"{model}: {len(plain)} tests, {counts['skipped']} skipped, "
                f"{counts['failed']} fail as they are, {counts['passed']} pass; "
                f"of these {counts['passed'] - len(lines)} pass accelerated ({count} models)",
                flush=True,
            )
            for line in lines:
                print(f"  {line}")
            differences += len(lines)
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{differences or 'no'} test{'' if differences == 1 else 's'} passed as they are and not "
        "accelerated"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
