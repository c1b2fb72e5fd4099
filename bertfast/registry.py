"""What users register by name, as objectives and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import BertfastError

T = TypeVar("T")
Kind = TypeVar("Kind", bound=type)
# What help says of the built-in ones. Their modules import torch, and help must answer at once.
SUMMARIES = {
    "objective": {
        "mlm": "masked words",
        "mlm+nsp": "and next sentences",
        "mlm+sop": "and the order of sentences",
        "rtd": "ELECTRA's replaced tokens",
        "distill": "a teacher's predictions",
    },
    "loss": {
        "multiple-negatives": "pairs, or triplets, against the other rows",
        "cosent": "the order of scored pairs",
        "angle": "likewise, by AnglE's angles",
        "cosine": "the scores of pairs",
        "softmax": "the classes of pairs",
        "contrastive": "pairs labelled 1 or 0",
        "triplet": "triplets",
        "margin-mse": "a teacher's margins",
        "distill-kl": "a teacher's scores of candidates",
        "simcse": "texts alone, by their dropout",
    },
    "task": {
        "classification": "one label of several",
        "multilabel": "any of several labels",
        "multiple-choice": "one of a question's choices",
        "question-answering": "the span of a context that answers",
        "regression": "a number",
        "token-classification": "a tag for each word",
    },
}
_made: dict[str, Registry[Any]] = {}


class Registry(dict[str, T]):
    """An instance of each registered class by its name, in the order of registration.

    Args:
        kind: what they are; messages say it, and ``bertfast.register_<kind>`` registers one.
        needs: attributes that a class must have beside its name, each with what it is for.
    """

    def __init__(self, kind: str, needs: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.kind, self.needs = kind, needs or {}
        _made[kind] = self

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


def summaries(kind: str) -> dict[str, str]:
    """The summary of each one of a kind by its name; the built-in ones are not loaded for it."""
    registered: Mapping[str, Any] = _made.get(kind, {})
    return SUMMARIES.get(kind, {}) | {name: one.summary for name, one in registered.items()}
