"""minirl/tasks/records.py"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirl.tasks import records
from minirl.tasks.dataset import load_dataset
from minirl.tasks.records import read_records

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "가, 나\n\"다\"?", "answer": "#### 3"}]


def written(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(file):
    return list(read_records(file, "question and answer"))


def csv_of(delimiter):
    rows = [["question", "answer"], *(list(row.values()) for row in ROWS)]
    return "\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row)
                     for row in rows) + "\n"


FORMATS = {"a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS), "a.json": json.dumps(ROWS),
           "b.json": "\n\n".join(map(json.dumps, ROWS)), "c.json": json.dumps(ROWS, indent=2),
           "a.csv": csv_of(","), "a.tsv": csv_of("\t"), "A.CSV": csv_of(","),
           "text": "\n".join(map(json.dumps, ROWS))}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_records_from_every_format(name, end, mark, tmp_path):
    content = FORMATS[name].encode().replace(b"\n", end)
    rows = read(written(tmp_path, name, mark + content))
    want = [{**row, "question": row["question"].replace("\n", end.decode())} if "sv" in name.lower()
            else row for row in ROWS]
    assert [row for _, row in rows] == want


def test_where_a_record_stands(tmp_path):
    file = written(tmp_path, "a.csv", 'question,answer\n"two\nlines",1\n\nlast,2\n')
    assert [source for source, _ in read(file)] == [f"{file}, line 2", f"{file}, line 5"]
    file = written(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}')
    assert [source for source, _ in read(file)] == [f"{file}, line 2", f"{file}, line 4"]
    file = written(tmp_path, "a.json", '[{"a": 1},\n{"a": 2}]')
    assert [source for source, _ in read(file)] == [f"{file}, entry 1", f"{file}, entry 2"]


def test_cells(tmp_path):
    """An empty cell is no text, and the column that pandas writes as its index has no name."""
    file = written(tmp_path, "a.csv", ",question,answer\n0,a,\n1,,007\n")
    assert [row for _, row in read(file)] == [{"question": "a", "answer": None},
                                              {"question": None, "answer": "007"}]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [{"prompt": [{"role": "user", "content": "hi"}], "n": 3}] * 3
    for name, rows in (("a.parquet", ROWS), ("b.parquet", messages)):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        assert [row for _, row in read(tmp_path / name)] == rows
    assert [source for source, _ in read(tmp_path / "a.parquet")] == [
        f"{tmp_path}/a.parquet, row 1", f"{tmp_path}/a.parquet, row 2"]
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[:-20], b"PAR1" + b"\0" * 100 + b"PAR1"):
        with pytest.raises(ValueError, match="bad.parquet cannot be read as Parquet"):
            read(written(tmp_path, "bad.parquet", content))
    two = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    parquet.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        read(tmp_path / "two.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="not installed: python -m pip install pyarrow"):
        read(written(tmp_path, "a.parquet", "PAR1"))


@pytest.mark.parametrize("name, content, says", [
    ("a.jsonl", "", "a.jsonl has no lines"), ("a.json", "[]", "a.json has no lines"),
    ("a.csv", "", "a.csv has no rows"), ("a.csv", "question,answer\n", "a.csv has no rows"),
    ("a.jsonl", '{"a": 1}\n{"a": ', "line 2 is no JSON that can be read"),
    ("a.json", '[{"a": 1},\n{"a": ', "line 1 is no JSON that can be read .*line 2 column 7"),
    ("a.json", '{\n"a": 1\n}', "line 1 is no JSON that can be read"),
    ("a.json", "[1]", "entry 1 is a int: an object with question and answer is wanted"),
    ("a.jsonl", '{"a": 1, "b": 2, "a": 3}', "the field 'a' stands in one object twice"),
    ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1 is no JSON that can be read"),
    ("a.json", "[" * 100_000, "line 1 is no JSON that can be read"),
    ("a.csv", "a,b,a\n1,2,3\n", "line 1: two columns are called 'a'"),
    ("a.csv", "a,b\n1,2\n3\n", "line 3 has 1 cells, and the header 2: .*each of a, b is"),
    ("a.csv", "a,b\n1,2,3\n", "line 2 has 3 cells, and the header 2"),
    ("a.csv", 'a,b\n1,"2\n3,4\n', "line 2: this row cannot be read"),
    ("a.csv", 'a,b\n1,"2"3\n', "line 2: this row cannot be read"),
    ("a.csv", "a,b\n1," + "2" * 200_000 + "\n", r"line 2: .*larger than field limit"),
    ("a.csv", b"a,b\n1,2\n3,\xe9\n", r"is not UTF-8 \(line 3: "),
    ("a.json", b'[{"a": 1},\n{"a": "\xe9"}]', r"is not UTF-8 \(line 2: "),
    ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"is not UTF-8 \(line 1: "),
    ("a.csv", "a,b\n1,2\n".encode("utf-16"), r"is not UTF-8 \(line 1: "),
    ("a.jsonl", b"\0" * 1000, "line 1 is no JSON that can be read")])
def test_what_cannot_be_read_is_named(name, content, says, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        read(written(tmp_path, name, content))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match=f"there is no file {path}: .*.jsonl, .json, .csv"):
            read(path)


def test_a_file_is_read_line_by_line(tmp_path, monkeypatch):
    """What is wrong later is found later; and a line has a bound, as memory has."""
    rows = read_records(written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2}\nnonsense'), "a")
    assert [next(rows)[1], next(rows)[1]] == [{"a": 1}, {"a": 2}]
    monkeypatch.setattr(records, "LONGEST_LINE", 100)
    monkeypatch.setattr(records, "LARGEST_LIST", 100)
    with pytest.raises(ValueError, match="line 1 has more than 100 bytes"):
        read(written(tmp_path, "a.jsonl", '{"a": "' + "x" * 100 + '"}'))
    with pytest.raises(ValueError, match="a list of 209 bytes, .* write it as JSONL"):
        read(written(tmp_path, "a.json", '["' + "x" * 205 + '"]'))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(
    [b'{"prompt": ', b'"a"', b"}", b"[", b"]", b"\n", b"\r", b",", b'"', b"prompt", b"answer",
     b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"1e999", b"NaN", b"null", b'[{"role": "user"}]']),
    max_size=12).map(b"".join)), st.sampled_from([*records.ENDINGS[:-1], ""]))
def test_any_bytes_are_records_or_one_line_that_says_why_not(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), f"a{ending}", content)
        for load in (read, load_dataset):
            try:
                load(file)
            except ValueError as error:
                assert str(file) in str(error)
