"""The demo's text: what is taken from this Python, and that nothing of the test side is trained
on.
"""

from __future__ import annotations

import pytest

from bertfast.apps import corpus


@pytest.fixture(scope="module")
def found() -> list[corpus.Docstring]:
    return corpus.docstrings()


@pytest.fixture(scope="module")
def task(found: list[corpus.Docstring]) -> corpus.Task:
    return corpus.make_task(found)


def test_every_docstring_has_words_and_occurs_once(found: list[corpus.Docstring]) -> None:
    assert len(found) > 5000
    assert len({item.text for item in found}) == len(found)
    assert all(len(item.text.split()) >= corpus.MIN_WORDS for item in found)


def test_there_are_enough_classes_on_both_sides(task: corpus.Task) -> None:
    assert 8 <= len(task.labels) <= corpus.MAX_CLASSES
    assert task.labels == sorted(set(task.labels))
    for side in (task.train, task.dev):
        assert {item.part for item in side} == set(task.labels)


def test_no_file_is_on_both_sides(task: corpus.Task) -> None:
    assert not {item.file for item in task.train} & {item.file for item in task.dev}
    assert not {item.text for item in task.train} & {item.text for item in task.dev}


def test_pretraining_reads_nothing_of_the_held_out_files(
    found: list[corpus.Docstring], task: corpus.Task
) -> None:
    held_out = {item.file for item in task.dev}
    documents = list(corpus.pretraining_documents(found, held_out))
    without = [item for item in found if item.file not in held_out]
    assert documents == list(corpus.pretraining_documents(without, set()))
    assert 1.5e6 < sum(len(text.encode()) for text in documents) < 4e6


def test_documents_have_no_blank_line_in_them(found: list[corpus.Docstring]) -> None:
    for text in corpus.pretraining_documents(found, set()):
        assert text
        assert all(line.strip() == line != "" for line in text.split("\n"))


def test_the_split_is_the_same_each_time(found: list[corpus.Docstring], task: corpus.Task) -> None:
    again = corpus.make_task(list(found))
    assert (again.labels, again.train, again.dev) == (task.labels, task.train, task.dev)
