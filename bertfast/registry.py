"""What users register by name, as objectives and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import BertfastError

T = TypeVar("T")
Kind = TypeVar("Kind", bound=type)


class Registry(dict[str, T]):
    """An instance of each registered class by its name, in the order of registration.

    Args:
        kind: what they are; messages say it, and ``bertfast.register_<kind>`` registers one.
        needs: attributes that a class must have beside its name, each with what it is for.
    """

    def __init__(self, kind: str, needs: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.kind, self.needs = kind, needs or {}

    def register(self, cls: Kind) -> Kind:
        """Makes a class known under its name; a decorator.

        Raises:
            BertfastError: it lacks its name or another attribute, or another class has its name.
        """
        name: Any = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise BertfastError(f"the {self.kind} {cls.__name__} has no name")
        for attribute, purpose in self.needs.items():
            if not getattr(cls, attribute, None):
                raise BertfastError(f"the {self.kind} {name!r} has no {attribute}; {purpose}")
        # The same class again is a file that was run twice.
        if name in self and type(self[name]).__qualname__ != cls.__qualname__:
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise BertfastError(f"there is {article} {self.kind} named {name!r} already")
        self[name] = cls()
        return cls

    def find(self, name: object) -> T:
        """The one of that name.

        Raises:
            BertfastError: there is none.
        """
        if not isinstance(name, str) or name not in self:
            raise BertfastError(
                f"{self.kind} is {name!r}; it must be one of {', '.join(self)} "
                f"(an own one is registered by bertfast.register_{self.kind})"
            )
        return self[name]
