"""Functions that take the fields of a configuration as keywords, and whose help lists them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
# An entry of a docstring's section: "name: text" or "one, two: text", and deeper lines below it.
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (?:.*\n)(?:^     +.*\n)*", re.MULTILINE)
_REST = re.compile(r"^    options: .*\n", re.MULTILINE)


def without_defaults(options: Any, names: Collection[str]) -> dict[str, Any]:
    """The fields of a dataclass with their values, but for those of ``names`` at their default."""
    return {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if field.name not in names or getattr(options, field.name) != field.default
    }


def takes_fields_of(config: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that puts the fields of a dataclass in the place of ``**options``, in the
    signature and in the docstring.

    Args:
        config: the dataclass; its docstring has a line in ``Attributes:`` for each field.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        types = get_type_hints(config)
        options = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=types[field.name],
            )
            for field in fields(config)
            if field.name not in signature.parameters
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        names = {option.name for option in options}
        attributes = (inspect.getdoc(config) or "").partition("Attributes:\n")[2] + "\n"
        entries = [
            found[0] for found in _ENTRY.finditer(attributes) if names & set(found[1].split(", "))
        ]
        # inspect.getdoc takes the indentation off, so that both docstrings have the same.
        doc = inspect.getdoc(function) or ""
        function.__doc__ = _REST.sub(lambda _: "".join(entries), doc)
        return function

    return decorate
