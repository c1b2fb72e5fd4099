"""CoNLL files and records of words and tags, whatever their columns and their scheme."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.data import tagging
from bertfast.data.columns import Columns
from bertfast.data.tagged import find_columns, is_tagged, read_sentences
from bertfast.errors import BertfastError

WORDS = [["Ann", "Lee", "sings"], ["in", "Rome"]]
BIO = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]


def read(path: Path, labels: bool = True, **columns: str) -> list[tuple[list[str], list[str]]]:
    found = find_columns(path, Columns(**columns))
    rows = read_sentences(path, found, labels)
    return [(row.words, list(row.tags or ())) for row in rows]


def write(path: Path, columns: str, between: str = "\t", blank: str = "\n") -> Path:
    """A column for each letter: words, tags, numbers, parts of speech, lemmas that are one."""
    rows = []
    for words, tags in zip(WORDS, BIO, strict=True):
        for number, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
            cell = {"w": word, "t": tag, "n": str(number), "p": "NN", "c": "B-NP"}
            rows.append(between.join(cell[letter] for letter in columns) + "\n")
        rows.append(blank)
    path.write_text("".join(rows))
    return path


@pytest.mark.parametrize("between", ["\t", " ", "   "])
@pytest.mark.parametrize("columns", ["wt", "tw", "wpct", "nwt", "npwt", "twp"])
def test_the_columns_are_found(columns: str, between: str, tmp_path: Path, capsys: object) -> None:
    path = write(tmp_path / "a.conll", columns, between)
    assert read(path) == list(zip(WORDS, BIO, strict=True))
    assert is_tagged(path)


def test_columns_that_are_given_win_and_what_was_found_is_said(tmp_path: Path, capsys: any) -> None:
    path = write(tmp_path / "a.conll", "wpct")
    assert read(path, text="2", label="3")[0] == (["NN"] * 3, ["B-NP"] * 3)
    assert capsys.readouterr().err == ""
    read(path)
    assert "words in column 1, tags in column 4" in capsys.readouterr().err


def test_documents_comments_and_blank_lines_are_no_words(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- -X- O\n\n# id = 1 of a b c\n#tag NN O\nAnn NNP B-PER\n\n \t \n\n"
        "# NN O\nRome NN B-LOC\n# NN O\n"
    )
    path.write_text(path.read_text().replace(" \t \n", "  \n"))
    assert read(path) == [
        (["#tag", "Ann"], ["O", "B-PER"]),
        (["#", "Rome", "#"], ["O", "B-LOC", "O"]),
    ]


def test_conllu_has_words_and_parts_of_speech(tmp_path: Path) -> None:
    rest = "\t_" * 5
    rows = ["# text = du chat", f"1-2\tdu\t_\t_\t_{rest}", f"1\tde\tde\tADP\t_{rest}"]
    rows += [f"2\tle\tle\tDET\t_{rest}", f"2.1\tx\tx\tX\t_{rest}", f"3\tchat\tchat\tNOUN\t_{rest}"]
    path = tmp_path / "a.conllu.gz"
    path.write_bytes(gzip.compress(("\n".join(rows) + "\n\n").encode()))
    assert read(path) == [(["de", "le", "chat"], ["ADP", "DET", "NOUN"])]


@pytest.mark.parametrize("names", [("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels")])
@pytest.mark.parametrize("as_list", [False, True])
def test_records_have_lists(names: tuple[str, str], as_list: bool, tmp_path: Path) -> None:
    rows = [dict(zip(names, row, strict=True)) for row in zip(WORDS, BIO, strict=True)]
    path = tmp_path / ("a.json" if as_list else "a.jsonl")
    text = json.dumps(rows, indent=1) if as_list else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(text)
    assert is_tagged(path)
    assert read(path) == list(zip(WORDS, BIO, strict=True))


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_data_set_has_lists_of_class_labels(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    tags = [[names.index(tag) for tag in row] for row in BIO]
    labels = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features(tokens=datasets.List(datasets.Value("string")), ner_tags=labels)
    data = datasets.Dataset.from_dict({"tokens": WORDS, "ner_tags": tags}, features=features)
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a")
    data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    assert is_tagged(path)
    assert read(path) == list(zip(WORDS, BIO, strict=True))


def test_a_word_list_alone_can_be_predicted(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("#Ann\nLee\n\nRome\n")
    assert read(path, labels=False) == [(["#Ann", "Lee"], []), (["Rome"], [])]


ENTITIES = st.lists(
    st.one_of(st.just(("", 1)), st.tuples(st.sampled_from(["PER", "LOC-X"]), st.integers(1, 3))),
    min_size=1,
    max_size=8,
)
LETTERS = {"bioes": "BIES", "bilou": "BILU", "bmes": "BMES", "bio": "BIIB"}


def written(chunks: list[tuple[str, int]], scheme: str) -> list[str]:
    """The tags of chunks, of which those without a type are outside."""
    tags: list[str] = []
    for kind, length in chunks:
        if not kind:
            tags += ["O"] * length
        elif scheme in ("io", "iob1"):
            again = tags and tags[-1][2:] == kind and scheme == "iob1"
            tags += [f"{'B' if again else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
        else:
            first, inside, last, single = LETTERS[scheme]
            letters = single if length == 1 else first + inside * (length - 2) + last
            tags += [f"{letter}-{kind}" for letter in letters]
    return tags


@given(chunks=ENTITIES, scheme=st.sampled_from(["bio", "iob1", "bioes", "bilou", "bmes"]))
@settings(deadline=None, max_examples=200)
def test_every_scheme_becomes_bio(chunks: list[tuple[str, int]], scheme: str) -> None:
    wanted = written(chunks, "bio")
    found, _ = tagging.to_bio([written(chunks, scheme)], [range(len(wanted))], "f", scheme)
    assert found == [wanted]
    # What a scheme has in common with another one is told as that.
    auto, told = tagging.to_bio([written(chunks, scheme)], [range(len(wanted))], "f")
    assert auto == [wanted]
    assert told in (scheme, "io", "plain", "bio", "iob1", "bioes")


def test_parts_of_speech_stay_as_they_are() -> None:
    tags = [["NN", ",", "-LRB-", "S-X"], ["VB", "B-Y"]]
    assert tagging.to_bio(tags, [range(4), range(2)], "f") == (tags, "plain")


def test_tags_as_conlleval_reads_them_can_be_asked_for() -> None:
    found, _ = tagging.to_bio([["O", "I-X", "I-X", "B-X", "I-Y"]], [range(5)], "f", "conll")
    assert found == [["O", "B-X", "I-X", "B-X", "B-Y"]]


WRONG = [
    ("O I-PER O\nB-PER", "line 2: the tag 'I-PER' follows no B-PER or I-PER"),
    ("B-PER I-LOC\nI-LOC B-PER", "line 2: the tag 'I-LOC' follows no B-LOC or I-LOC"),
    ("B-PER PER O", "line 2: the tag 'PER' is no BIO tag"),
    ("B-PER E-PER B-PER O", "line 4: the tag 'O' comes before E-PER"),
    ("B-PER E-PER S-PER E-PER", "line 4: the tag 'E-PER' follows no B-PER or I-PER"),
    ("S-PER B-PER", "line 2: the tag 'B-PER' ends a sentence without E-PER"),
    ("B-PER E-PER U-PER L-PER", "is of another scheme than others"),
]


@pytest.mark.parametrize(("tags", "said"), WRONG)
def test_a_tag_that_breaks_the_scheme_is_named_with_its_line(
    tags: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.conll"
    sentences = [row.split() for row in tags.split("\n")]
    path.write_text("\n".join("".join(f"w{tag}\t{tag}\n" for tag in row) for row in sentences))
    with pytest.raises(BertfastError, match="a.conll, line") as error:
        read(path)
    assert said in str(error.value)
    assert "tag_scheme" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tO\nb\n", "line 2: has 1 columns and most lines have 2"),
        ("a\tO\nb\t\n", "line 2: the tag is empty"),
        ("\n\n", "holds no sentences"),
        ("a\nb\n", "line 1: has 1 column; words and tags are wanted"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content)
    with pytest.raises(BertfastError) as error:
        read(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "line 1: has 1 tokens and 2 tags"),
        ({"tokens": "a", "tags": ["O"]}, "'tokens' holds 'a'; a list of words is wanted"),
        ({"tokens": ["a"]}, "line 1: has no column 'tags'"),
        ({"tokens": [["a"]], "tags": ["O"]}, "a list of words is wanted"),
        ({"tokens": [], "tags": []}, "line 1: has no words"),
    ],
)
def test_records_that_cannot_be_used_are_one_line(row: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(BertfastError) as error:
        read(path)
    assert said in str(error.value)


def test_no_word_of_a_random_file_is_lost(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [
        [draw.choice(["#a", "-", "b#", "1", "x"]) for _ in range(draw.randint(1, 6))]
        for _ in range(40)
    ]
    tags = [[draw.choice(["O", "B-X"]) for _ in row] for row in words]
    path = tmp_path / "a.conll"
    path.write_text(
        "\n".join(
            "".join(f"{w}\t{t}\n" for w, t in zip(*rows, strict=True))
            for rows in zip(words, tags, strict=True)
        )
    )
    assert read(path) == list(zip(words, tags, strict=True))
