"""A corpus is found wherever it lies, and read in pieces of bounded size that lose nothing."""

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import BertfastError
from bertfast.data.corpus import Lines, Part, _lines, _plain_pieces, find_parts, read_pieces
from bertfast.data.readers import read_documents


def documents(pieces):
    """Pieces put together again."""
    found = []
    for piece in pieces:
        if piece.goes_on:
            found[-1] += piece.lines
        else:
            found.append(list(piece.lines))
    return found


def pieces_of(path, **options):
    (part,) = find_parts([path])
    return [piece for piece, _ in read_pieces(part, **options)]


@pytest.fixture
def texts(tmp_path):
    """The same two documents in every form that has no need of an extra."""
    plain = "One fox.\n Two dens! \n\n\nThree dogs\n"
    records = [{"text": "One fox.\nTwo dens!"}, {"text": " "}, {"text": "Three dogs"}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text(plain)
    (folder / "deeper" / "b.jsonl").write_text(lines)
    (folder / "deeper" / "c.json").write_text(json.dumps(records))
    (folder / "d.txt.gz").write_bytes(gzip.compress(plain.encode()))
    (folder / "README.md").write_text("no text of the corpus")
    (folder / ".hidden.txt").write_text("nor this")
    return folder


def test_a_folder_and_a_glob_give_their_files_by_name(texts):
    names = [part.name.rpartition("/")[2] for part in find_parts([texts])]
    assert names == ["a.txt", "d.txt.gz", "b.jsonl", "c.json"]
    assert [part.name for part in find_parts([f"{texts}/*.txt"])] == [str(texts / "a.txt")]
    found = find_parts([f"{texts}/**/*.js*", texts / "README.md"])
    assert [part.name.rpartition("/")[2] for part in found] == ["b.jsonl", "c.json", "README.md"]


def test_every_form_holds_the_same_documents(texts):
    for part in find_parts([texts]):
        found = documents(piece for piece, _ in read_pieces(part))
        assert found == [["One fox.", "Two dens!"], ["Three dogs"]], part.name


def test_parquet_arrow_zstandard_too(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"other": [1, 2], "text": ["One fox.\nTwo dens!", "Three dogs"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with arrow.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table)
    with arrow.output_stream(str(tmp_path / "c.txt.zst"), compression="zstd") as sink:
        sink.write(b"One fox.\nTwo dens!\n\nThree dogs")
    for name in ("a.parquet", "b.arrow", "c.txt.zst"):
        assert documents(pieces_of(tmp_path / name)) == [["One fox.", "Two dens!"], ["Three dogs"]]
    with pytest.raises(BertfastError, match="line 1: has no text in the field 'other'"):
        pieces_of(tmp_path / "a.parquet", text_field="other")
    with pytest.raises(BertfastError, match="has no text in the field 'x'; its fields are other"):
        pieces_of(tmp_path / "a.parquet", text_field="x")


@pytest.mark.slow
def test_a_folder_that_datasets_saved_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = {"text": ["One fox.\nTwo dens!", "Three dogs"]}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "saved")
    assert documents(pieces_of(tmp_path / "saved")) == [["One fox.", "Two dens!"], ["Three dogs"]]


def test_an_address_is_read_by_its_file_system(texts):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in texts.rglob("*.*"):
        if path.is_file():
            memory.pipe_file(f"/texts/{path.name}", path.read_bytes())
    found = find_parts(["memory://texts"])
    assert [part.name for part in found] == [
        f"memory:///texts/{name}" for name in ("a.txt", "b.jsonl", "c.json", "d.txt.gz")
    ]
    assert next(part.size for part in found) == (texts / "a.txt").stat().st_size
    for part in [*found, *find_parts(["memory://texts/*.gz", "memory://texts/a.txt"])]:
        whole = documents(piece for piece, _ in read_pieces(part))
        assert whole == [["One fox.", "Two dens!"], ["Three dogs"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://nowhere/a.txt", "memory://nowhere/a.txt: no such file"),
        ("memory://nowhere/*.txt", "there is no file of text"),
        ("carrier-pigeon://a/b", "cannot be reached .*Protocol not known"),
        ("none/*.txt", "matches no file"),
        ("none/a.txt", "no such file"),
        ("none", "no such file"),
    ],
)
def test_what_is_not_there_is_said(name, message):
    with pytest.raises(BertfastError, match=message):
        find_parts([name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "holds no text"),
        (b"a\0b", "is a binary file"),
        (b"caf\xe9", "is not UTF-8"),
        (gzip.compress(b"One fox." * 1000, mtime=0)[:-9], "gzip data is damaged or cut short"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BertfastError, match=message):
        pieces_of(tmp_path / "a.txt")


def test_a_truncated_parquet_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BertfastError, match="cannot be read as Parquet"):
        pieces_of(tmp_path / "a.parquet")


LINES = st.lists(st.text("ab \t", max_size=12).map(lambda text: text + "\n"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(LINES, st.integers(20, 40))
def test_pieces_make_the_documents_that_a_plain_reading_gives(lines, longest):
    """Lines shorter than a piece are never cut."""
    plain: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            plain[-1].append(line.strip())
        else:
            plain.append([])
    found = list(_plain_pieces(io.StringIO("".join(lines)), "text", longest))
    assert documents(found) == [document for document in plain if document]
    assert all(piece.size <= longest for piece in found)


@settings(max_examples=40, deadline=None)
@given(st.text("ab \n", max_size=200), st.integers(3, 12))
def test_long_lines_are_cut_and_nothing_is_lost(text, longest):
    parts = list(_lines(io.StringIO(text), longest))
    assert "".join(parts) == text
    assert all(len(part) <= longest for part in parts)
    found = list(_plain_pieces(io.StringIO(text), "text", longest))
    assert "".join("".join(piece.lines) for piece in found).replace(" ", "") == "".join(
        text.split()
    )


def test_long_records_are_cut_and_nothing_is_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fox den " * 50 + "\n" + "x" * 30}))
    found = pieces_of(tmp_path / "a.jsonl", longest=20)
    assert all(piece.size <= 20 for piece in found)
    assert [piece.goes_on for piece in found] == [False] + [True] * (len(found) - 1)
    words = " ".join(line for piece in found for line in piece.lines).split()
    assert words[:100] == ["fox", "den"] * 50
    assert "".join(words[100:]) == "x" * 30


def test_lines_are_read_as_often_as_wanted_and_a_share_of_them_is_the_same_each_time(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"fox {n}" for n in range(1000)))
    lines = Lines([tmp_path / "a.txt"])
    whole = [line for document in read_documents([tmp_path / "a.txt"]) for line in document]
    assert list(lines) == list(lines) == whole
    some = Lines([tmp_path / "a.txt"], share=0.2)
    assert list(some) == list(some)
    assert 120 < len(list(some)) < 280
    with pytest.raises(BertfastError, match="sample is 0"):
        Lines([tmp_path / "a.txt"], share=0)


def test_a_part_says_its_size(texts):
    part = find_parts([texts / "a.txt"])[0]
    assert part == Part(str(texts / "a.txt"), 34, (texts / "a.txt").stat().st_mtime_ns)
