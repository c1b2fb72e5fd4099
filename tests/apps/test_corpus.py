"""The demo's text: what is taken from this Python, and that nothing of the held-out side is trained
on.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from bertfast.apps import corpus
from bertfast.apps.corpus import GAP, PREPOSITIONS, Document


@pytest.fixture(scope="module")
def found() -> list[Document]:
    return corpus.documents()


@pytest.fixture(scope="module")
def task(found: list[Document]) -> corpus.Task:
    return corpus.make_task(found)


def test_every_paragraph_occurs_once(found: list[Document]) -> None:
    paragraphs = [paragraph for document in found for paragraph in document.paragraphs]
    assert len(paragraphs) > 10_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(paragraph == " ".join(paragraph.split()) != "" for paragraph in paragraphs)


def test_docstrings_and_comments_are_taken_and_strings_are_not() -> None:
    source = '''"""What the file is for."""
# A comment of
#   two lines.
#
# And another paragraph.
TEMPLATE = """
# no comment at all
"""


def function():  # beside code
    """What it does."""
    # Why it does so.
'''
    texts = [text for _, text in sorted(corpus._texts(ast.parse(source), source.splitlines()))]
    assert [corpus._paragraphs(text) for text in texts if text] == [
        ["What the file is for."],
        ["A comment of two lines.", "And another paragraph."],
        ["What it does."],
        ["Why it does so."],
    ]


def test_each_side_has_every_preposition_equally_often(task: corpus.Task) -> None:
    for side, least in ((task.train, 4000), (task.dev, 200), (task.test, 500)):
        assert len(side) >= least
        assert len(set(Counter(gap.word for gap in side).values())) == 1
        assert {gap.word for gap in side[: len(PREPOSITIONS)]} == set(PREPOSITIONS)


def test_a_gap_shows_its_place_and_not_its_word() -> None:
    words = [f"w{number}" for number in range(40)]
    words[20] = "of"
    gaps = corpus._gaps([Document("one", (" ".join(words),))], set())
    around = [*words[20 - corpus.WINDOW : 20], GAP, *words[21 : 21 + corpus.WINDOW]]
    assert gaps["of"] == [corpus.Gap(" ".join(around), "of")]
    assert not any(own for word, own in gaps.items() if word != "of")


@pytest.mark.parametrize("text", ["of two words here", "two words of", f"a {GAP} b c of d e f g"])
def test_a_gap_needs_words_on_both_sides_and_no_second_gap(text: str) -> None:
    assert not any(corpus._gaps([Document("one", (text,))], set()).values())


def phrases(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Each run of as many words as a gap has at least, with its own."""
    return zip(*(words[start:] for start in range(2 * corpus.MARGIN + 1)), strict=False)


def test_nothing_of_the_held_out_side_is_trained_on(
    found: list[Document], task: corpus.Task
) -> None:
    names = [{document.name for document in side} for side in (task.documents, task.held_out)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {document.name for document in found}
    read = {
        phrase
        for document in task.documents
        for line in document.paragraphs
        for phrase in phrases(line.split())
    }
    for gap in task.dev + task.test:
        words = gap.text.split()
        place = words.index(GAP)
        words[place] = gap.word
        assert tuple(words[place - corpus.MARGIN : place + corpus.MARGIN + 1]) not in read


def test_the_text_to_pretrain_on_is_of_the_expected_size(task: corpus.Task) -> None:
    size = sum(len(line.encode()) for document in task.documents for line in document.paragraphs)
    assert 1.5e6 < size < 5e6


def test_the_split_is_the_same_each_time(found: list[Document], task: corpus.Task) -> None:
    assert corpus.make_task(list(found)) == task
