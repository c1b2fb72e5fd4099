"""The cases of ``test_*.py`` without pytest: a function and the values of its `parametrize` marks.

A machine with PyTorch, Triton and NumPy alone has no pytest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType
from typing import Any


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


def prepare_imports() -> None:
    """Puts as much of pytest as the cases need in its place, for this process."""
    module = ModuleType("pytest")
    vars(module).update(mark=_Mark())
    sys.modules["pytest"] = module


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
