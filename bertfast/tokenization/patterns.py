"""Refuses regular expressions that can take forever, before a tokenizer runs them.

A tokenizer.json may bring patterns of its own. The engine that runs them (Oniguruma) tries every
way to match: ``(a+)+$`` takes 2^n steps on n letters. A pattern is refused if a repeated part can
match a text in several ways, or if two unbounded repetitions can share characters between them.
Patterns of the published tokenizers pass; those of their alternatives that break the second rule
are listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from bertfast.errors import BertfastError

LONGEST = 10_000  # characters of a pattern
DEEPEST = 50  # groups within one another
WAYS = 64  # in which the bounded repetitions of an alternative may be combined
GROWTH = 1024  # characters that a normalizer may make of one
FEW = 8  # repetitions of a range that is still a bounded one
# Of GPT-4, Llama 3, Qwen 2 and GPT-4o: spaces before a line's end, and words that begin in
# capitals.
KNOWN = (
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
)
QUANTIFIER = re.compile(r"[*+?]|\{(\d{0,6})(?:(,)(\d{0,6}))?\}")
GROUP = re.compile(r"\?(?:[:=!>]|<[=!]|<[^\W\d]\w*>|[im-]*(?P<colon>:)|[im-]+(?=\)))")
ESCAPE = re.compile(
    r"[pP]\{\^?\w+\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|[^1-9kgXRKNO]"
)
# Characters that stand for the others where two sets are compared. They are Latin, combining marks,
# Greek and Cyrillic, then some of other scripts, of spaces, punctuation, symbols and wide forms.
SAMPLE = "".join(
    map(
        chr,
        (
            *(*range(256), *range(0x300, 0x310), *range(0x370, 0x460, 4), 0x1C5, 0x2B0),
            *(0x5D0, 0x5D1, 0x621, 0x628, 0x661, 0x905, 0x966, 0xE01, 0x2002, 0x2010, 0x2019),
            *(0x2026, 0x2028, 0x200B, 0x20AC, 0x2116, 0x2192, 0x2211, 0x25A0, 0x3001, 0x3002),
            *(0x3041, 0x30A1, 0x4E00, 0x4E01, 0xAC00, 0xFB01, 0xFEFF, 0xFF01, 0xFF10, 0xFF21),
            *(0x1D400, 0x1F600),
        ),
    )
)


@dataclass(frozen=True)
class Item:
    """A part of a sequence.

    Attributes:
        characters: of the sample, that it can match.
        least: how often it stands there at least, 0 where it may be missing.
        ways: in how many lengths it matches; 0 without bound.
    """

    characters: frozenset[str]
    least: int = 1
    ways: int = 1


def check_patterns(tokenizer: Tokenizer, source: object) -> None:
    """Raises BertfastError if a normalizer or a pre-tokenizer can take, or make, without bound."""
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        if part is None:
            continue
        settings = json.loads(part.__getstate__())
        growth = 1
        for kind, value in _entries(settings):
            if kind == "Regex" and (trouble := explosive(value)):
                raise BertfastError(f"{source}: the pattern {value!r} is not supported: {trouble}")
            if kind in ("content", "prepend"):
                growth *= max(len(value), 1)
        if growth > GROWTH:
            raise BertfastError(
                f"{source}: its normalizer makes up to {growth:.3g} characters of one; "
                f"at most {GROWTH} are supported"
            )


def _entries(value: Any) -> Iterator[tuple[str, str]]:
    """Each text in a JSON value with the name that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str):
                yield name, inner
            else:
                yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def explosive(pattern: str) -> str | None:
    """Why a pattern may take forever; None where it cannot."""
    if len(pattern) > LONGEST:
        return f"it has {len(pattern)} characters, and at most {LONGEST} are read"
    try:
        _Parser(pattern).whole()
    except _Explosive as trouble:
        return str(trouble)
    return None


class _Explosive(Exception):
    """Why."""


