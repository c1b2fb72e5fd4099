"""English that every Python ships, read without importing it, and the gaps made in it.

The text is the help topics, and the standard library's docstrings and comments. The task is to tell
which preposition stood in a gap.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Folders whose text is not prose about a library: tests, generated codecs, bundled wheels.
LEFT_OUT = (
    "test",
    "tests",
    "idle_test",
    "encodings",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "_vendor",
)
MIN_WORDS = 5
PREPOSITIONS = ("by", "for", "from", "in", "of", "on", "to", "with")
GAP = "[MASK]"
WINDOW = 12  # words on each side of a gap, at most
MARGIN = 3  # words on each side of a gap, at least
SHARES = {"test": 0.12, "dev": 0.08}  # of the documents; the rest are "train"


@dataclass(frozen=True)
class Document:
    """A help topic, or what a file of the library says, paragraph by paragraph."""

    name: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Words around a gap, `GAP` in its place, and the preposition that stood there."""

    text: str
    word: str


@dataclass(frozen=True)
class Task:
    """Gaps by side, and the documents of the training side, which alone are pretrained on.

    Each side has the same number of gaps of each preposition, in turn.
    """

    train: list[Gap]
    dev: list[Gap]
    test: list[Gap]
    documents: list[Document]
    held_out: list[Document]


def write_task(folder: Path, task: Task) -> list[str]:
    """Writes ``corpus.txt``, a blank line between documents, and the gaps of each side as a CSV
    file; returns the documents' texts.
    """
    texts = ["\n".join(document.paragraphs) for document in task.documents]
    (folder / "corpus.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for name, gaps in (("train", task.train), ("dev", task.dev), ("test", task.test)):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((gap.text, gap.word) for gap in gaps)
    return texts


def documents() -> list[Document]:
    """The help topics and the library's files. A paragraph of several documents is in the first
    alone.
    """
    seen: set[str] = set()
    found = []
    for name, texts in [*_help_topics(), *_files()]:
        paragraphs = [part for text in texts for part in _paragraphs(text) if part not in seen]
        unique = tuple(dict.fromkeys(paragraphs))
        seen.update(unique)
        if unique:
            found.append(Document(name, unique))
    return found


def make_task(found: Sequence[Document]) -> Task:
    """Whole documents go to one side or another.

    A document's side and the order of gaps come from hashes, so that they are the same on every
    machine and for every seed.
    """
    sides: dict[str, list[Document]] = {"train": [], "dev": [], "test": []}
    for document in found:
        sides[_side(document.name)].append(document)
    seen: set[tuple[str, ...]] = set()
    gaps = {side: _balanced(_gaps(sides[side], seen)) for side in sides}
    return Task(**gaps, documents=sides["train"], held_out=sides["dev"] + sides["test"])


def _help_topics() -> Iterator[tuple[str, list[str]]]:
    """The language reference as ``help()`` prints it."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"help/{name}", [text]


def _files() -> Iterator[tuple[str, list[str]]]:
    """The name of each file of the library, and its docstrings and comments in order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if (
            any(part in LEFT_OUT for part in parts)
            or parts[0].split(".")[0] not in sys.stdlib_module_names
        ):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and bad-input samples
        texts = sorted(_texts(tree, source.splitlines()))
        yield "/".join(parts), [text for _, text in texts if len(text.split()) >= MIN_WORDS]


def _texts(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, and of each run of comment lines."""
    in_string: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield getattr(node, "lineno", 0), ast.get_docstring(node) or ""
        elif isinstance(node, (ast.Constant, ast.JoinedStr)):
            in_string.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    comment: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        bare = line.strip()
        if bare.startswith("#") and number not in in_string:
            comment.append(bare.lstrip("#!:"))
        elif comment:
            yield number - len(comment), "\n".join(comment)
            comment = []


def _paragraphs(text: str) -> list[str]:
    """The text's paragraphs, each as one line. Rules under headings go."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip():
            blocks.append([])
        elif any(character.isalnum() for character in line):
            blocks[-1] += line.split()
    return [" ".join(words) for words in blocks if words]


def _side(name: str) -> str:
    place = _hash(name) / 2**256
    for side, share in SHARES.items():
        if place < share:
            return side
        place -= share
    return "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


def _gaps(found: Iterable[Document], seen: set[tuple[str, ...]]) -> dict[str, list[Gap]]:
    """The gaps of each preposition.

    Args:
        found: documents.
        seen: the nearest words of gaps that were made before, with which no other is made; added
            to. So a phrase that the library repeats is on one side alone.
    """
    gaps: dict[str, list[Gap]] = {word: [] for word in PREPOSITIONS}
    for words in (paragraph.split() for document in found for paragraph in document.paragraphs):
        for place in range(MARGIN, len(words) - MARGIN):
            if words[place] not in gaps:
                continue
            before, after = words[max(0, place - WINDOW) : place], words[place + 1 :][:WINDOW]
            nearest = (*before[-MARGIN:], *after[:MARGIN])
            if nearest not in seen and GAP not in before + after:
                seen.add(nearest)
                gaps[words[place]].append(Gap(" ".join([*before, GAP, *after]), words[place]))
    return gaps


def _balanced(gaps: dict[str, list[Gap]]) -> list[Gap]:
    """As many gaps of each preposition as there are of the rarest, one of each in turn."""
    ordered = [sorted(own, key=lambda gap: _hash(gap.text)) for own in gaps.values()]
    return [gap for row in zip(*ordered, strict=False) for gap in row]
