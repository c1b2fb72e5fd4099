"""Texts longer than a model's inputs, in windows that overlap."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from bertfast.errors import BertfastError


class Window(NamedTuple):
    """The first token, and the one behind the last."""

    start: int
    end: int

    def context(self, place: int, tokens: int) -> float:
        """How many tokens the shorter side of a place has, in a text of so many tokens.

        A side that the text itself ends counts as endless.
        """
        left = place - self.start if self.start else math.inf
        right = self.end - 1 - place if self.end < tokens else math.inf
        return min(left, right)


def windows(tokens: int, room: int, overlap: int) -> list[Window]:
    """Windows over ``tokens`` tokens, of ``room`` at most.

    Each but the last shares ``overlap`` with the next. The last shares more, so that it is as long
    as the others.

    ``overlap`` is half of ``room`` at most.

    Raises:
        BertfastError: ``overlap`` is below 0.
    """
    if overlap < 0:
        raise BertfastError(f"the overlap of windows is {overlap} tokens; it must be at least 0")
    if tokens <= room:
        return [Window(0, tokens)]
    step = room - min(overlap, room // 2)
    starts = [*range(0, tokens - room, step), tokens - room]
    return [Window(start, start + room) for start in starts]


def widest(found: Sequence[Window], place: int, tokens: int) -> int:
    """The number of the window that has most context around a place; the first of equals."""
    first = bisect_right(found, place, key=attrgetter("end"))
    last = bisect_right(found, place, key=attrgetter("start"))
    return max(range(first, last), key=lambda number: found[number].context(place, tokens))
