"""Labelled rows from tables and JSON lines, their labels and token ids; and one clear error for
each that is wrong.
"""

import gzip

import pytest

from bertfast import BertfastError
from bertfast.data import labelled
from bertfast.tokenization import train_byte_level_bpe, train_unigram, train_wordpiece
from support import SHARED_DATA, needs_shared_data

TOKENIZER = train_wordpiece(["a b c d e f g h i j"], 40)


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


def test_tables_and_json_lines_give_the_same_rows(write):
    files = [
        write("a.tsv", 'sentence\tlabel\nsay "hi\t1\nb\t0\n'),
        write("a.csv", 'label,sentence\n1,"say ""hi"\n0,b\n'),
        write("a.jsonl", '{"sentence": "say \\"hi", "label": 1}\n{"sentence": "b", "label": 0}\n'),
    ]
    for file in files:
        assert [(row.text, row.label) for row in labelled.read_task(file)] == [
            ('say "hi', "1"),
            ("b", "0"),
        ]


def test_columnar_and_compressed_files_give_the_same_rows(write, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pa.table({"sentence": ['say "hi', "b"], "label": [1, 0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, str(tmp_path / "a.arrow"))
    plain = write("a.tsv", 'sentence\tlabel\nsay "hi\t1\nb\t0\n').read_bytes()
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "b.TSV.ZST").write_bytes(pa.compress(plain, codec="zstd", asbytes=True))
    for name in ("a.parquet", "a.arrow", "b.tsv.gz", "b.TSV.ZST"):
        assert labelled.is_task_file(tmp_path / name)
        assert [
            (row.line > 0, row.text, row.label) for row in labelled.read_task(tmp_path / name)
        ] == [(True, 'say "hi', "1"), (True, "b", "0")]


def test_a_saved_data_set_gives_its_names_as_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    found = labelled.read_task(tmp_path / "set", require_labels=False, label_column="label")
    assert [row.label for row in found] == ["good", "bad", ""]
    with pytest.raises(BertfastError, match="line 3: the label is empty"):
        labelled.read_task(tmp_path / "set")


@pytest.mark.parametrize("cut", [4, 30])
def test_damaged_zstandard_is_one_line(cut, tmp_path):
    pa = pytest.importorskip("pyarrow")
    data = pa.compress(b"sentence\tlabel\n" + bytes(range(32, 127)) * 20, "zstd", asbytes=True)
    (tmp_path / "a.tsv.zst").write_bytes(data[:cut])
    with pytest.raises(BertfastError, match=r"a\.tsv\.zst: cannot be read"):
        labelled.read_task(tmp_path / "a.tsv.zst")


def test_columns_can_be_named_and_have_defaults(write):
    file = write("a.tsv", "text\tother\tgold\nx\ty\tz\n")
    rows = labelled.read_task(file, pair_column="other", label_column="gold")
    assert (rows[0].text, rows[0].pair, rows[0].label) == ("x", "y", "z")


def test_labels_may_be_missing_where_they_are_not_needed(write):
    assert labelled.read_task(write("a.tsv", "text\nx\n"), require_labels=False)[0].label is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "", "empty"),
        ("a.tsv", "sentence\tlabel\n", "no rows"),
        (
            "a.tsv",
            "headline\tlabel\nx\t1\n",
            "no column 'sentence'; its columns are 'headline', 'label'",
        ),
        ("a.tsv", "sentence\tgold\nx\t1\n", "no column 'label'"),
        ("a.tsv", "sentence\tlabel\nx\t1\textra\n", "line 2: has 3 fields and the header 2"),
        ("a.tsv", "sentence\tlabel\nx\t\n", "line 2: the label is empty"),
        ("a.csv", "sentence,sentence\nx,1\n", "names 'sentence' more than once"),
        ("a.tsv", "sentence\tlabel\na\t1\n \t1\n", "line 3: the text is empty"),
        ("a.txt", "x", "must end in .tsv, .csv or .jsonl"),
        ("a.jsonl", '{"sentence": "x"}', "no column 'label'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(write, name, text, message):
    file = write(name, text)
    with pytest.raises(BertfastError, match=message) as caught:
        labelled.read_task(file)
    assert str(file) in str(caught.value)


def test_one_label_is_no_choice():
    examples = [labelled.Example(line, "x", None, "a") for line in (2, 3)]
    with pytest.raises(BertfastError, match="f.tsv: the training data has 1 label"):
        labelled.label_names(examples, "f.tsv")


def test_a_label_that_training_did_not_see_is_named():
    examples = [labelled.Example(2, "x", None, "a"), labelled.Example(7, "y", None, "c")]
    assert labelled.encode_labels(examples[:1], {"a": 0, "b": 1}, "f.tsv") == [0]
    with pytest.raises(
        BertfastError,
        match="f.tsv, line 7: the label 'c' was not seen in training; known are 'a', 'b'",
    ):
        labelled.encode_labels(examples, {"a": 0, "b": 1}, "f.tsv")


def test_an_unseen_label_lists_ten_known_ones_at_most():
    known = {f"class {number}": number for number in range(293)}
    with pytest.raises(BertfastError, match="'class 9' and 283 more$") as caught:
        labelled.encode_labels([labelled.Example(2, "x", None, "c")], known, "f.tsv")
    assert "class 10'" not in str(caught.value)


def test_a_csv_field_may_be_long(write):
    file = write("a.csv", f'sentence,label\n"{"word " * 100_000}",1\nb,0\n')
    assert len(labelled.read_task(file)[0].text) == 500_000


def test_a_blank_line_is_an_empty_text_where_no_label_is_needed(write):
    files = [
        write("a.tsv", "sentence\tlabel\n\nb\t0\n\n"),
        write("a.csv", "sentence,label\r\n\r\nb,0\r\n\r\n"),
        write("a.jsonl", '\n\n{"sentence": "b", "label": 0}\n \n'),
        write("one.tsv", "sentence\n\nb\n\n"),
        write("one.csv", "sentence\n\nb\n\n"),
    ]
    for file in files:
        rows = labelled.read_task(file, require_labels=False)
        assert [row.text for row in rows] == [*([""] * (1 + (file.suffix == ".jsonl"))), "b", ""]
        assert [row.line for row in rows] == sorted(row.line for row in rows)
    for file in files[:3]:
        assert [row.text for row in labelled.read_task(file)] == ["b"]


def test_only_line_feeds_end_a_row_of_tsv(write):
    odd = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\rb"
    with open(write("a.tsv", ""), "w", encoding="utf-8", newline="") as stream:
        stream.write(f"sentence\tlabel\r\n{odd}\t1\r\nc\t0")
    assert [row.text for row in labelled.read_task(stream.name)] == [odd, "c"]


@pytest.mark.parametrize(("value", "kind"), [('["a", "b"]', "list"), ('{"a": 1}', "object")])
def test_a_text_that_is_a_json_list_or_object_is_refused(write, value, kind):
    file = write("a.jsonl", f'{{"text": {value}}}\n')
    with pytest.raises(BertfastError, match=f"line 1: 'text' holds a JSON {kind}"):
        labelled.read_task(file, require_labels=False)


def test_texts_and_pairs_get_special_tokens_and_segments():
    one, two = labelled.encode(TOKENIZER, ["a b", "c"], [None, "d e"], 16)
    assert [TOKENIZER.id_to_token(index) for index in one.ids] == ["[CLS]", "a", "b", "[SEP]"]
    assert [TOKENIZER.id_to_token(index) for index in two.ids] == [
        "[CLS]",
        "c",
        "[SEP]",
        "d",
        "e",
        "[SEP]",
    ]
    assert two.segments == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("train", "size"), [(train_byte_level_bpe, 300), (train_unigram, 40)])
def test_inputs_are_what_the_tokenizer_makes_of_text_and_pair(train, size):
    tokenizer = train(["a b c d e f g h i j"], size)
    one, two = labelled.encode(tokenizer, ["a b", "c"], [None, "d e"], 32)
    for item, encoding in ((one, tokenizer.encode("a b")), (two, tokenizer.encode("c", "d e"))):
        assert (item.ids, item.segments) == (encoding.ids, encoding.type_ids)
    (cut,) = labelled.encode(tokenizer, ["a b c d"], ["e f g h"], 8)
    assert (len(cut.ids), cut.truncated) == (8, True)


@pytest.mark.parametrize(
    ("left", "right", "kept"), [(8, 1, (4, 1)), (1, 8, (1, 4)), (8, 8, (3, 2)), (3, 3, (3, 2))]
)
def test_the_longer_text_of_a_pair_is_cut(left, right, kept):
    (item,) = labelled.encode(TOKENIZER, ["a " * left], ["b " * right], 8)
    assert item.truncated
    assert (item.segments.count(0) - 2, item.segments.count(1) - 1) == kept


def test_what_fits_is_not_cut():
    (item,) = labelled.encode(TOKENIZER, ["a b c"], [None], 5)
    assert not item.truncated
    assert len(item.ids) == 5


@needs_shared_data
def test_sst2_reads_whole():
    assert len(labelled.read_task(SHARED_DATA / "sst2_glue" / "dev.tsv")) == 872
    with pytest.raises(BertfastError, match="a table needs a header line"):
        labelled.read_task(SHARED_DATA / "sst2" / "dev.tsv")