class _Parser:
    """Reads a pattern from left to right; each method reads one part of the grammar."""

    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.depth = pattern, 0, 0
        flags = set("".join(re.findall(r"\(\?([im]+)", pattern)))
        self.flags = "".join(sorted(flags))
        self.sets: dict[str, frozenset[str]] = {}

    def whole(self) -> None:
        self.alternatives()
        if self.at < len(self.text):
            raise _Explosive("a bracket is not closed")

    def alternatives(self) -> list[list[Item]]:
        """The sequences between bars, up to the group's end."""
        found = []
        while True:
            start = self.at
            items = self.sequence()
            if self.depth or self.text[start : self.at] not in KNOWN:
                _check_sequence(items)
            found.append(items)
            if self.text[self.at : self.at + 1] != "|":
                return found
            self.at += 1

    def sequence(self) -> list[Item]:
        items: list[Item] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            items += self.quantified()
        return items

    def quantified(self) -> list[Item]:
        """An atom and the quantifiers after it."""
        items, repeats = self.atom(), 0
        while (found := QUANTIFIER.match(self.text, self.at)) and found[0] not in ("{}", "{,}"):
            self.at = found.end()
            least, most = _range(found)
            if self.text[self.at : self.at + 1] in ("?", "+") and found[0][0] != "{":
                self.at += 1  # lazy, or without a way back
            elif self.text[self.at : self.at + 1] == "?":
                self.at += 1
            repeats += 1
            items = _repeated(items, least, most, again=repeats > 1)
        return items

    def atom(self) -> list[Item]:
        start, first = self.at, self.text[self.at]
        self.at += 1
        if first == "(":
            return self.group()
        if first == "[":
            self.brackets()
        elif first == "\\":
            found = ESCAPE.match(self.text, self.at)
            if found is None:
                raise _Explosive("it has a reference back, or an escape that is not known here")
            self.at = found.end()
            if found[0] in ("A", "z", "Z", "b", "B", "G"):
                return []
        elif first in "^$":
            return []
        return [Item(self.characters(self.text[start : self.at]))]

    def group(self) -> list[Item]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Explosive(f"its groups are nested deeper than {DEEPEST}")
        look = False
        if self.text[self.at : self.at + 1] == "?":
            found = GROUP.match(self.text, self.at)
            if found is None:
                raise _Explosive("it has a group of a kind that is not known here")
            self.at = found.end()
            look = found[0] in ("?=", "?!", "?<=", "?<!")
            if (
                self.text[self.at : self.at + 1] == ")"
                and not found["colon"]
                and found[0][-1] in "im-"
            ):
                self.at += 1
                self.depth -= 1
                return []
        found_items = self.alternatives()
        if self.text[self.at : self.at + 1] != ")":
            raise _Explosive("a bracket is not closed")
        self.at += 1
        self.depth -= 1
        if len(found_items) == 1:
            items = found_items[0]
            return [Item(i.characters, 0, i.ways) for i in items] if look else items
        everything = [item for items in found_items for item in items]
        union = frozenset().union(*(item.characters for item in everything))
        empty = look or any(all(item.least == 0 for item in items) for items in found_items)
        endless = any(item.ways == 0 for item in everything)
        return [Item(union, 0 if empty else 1, 0 if endless else len(found_items))]

    def brackets(self) -> None:
        """A set of characters, with sets in it."""
        depth, first = 1, True
        if self.text[self.at : self.at + 1] == "^":
            self.at += 1
        while depth:
            if self.at >= len(self.text):
                raise _Explosive("a bracket is not closed")
            char = self.text[self.at]
            self.at += 2 if char == "\\" else 1
            depth += (char == "[") - (char == "]" and not first)
            first = False

    def characters(self, atom: str) -> frozenset[str]:
        """The characters of the sample that an atom matches."""
        if atom not in self.sets:
            prefix = f"(?{self.flags})" if self.flags else ""
            try:
                left = Split(Regex(prefix + atom), "removed").pre_tokenize_str(SAMPLE)
            except Exception as error:  # tokenizers raises bare Exceptions
                raise _Explosive(f"{atom!r} cannot be read ({error})") from None
            self.sets[atom] = frozenset(SAMPLE).difference(*(piece for piece, _ in left))
        return self.sets[atom]


def _range(found: re.Match[str]) -> tuple[int, int | None]:
    """How often a quantifier repeats, at least and at most."""
    if found[0][0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    least = int(found[1] or 0)
    if not found[2]:
        return least, least
    return least, int(found[3]) if found[3] else None


def _repeated(items: list[Item], least: int, most: int | None, again: bool) -> list[Item]:
    """The parts of a repetition, as one; an optional one keeps its parts."""
    several = most is None or most > 1
    if several and (again or any(item.ways != 1 for item in items)):
        raise _Explosive("a part that is repeated can itself match in several ways")
    if not several:
        return [
            Item(i.characters, i.least * least, i.ways if i.ways == 0 else i.ways + 1 - least)
            for i in items
        ]
    union = frozenset().union(*(item.characters for item in items))
    endless = most is None or most - least > FEW
    kept = least and any(item.least for item in items)
    return [Item(union, 1 if kept else 0, 0 if endless else (most or 0) - least + 1)]


def _check_sequence(items: list[Item]) -> None:
    """Raises `_Explosive` where two unbounded parts can share characters, or bounded ones combine
    in too many ways.
    """
    ways = 1
    for item in items:
        ways *= max(item.ways, 1)
    if ways > WAYS:
        raise _Explosive(f"its optional parts combine in {ways} ways")
    endless = [place for place, item in enumerate(items) if item.ways == 0]
    for number, left in enumerate(endless):
        for right in endless[number + 1 :]:
            a, b = items[left].characters, items[right].characters
            between = items[left + 1 : right]
            parted = any(
                item.least and not (item.characters & a and item.characters & b) for item in between
            )
            if a & b and not parted:
                raise _Explosive("two of its repetitions can take the same characters")
