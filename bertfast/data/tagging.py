"""Tag schemes: which tags of a sentence are an entity, checked, and turned into BIO.

Ramshaw and Marcus, "Text Chunking using Transformation-Based Learning", 1995; Tjong Kim Sang and
Veenstra, "Representing Text Chunks", 1999; Ratinov and Roth, "Design Challenges and Misconceptions
in Named Entity Recognition", 2009.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bertfast.errors import BertfastError

from .labels import quoted

OUTSIDE = "O"
PLAIN = "plain"  # tags that are no entities, as parts of speech
# The letter of each scheme that stands for BIOES's; IO and IOB1 have rules of their own.
BRACKETS = {
    "bioes": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "bilou": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "bmes": {"B": "B", "M": "I", "E": "E", "S": "S"},
}
CONLL = "conll"  # as conlleval reads B and I: an I that goes on with no entity begins one
SCHEMES = ("bio", "iob1", "io", *BRACKETS, CONLL, PLAIN)
AUTO = "auto"
NAME_ONE = f"--task-option tag_scheme=NAME names one of {', '.join(SCHEMES)}"
TAG = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)


class Entity(NamedTuple):
    """A type, the first word, and the one behind the last."""

    type: str
    start: int
    end: int


class Wrong(NamedTuple):
    """The word whose tag breaks a scheme, and how."""

    word: int
    why: str


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of BIO tags: a B and the I's of its type behind it.

    An I without one before it is none: seqeval's strict mode with its IOB2.
    """
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter == "B":
            found.append(Entity(kind, place, place + 1))
        elif letter == "I" and found and found[-1].end == place and found[-1].type == kind:
            found[-1] = found[-1]._replace(end=place + 1)
    return found


def spans(tags: Sequence[str]) -> list[Entity]:
    """The entities of BIO tags that a model gave.

    An I with none of its type before it begins one too, as in the pipelines of `transformers`.
    """
    return entities(_from_iob1(tags))


def is_bio(labels: Iterable[str]) -> bool:
    """Whether labels are those of entities: O, and names behind B- and I-."""
    inside = [label for label in labels if label != OUTSIDE]
    return bool(inside) and all(label[:2] in ("B-", "I-") and label[2:] for label in inside)


def to_bio(
    sentences: Sequence[Sequence[str]],
    lines: Sequence[Sequence[int]],
    source: str | Path,
    scheme: str = AUTO,
) -> tuple[list[list[str]], str]:
    """The tags of a file in BIO, and the scheme that they were in; plain ones stay as they are.

    Args:
        sentences: the tags of each.
        lines: of each tag, for errors.
        source: the file.
        scheme: one of `SCHEMES`, or "auto" for the one that all tags follow.

    Raises:
        BertfastError: a tag breaks the scheme, or all of them; the file and the line are named.
    """
    if scheme != AUTO and scheme not in SCHEMES:
        raise BertfastError(
            f"tag_scheme is {scheme!r}; it must be one of {AUTO}, {', '.join(SCHEMES)}"
        )
    places = {
        tag: line
        for row, numbers in zip(reversed(sentences), reversed(lines), strict=True)
        for tag, line in zip(reversed(row), reversed(numbers), strict=True)
    }
    if scheme == AUTO:
        scheme = _scheme_of(places, source)
    if scheme == PLAIN:
        return [list(row) for row in sentences], PLAIN
    for tag, line in places.items():
        if tag != OUTSIDE and not TAG.fullmatch(tag):
            raise BertfastError(
                f"{source}, line {line}: the tag {quoted(tag)} is no {scheme.upper()} tag, as O or "
                f"B-PER; {NAME_ONE}"
            )
    wrong = _first_wrong(sentences, scheme)
    if wrong is not None and scheme == "bio" and _first_wrong(sentences, "iob1") is None:
        wrong, scheme = None, "iob1"
    if wrong is not None:
        sentence, (word, why) = wrong
        tag = sentences[sentence][word]
        raise BertfastError(
            f"{source}, line {lines[sentence][word]}: the tag {quoted(tag)} {why}, so the tags are "
            f"no {scheme.upper()}; {NAME_ONE}"
        )
    if scheme in BRACKETS:
        letters = BRACKETS[scheme]
        return [[_from_bioes(tag, letters) for tag in row] for row in sentences], scheme
    return [
        _from_iob1(row) if scheme in ("iob1", "io", CONLL) else list(row) for row in sentences
    ], scheme


