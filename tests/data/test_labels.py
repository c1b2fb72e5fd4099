"""Labels that name classes are taken as they are; whatever looks like something else is refused."""

from __future__ import annotations

import csv
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast import BertfastError
from bertfast.data import labelled
from bertfast.data.labels import class_names
from support import SHARED_DATA, needs_shared_data


def names(*labels: str, times: int = 4) -> list[str]:
    """The classes of labels that each occur in so many rows."""
    rows = [label for label in labels for _ in range(times)]
    return class_names(enumerate(rows, 2), "f.tsv")


@pytest.mark.parametrize(
    "labels",
    [
        ("0", "1"),
        ("-1", "0", "1"),
        ("1", "2", "3", "4", "5"),
        ("0", "100", "10432"),
        ("007", "042"),
        ("neg", "pos"),
        ("False", "True"),
        ("-", "contradiction", "entailment"),
        ("18-24", "25-34", "65+"),
        ("2024-01-01", "v3.11"),
        ("[OTHER]", "[UNK]"),
        ("Health, Fitness", "Politics; World"),
        ("C", "C#", "C++"),
        ("sports", "sports/football"),
        ("nan", "zh"),
        ("na\u00efve", "ٱلْعَرَبِيَّة", "日本語"),
        tuple(map(str, range(150))),
    ],
)
def test_words_and_whole_numbers_of_few_values_are_classes(labels: tuple[str, ...]) -> None:
    assert set(names(*labels, times=6)) == set(labels)


def test_a_few_rows_are_enough_of_few_classes() -> None:
    assert names("1", "0", times=1) == ["0", "1"]
    assert names(*"54321", times=1) == list("12345")


def test_numbers_are_in_order_of_size_and_words_of_spelling() -> None:
    assert names("10", "9", "-1") == ["-1", "9", "10"]
    assert names("nan", "inf", "b", "B2") == ["B2", "b", "inf", "nan"]


@pytest.mark.parametrize(
    "odd",
    [
        *("0.0", "1.0", "0.00", "0.5", ".5", "5.", "-0.25", "\u22120.25", "1e-3", "1E5", "+2.5e+3"),
        *("nan", "NaN", "inf", "-inf", "Infinity", "\u0663.\u0665"),
    ],
)
def test_numbers_that_are_not_whole_look_like_a_regression(odd: str) -> None:
    for others in ((), ("0", "1"), ("0.25",)):
        with pytest.raises(BertfastError, match="f.tsv, line .* is no whole number: .*regression"):
            names(odd, *others)


def test_floats_are_targets_whatever_their_number_and_form() -> None:
    draw = random.Random(0)
    floats = [draw.uniform(0, 5) for _ in range(300)]
    for form in (str, "{:.2f}".format, "{:.1f}".format, "{:e}".format):
        with pytest.raises(BertfastError, match="targets of a regression"):
            class_names(enumerate(map(form, floats), 2), "f.tsv")
    with pytest.raises(BertfastError, match="no whole number"):
        names("0", "0.00", "0.000")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("1", "0", "N/A"), "'N/A' is a word, and '1' in line 2 a number"),
        (("pos", "1", "nan"), "'pos' is a word, and '1' in line 6 a number"),
        (("0.5", "pos"), "'pos' is a word, and '0.5' in line 2 a number"),
        (("True", "1"), "'True' is a word"),
    ],
)
def test_numbers_beside_words_are_refused(labels: tuple[str, ...], said: str) -> None:
    with pytest.raises(BertfastError, match=said):
        names(*labels)


@pytest.mark.parametrize(
    "label",
    [
        *("['a', 'b']", '["a", "b"]', "['a']", "[]", "[1, 0]", "[0 1 0]", "['a' 'b']", "( 'a', )"),
        *("{'a': 1}", '{"a"}', "{}", "[a, b]", "[[1], [2]]"),
    ],
)
def test_a_list_in_a_cell_is_several_labels(label: str) -> None:
    with pytest.raises(BertfastError, match="looks like a list of labels; finetune takes one"):
        names("a", label, "b")


@pytest.mark.parametrize("label", ["3,27", "3, 27", "0;1", "0|1|0", "0 1 0", "0,5", "1,000"])
def test_several_numbers_in_a_cell_are_refused(label: str) -> None:
    with pytest.raises(BertfastError, match="looks like several numbers"):
        names("1", label)


