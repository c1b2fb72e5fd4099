"""Runs the cases where pytest or one of its plugins is missing: ``python -m benchmarks.plain``.

A GPU machine may have PyTorch, Triton and NumPy alone. A case is then what pytest makes of it: a
function, the values of its `parametrize` marks, and the `contest` that `conftest.py` builds.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NEEDED = ("pytest", "pytest_benchmark", "pytest_timeout", "xdist", "hypothesis")


class Skipped(Exception):
    """A case that says why it has no figures."""


class _Mark:
    """``pytest.mark``: it remembers the values of `parametrize`."""

    def __getattr__(self, name: str) -> Callable[..., Callable[[Any], Any]]:
        def mark(*arguments: Any, ids: Any = None, **_: Any) -> Callable[[Any], Any]:
            def remember(function: Any) -> Any:
                if name == "parametrize":
                    function.values = [*getattr(function, "values", []), (*arguments, ids)]
                return function

            return remember

        return mark


def _fixture(function: Any = None, **_: Any) -> Any:
    return function or _fixture


def _skip(reason: str) -> None:
    raise Skipped(reason)


def stand_in() -> ModuleType:
    """As much of pytest as the cases and their fixtures need."""
    module = ModuleType("pytest")
    vars(module).update(mark=_Mark(), fixture=_fixture, skip=_skip)
    return module


class Benchmark:
    """As much of pytest-benchmark's fixture: our side, once a round."""

    def __init__(self) -> None:
        self.group, self.extra_info = "", dict[str, Any]()

    def pedantic(
        self, target: Any, args: Any, setup: Callable[[], None], rounds: int, iterations: int
    ) -> None:
        for _ in range(rounds):
            setup()
            target(*args)


def cases(module: ModuleType) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The name, the function and the arguments of each case in a module."""
    for name, function in vars(module).items():
        if not name.startswith("test_") or not callable(function):
            continue
        choices = []
        for key, values, ids in getattr(function, "values", []):
            texts = [str(value) for value in values] if ids is None else list(ids)
            choices.append([(key, *pair) for pair in zip(values, texts, strict=True)])
        for chosen in product(*choices):
            label = "-".join(text for _, _, text in chosen)
            yield f"{name}[{label}]", function, {key: value for key, value, _ in chosen}


def main(arguments: list[str]) -> int:
    """Runs the cases whose names hold every word of ``arguments``; 1 where one fails."""
    sys.modules["pytest"] = stand_in()
    conftest = importlib.import_module("benchmarks.conftest")
    settings = conftest.current()
    opened = conftest.results(settings)
    results = next(opened)
    items = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"benchmarks.{path.stem}")
        items += [SimpleNamespace(path=path, name=name, case=rest) for name, *rest in cases(module)]
    conftest.pytest_collection_modifyitems(items)
    failed = 0
    for item in items:
        if not all(word in f"{item.path.stem} {item.name}" for word in arguments):
            continue
        function, chosen = item.case
        node = SimpleNamespace(name=item.name, originalname=function.__name__, path=item.path)
        conftest.fixed_draws()
        made = conftest.contest(Benchmark(), results, settings, SimpleNamespace(node=node))
        try:
            function(next(made), **chosen)
        except Skipped as reason:
            print(f"{item.name}: {reason}", file=sys.stderr)
        except ModuleNotFoundError as error:  # of a library that this case needs
            results.skip(item.name, str(error))
        except Exception as error:
            failed += 1
            traceback.print_exc()
            results.skip(item.name, f"{type(error).__name__}: {error}")
        finally:
            list(made)
    list(opened)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