def _scheme_of(places: dict[str, int], source: str | Path) -> str:
    """The scheme that tags look like, by their letters; BIO stands for IOB1 too."""
    inside = [tag for tag in places if tag != OUTSIDE]
    letters = {tag[0] for tag in inside if TAG.fullmatch(tag)}
    plain = [tag for tag in inside if not TAG.fullmatch(tag)]
    # Parts of speech may have a name like S-X; beside O and one of a B they have not.
    if not letters or (plain and not (OUTSIDE in places and letters & set("BI"))):
        return PLAIN
    if letters <= {"I"}:
        return "io"
    if letters <= {"B", "I"}:
        return "bio"
    for scheme, known in BRACKETS.items():
        if letters <= set(known):
            return scheme
    tag = next(tag for tag in inside if tag[0] not in "BI")
    raise BertfastError(
        f"{source}, line {places[tag]}: the tag {quoted(tag)} is of another scheme than others: "
        f"the letters before '-' are {', '.join(sorted(letters))}; {NAME_ONE}"
    )


def _first_wrong(sentences: Sequence[Sequence[str]], scheme: str) -> tuple[int, Wrong] | None:
    """The first sentence with a tag that breaks a scheme."""
    for number, row in enumerate(sentences):
        wrong = (
            _wrong_brackets(row, BRACKETS[scheme]) if scheme in BRACKETS else _wrong(row, scheme)
        )
        if wrong is not None:
            return number, wrong
    return None


def _wrong(tags: Sequence[str], scheme: str) -> Wrong | None:
    """Of BIO, IOB1, IO and `CONLL`."""
    before = ""
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        known = "I" if scheme == "io" else "BI"
        if letter != OUTSIDE and letter not in known:
            return Wrong(place, f"has another letter than O, {' or '.join(known)}")
        if scheme == "bio" and letter == "I" and before != kind:
            return Wrong(place, f"follows no B-{kind} or I-{kind}")
        if scheme == "iob1" and letter == "B" and before != kind:
            return Wrong(place, "parts no entity from one of its type before it")
        before = kind
    return None


def _wrong_brackets(tags: Sequence[str], letters: dict[str, str]) -> Wrong | None:
    """Of schemes that mark the ends of entities."""
    named = {standard: letter for letter, standard in letters.items()}
    open_kind = ""
    for place, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter != OUTSIDE and letter not in letters:
            return Wrong(place, f"has another letter than O, {', '.join(letters)}")
        standard = letters.get(letter, OUTSIDE)
        if standard in "IE":
            if kind != open_kind:
                return Wrong(place, f"follows no {named['B']}-{kind} or {named['I']}-{kind}")
        elif open_kind:
            return Wrong(place, f"comes before {named['E']}-{open_kind}, where the entity ends")
        open_kind = kind if standard in "BI" else ""
    if open_kind:
        return Wrong(len(tags) - 1, f"ends a sentence without {named['E']}-{open_kind}")
    return None


def _from_iob1(tags: Sequence[str]) -> list[str]:
    """IOB1, or IO, in BIO: the first I of a type is a B."""
    found, before = [], ""
    for tag in tags:
        letter, dash, kind = tag.partition("-")
        found.append(f"B-{kind}" if letter == "I" and dash and kind != before else tag)
        before = kind
    return found


def _from_bioes(tag: str, letters: dict[str, str]) -> str:
    letter, dash, kind = tag.partition("-")
    return f"{'B' if letters[letter] in 'BS' else 'I'}-{kind}" if dash else tag
