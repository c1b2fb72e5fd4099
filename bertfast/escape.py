"""Text of any origin (labels, names of files and columns) made safe to write: a function a format.

What each returns shows the text and carries no markup of its own. YAML, JSON and CSV are written by
libraries, which quote by themselves.
"""

from __future__ import annotations

import html as _html
import re
import unicodedata

# They turn the order of what follows, so that a name could pass for another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: object) -> str:
    """The text with each character that would control the output shown by its code."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(text)
    )


def one_line(text: object) -> str:
    """The visible text on one line, a run of spaces and line ends being one space."""
    return visible(" ".join(str(text).split()))


def markdown(text: object) -> str:
    """A code span, whose content no Markdown renderer reads as markup or as an address.

    It belongs in paragraphs, lists and headings, not in tables: renderers differ on a pipe in a
    code span there.
    """
    content = one_line(text) or "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    pad = " " if content[0] == "`" or content[-1] == "`" else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def html(text: object) -> str:
    """For the content of an element, or of an attribute in quotes."""
    return _html.escape(visible(text))


def mathtext(text: object) -> str:
    """For a text in a matplotlib figure, which reads what stands between dollars as mathematics."""
    return one_line(text).replace("$", r"\$")
