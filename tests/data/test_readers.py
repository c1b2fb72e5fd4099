"""Documents from every form of text, and one clear error for every file that is none."""

import gzip
import json

import pytest

from bertfast import BertfastError
from bertfast.data.readers import read_documents
from support import SHARED_DATA, needs_shared_data


def documents(path, **options):
    return list(read_documents([path], **options))


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_a_blank_line_stands_between_documents(write):
    assert documents(write("a.txt", "\n\none\ntwo\n\n \nthree\n")) == [["one", "two"], ["three"]]


def test_byte_order_marks_and_carriage_returns_are_dropped(write):
    assert documents(write("a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo")) == [["one"], ["two"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz"])
def test_each_record_of_json_lines_is_a_document(write, name):
    text = "\n".join(json.dumps({"text": t, "id": 1}) for t in ("one\ntwo", "three", "  ")) + "\n\n"
    data = gzip.compress(text.encode()) if name.endswith("gz") else text
    assert documents(write(name, data)) == [["one", "two"], ["three"]]


def test_another_field_can_be_named(write):
    assert documents(write("a.jsonl", '{"body": "one"}'), text_field="body") == [["one"]]


def test_gzip_is_known_by_its_bytes(write):
    assert documents(write("a.txt", gzip.compress(b"one", mtime=0))) == [["one"]]


def test_several_files_come_in_order(write):
    paths = [write("a.txt", "one"), write("b.jsonl", '{"text": "two"}')]
    assert list(read_documents(paths)) == [["one"], ["two"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "the file is empty"),
        ("a.txt", " \n\n", "holds no text"),
        ("a.txt", b"ab\0cd", "binary file .a zero byte at 2"),
        ("a.txt", b"x" * 9000 + b"\0", "binary file"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"one" * 1000, mtime=0)[:-12], "damaged or cut short"),
        ("a.jsonl", '{"text": "a"}\n{oops', "line 2: is not JSON"),
        ("a.jsonl", "[1]", "line 1: is a list; each line must be a JSON object"),
        (
            "a.jsonl",
            '{"body": "a", "id": 3}',
            "no text in the field 'text'; its fields are body, id",
        ),
        ("a.jsonl", '{"text": 3}', "no text in the field 'text'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(write, name, content, message):
    path = write(name, content)
    with pytest.raises(BertfastError, match=message) as caught:
        documents(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BertfastError, match="no such file"):
        documents(tmp_path / "nope.txt")
    with pytest.raises(BertfastError, match="is a folder"):
        documents(tmp_path)


@needs_shared_data
def test_wikitext_comes_in_documents_of_several_lines():
    found = documents(SHARED_DATA / "wikitext-2" / "valid.txt")
    assert sum(len(document) for document in found) == 2461
