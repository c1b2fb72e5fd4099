"""Checks of options, which raise one clear `BertfastError`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bertfast.errors import BertfastError

LIMIT = 2**63


def whole_number(name: str, value: object, least: int) -> int:
    """The value, a whole number of at least ``least`` and below `LIMIT`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BertfastError(
            f"{_shown(name)} is {value!r}; it must be a whole number of at least {least}"
        )
    if value >= LIMIT:
        raise BertfastError(f"{_shown(name)} is {value}; it must be below 2^63")
    return value


def number(
    name: str,
    value: object,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuses what is no finite number within these bounds."""
    bounds = {"above": above, "of at least": least, "below": below, "at most": most}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        within = {
            "above": above is None or value > above,
            "of at least": least is None or value >= least,
            "below": below is None or value < below,
            "at most": most is None or value <= most,
        }
        if all(within.values()) and abs(value) < float("inf"):
            return
    wanted = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    raise BertfastError(f"{_shown(name)} is {value!r}; it must be a number {wanted}")


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses what is none of the choices."""
    names = list(choices)
    if value not in names:
        raise BertfastError(f"{_shown(name)} is {value!r}; it must be one of {', '.join(names)}")


def check_adam(options: Any) -> None:
    """Refuses what AdamW and the clipping of its gradients cannot use."""
    for name in ("lr", "clip_norm", "adam_epsilon"):
        number(name, getattr(options, name), above=0)
    number("weight_decay", options.weight_decay, least=0)
    for name in ("adam_beta1", "adam_beta2"):
        number(name, getattr(options, name), least=0, below=1)


def _shown(name: str) -> str:
    """A field's name as the command line spells it."""
    return name.replace("_", "-")