@pytest.mark.parametrize("separator", [",", ", ", ";", " | "])
def test_labels_that_recur_between_separators_are_several(separator: str) -> None:
    with pytest.raises(BertfastError, match=r"several labels between '[,;|]', for 'b' is in 'b'"):
        names(f"a{separator}b", "b")
    with pytest.raises(BertfastError, match="looks like several labels"):
        names(f"a{separator}b", f"b{separator}c", "d")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("pos", "Pos"), ("very good", "very  good"), ("a\u00a0b", "a b"), ("1", "01")),
        *(("1", "+1"), ("0", "-0"), ("caf\u00e9", "cafe\u0301"), ("pos", "pos\u200b")),
    ],
)
def test_one_class_in_two_spellings_is_refused(one: str, other: str) -> None:
    with pytest.raises(BertfastError, match="line 6.*in line 2 differ in spelling alone"):
        names(one, other)


def test_spaces_around_a_label_do_not_count(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,pos\ny,pos \nz, neg\n")
    assert labelled.label_names(labelled.read_task(tmp_path / "a.csv")) == ["neg", "pos"]


def test_labels_that_are_nearly_all_different_are_no_classes() -> None:
    with pytest.raises(BertfastError, match="40 different ones in 40 rows: .* texts or ids"):
        names(*(f"text number {row} of many" for row in map(chr, range(200, 240))), times=1)
    with pytest.raises(BertfastError, match="targets of a regression or ids"):
        names(*map(str, range(40)), times=1)


def test_numbers_of_many_values_are_classes_only_where_they_count_from_0_or_1(capfd) -> None:
    for numbers in (range(1, 78), range(150)):
        assert len(names(*map(str, numbers), times=5)) == len(numbers)
        assert "if they are scores, this is no regression" in capfd.readouterr().err
    for numbers, times in ((range(101), 3), (range(1990, 2021), 50), (range(0, 100, 2), 50)):
        with pytest.raises(BertfastError, match="different whole numbers in .* counts or ids"):
            names(*map(str, numbers), times=times)


def test_a_label_that_may_mean_a_missing_one_is_said(capfd) -> None:
    names("nan", "zh", "none of these")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "4 row(s) have the label 'nan'" in said


def test_a_long_label_is_cut_in_the_error() -> None:
    with pytest.raises(BertfastError) as caught:
        names("[1, " + "2, " * 10_000 + "]", "a")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["a", "b"], "'label' holds a JSON list"),
        (["a"], "'label' holds a JSON list"),
        ({"a": 1}, "'label' holds a JSON object"),
        (None, "the label is empty"),
        ("", "the label is empty"),
        (0.5, "no whole number"),
        (1.0, "no whole number"),
        (float("nan"), "no whole number"),
        ("['a', 'b']", "list of labels"),
        (True, "is a word"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_json_values_that_are_no_class_are_refused(value: object, said: str, tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": "x", "label": 0}, {"text": "y", "label": 1}, {"text": "z", "label": value}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BertfastError, match=f"a.jsonl, line .*{said}"):
        labelled.label_names(labelled.read_task(file), file)


def test_json_truth_values_are_classes(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "label": true}\n{"text": "y", "label": false}\n')
    assert labelled.label_names(labelled.read_task(file)) == ["False", "True"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_lists_in_tables_are_refused(name: str, tmp_path) -> None:
    with open(tmp_path / name, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter="," if name == "a.csv" else "\t", quotechar='"')
        writer.writerows([["text", "label"], ["x", "['a', 'b']"], ["y", "['c', 'd']"]])
    with pytest.raises(BertfastError, match="list of labels"):
        labelled.label_names(labelled.read_task(tmp_path / name))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30))
def test_any_labels_are_taken_in_order_or_refused_in_one_error(labels: list[str]) -> None:
    def answer(order: list[str]) -> list[str] | str:
        try:
            return class_names(enumerate(order), "f.tsv")
        except BertfastError as error:
            return str(error)

    found, backwards = answer(labels), answer(labels[::-1])
    if isinstance(found, list):
        assert set(found) == set(labels)
        assert found == backwards
    else:
        assert found.startswith("f.tsv")
        assert isinstance(backwards, str)


@needs_shared_data
def test_the_targets_of_real_data_are_told_apart() -> None:
    sick = (SHARED_DATA / "sick" / "SICK_train.txt").read_text().splitlines()[1:]
    columns = list(zip(*(line.split("\t") for line in sick), strict=True))
    assert class_names(enumerate(columns[4], 2), "SICK") == [
        "CONTRADICTION",
        "ENTAILMENT",
        "NEUTRAL",
    ]
    for column in (columns[0], columns[1], columns[3]):
        with pytest.raises(BertfastError):
            class_names(enumerate(column, 2), "SICK")
    assert labelled.label_names(labelled.read_task(SHARED_DATA / "sst2_glue" / "dev.tsv")) == [
        "0",
        "1",
    ]
