"""English that every Python ships: the help topics and the standard library's docstrings, read
without importing it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Folders whose docstrings are not prose about a library: tests, generated codecs, bundled wheels.
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
DEV_SHARE = 0.35  # of a part's docstrings, at most
MIN_DEV, MIN_TRAIN_FILES = 15, 2
MAX_CLASSES = 12


@dataclass(frozen=True)
class Docstring:
    """A docstring, the file it is in (relative to the library), and the part of the library that
    the file belongs to.
    """

    text: str
    file: str
    part: str


@dataclass(frozen=True)
class Task:
    """Which part of the library a docstring comes from, split by source file."""

    labels: list[str]
    train: list[Docstring]
    dev: list[Docstring]


def docstrings() -> list[Docstring]:
    """Every docstring of the standard library of ``MIN_WORDS`` words at least, in order of file;
    repeated ones once.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found, seen = [], set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if (
            any(part in LEFT_OUT for part in parts)
            or parts[0].split(".")[0] not in sys.stdlib_module_names
        ):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and bad-input samples
        nodes = [
            node
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        # In the order of the file, a class before its methods: neighbours belong together for next
        # sentence prediction.
        for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
            text = ast.get_docstring(node) or ""
            if len(text.split()) >= MIN_WORDS and text not in seen:
                seen.add(text)
                found.append(Docstring(text, "/".join(parts), parts[0].removesuffix(".py")))
    return found


def help_topics() -> list[str]:
    """The language reference as ``help()`` prints it."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def make_task(found: list[Docstring]) -> Task:
    """The packages with the most docstrings in enough files become labels; whole files go to one
    side or the other.

    A file's side is decided by a hash of its name, so that it is the same on every machine and for
    every seed.
    """
    by_part: dict[str, list[Docstring]] = {}
    for item in found:
        if "/" in item.file:  # a package, with several files
            by_part.setdefault(item.part, []).append(item)
    sides: dict[str, tuple[list[Docstring], list[Docstring]]] = {}
    for part, items in by_part.items():
        dev_files = _dev_files(items)
        train = [item for item in items if item.file not in dev_files]
        dev = [item for item in items if item.file in dev_files]
        if len(dev) >= MIN_DEV and len({item.file for item in train}) >= MIN_TRAIN_FILES:
            sides[part] = train, dev
    largest = sorted(sides, key=lambda part: (-len(sides[part][0]), part))[:MAX_CLASSES]
    labels = sorted(largest)
    return Task(
        labels,
        [item for part in labels for item in sides[part][0]],
        [item for part in labels for item in sides[part][1]],
    )


def _dev_files(items: list[Docstring]) -> set[str]:
    """Files, in order of their names' hashes, each that fits into ``DEV_SHARE`` of the
    docstrings.
    """
    counts: dict[str, int] = {}
    for item in items:
        counts[item.file] = counts.get(item.file, 0) + 1
    chosen, total = set(), 0
    for file in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        # One file holds most of some small parts (urllib/request.py): it is for training, or
        # nothing would be left to train on.
        if total + counts[file] <= DEV_SHARE * len(items):
            chosen.add(file)
            total += counts[file]
    return chosen


def pretraining_documents(found: list[Docstring], held_out: set[str]) -> Iterator[str]:
    """The help topics, and the docstrings of each file that is not held out as one document, lines
    joined to paragraphs.
    """
    yield from filter(None, map(_paragraphs, help_topics()))
    by_file: dict[str, list[str]] = {}
    for item in found:
        if item.file not in held_out:
            by_file.setdefault(item.file, []).append(_paragraphs(item.text))
    yield from ("\n".join(texts) for texts in by_file.values())


def _paragraphs(text: str) -> str:
    """A line for each paragraph, with no blank line: blank lines stand between documents. Rules
    under headings go.
    """
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip():
            blocks.append([])
        elif any(character.isalnum() for character in line):
            blocks[-1] += line.split()
    return "\n".join(" ".join(words) for words in blocks if words)
