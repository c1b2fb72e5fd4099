"""The note: its page says what the results' files say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.note.__main__ import RESULTS, read_results
from benchmarks.note.page import write_note
from benchmarks.note.parts import PARTS, SIDES, _kind
from support import REPOSITORY

POINT = {"mean": 0.5, "interval": [0.4, 0.6], "values": [0.5], "words": "accuracy"}
POINTS: dict[str, Any] = {
    "tokens": [{"tokens": 7000, **POINT}, {"tokens": 0, **POINT}],
    "labels": [{"row": row, "labels": n, **POINT} for row in ("a $b$", "c") for n in (32, 100)],
    "context": [{"class": "all words", "words": 9, **dict.fromkeys(SIDES, POINT)}],
    "variants": [{"row": "spans", **POINT}],
    "probes": {"similarity": [POINT, POINT], "entities": [POINT, POINT]},
}


def test_the_committed_page_is_what_the_results_give(tmp_path: Path) -> None:
    write_note(tmp_path / "note.md", read_results(RESULTS))
    committed = (REPOSITORY / "docs" / "note.md").read_text(encoding="utf-8")
    assert (tmp_path / "note.md").read_text(encoding="utf-8") == committed


def test_every_part_has_its_table_and_its_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    facts = {"command": "run me", "commit": "abc", "machine": "two cores", "seconds": 3.0}
    assert POINTS.keys() == PARTS.keys()
    write_note(tmp_path / "note.md", {name: {**facts, "points": POINTS[name]} for name in POINTS})
    text = (tmp_path / "note.md").read_text(encoding="utf-8")
    assert "Not measured" not in text
    assert text.count("0.5000 [0.4000, 0.6000]") == 2 + 4 + 3 + 1 + 4
    assert "| 7,000 |" in text
    assert len(list((tmp_path / "results").glob("note-*.svg"))) == 5


@pytest.mark.parametrize(
    ("word", "kind"), [("the", "determiner"), ("house", "content word"), (",", "punctuation")]
)
def test_words_have_classes(word: str, kind: str) -> None:
    assert _kind(word) == kind
