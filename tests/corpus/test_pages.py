"""minirl/corpus/pages.py: what is read, what is skipped and said of it, and how much is in memory.
"""

import gzip
import json
import tracemalloc
from collections import Counter

import pytest

from minirl.corpus import pages
from minirl.corpus.pages import Corpus, Page, Sample, chunks, line_of, site_of

GOOD = b'{"text": "one"}\n'
BAD = {
    b'{"text": "cut': "not JSON", b"[1, 2]": "not an object", b"3": "not an object",
    b'{"url": "a.org"}': '"text" is missing', b'{"text": null}': '"text" is missing',
    b'{"text": 3}': '"text" is missing, or no text', b'{"question": []}': '"question" is missing',
    b'{"text": "a", "url": 3}': '"url" is no text', b'{"text": "a", "label": 2}': '"label"',
    b'{"text": "a", "label": "1"}': '"label"', b'{"text": "a", "label": []}': '"label"',
    b'{"text": "\xff"}': "not UTF-8", b"[" * 100_000: "not JSON", b"\x00": "not JSON",
    b'{"text": "a", "n": ' + b"1" * 5000 + b"}": "not JSON", b"nonsense": "not JSON",
    b'{"text": "a"} {"text": "b"}': "not JSON"}


def corpus(tmp_path, content, name="a.jsonl"):
    (tmp_path / name).write_bytes(content)
    return Corpus([tmp_path / name])


def test_fields_of_a_page(tmp_path):
    read = corpus(tmp_path, b'{"text": "a", "url": "b.org/c/d", "label": 1, "more": [2]}\n'
                            b'\n{"label": false, "content": "b"}\r\n{"question": "c", "answer": 1}')
    assert list(read) == [Page("a", "b.org/c/d", 1, {"more": [2]}), Page("b", "", 0, {}),
                          Page("c", "", None, {"answer": 1})]
    assert read.malformed == 0


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:30])
def test_a_malformed_line_is_counted_described_and_skipped(line, tmp_path):
    read = corpus(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD)
    assert [page.text for page in read] == ["one", "one"] and read.malformed == 1
    complaint, = read.complaints
    assert complaint.startswith(f"{tmp_path}/a.jsonl:3: ") and BAD[line] in complaint
    assert "\n" not in complaint and len(complaint) < 200 + len(str(tmp_path))


def test_counts_are_of_the_newest_reading_and_few_lines_are_described(tmp_path):
    read = corpus(tmp_path, b"{\n" * 25 + GOOD)
    for _ in range(2):
        assert len(list(read)) == 1 and read.malformed == 25 and len(read.complaints) == 10
    assert read.complaints[9].startswith(f"{tmp_path}/a.jsonl:10: ")


def test_plain_text_has_pages_between_blank_lines(tmp_path):
    text = b"\xef\xbb\xbf\n\none\ntwo\n \nthree\r\n\r\n\r\n\xff bad\nmore\n\nlast"
    read = corpus(tmp_path, text, "a.txt")
    assert [page.text for page in read] == ["one\ntwo", "three", "last"]
    assert read.complaints == [f"{tmp_path}/a.txt:9: not UTF-8"]


def test_several_files_a_compressed_one_and_a_byte_order_mark(tmp_path):
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b"\xef\xbb\xbf" + GOOD)
    corpus(tmp_path, b'{"text": "first"}', "a.jsonl")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    assert [page.text for page in Corpus(files)] == ["first", "one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("size", [99, 100, 101, 102, 199, 200, 201, 350])
def test_a_line_that_is_too_long_is_skipped_and_the_next_one_is_read(
        name, size, tmp_path, monkeypatch):
    """Around the places where the reader takes its next bite."""
    monkeypatch.setattr(pages, "LONGEST", 100)
    filler = b"x" * size if name == "a.txt" else b'{"text": "' + b"x" * (size - 12) + b'"}'
    for end in (b"\n\n", b""):
        after = GOOD if name == "a.jsonl" else b"one\n"
        read = corpus(tmp_path, filler + end + (after if end else b""), name)
        texts = [page.text for page in read]
        fits = size + len(end[:1]) <= 100
        assert read.malformed == (not fits)
        assert texts[fits:] == (["one"] if end else [])
        assert all("longer than 100 bytes" in text for text in read.complaints)


def test_a_page_of_many_lines_is_too_long_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "LONGEST", 100)
    read = corpus(tmp_path, b"ten bytes\n" * 11 + b"\nnext\n", "a.txt")
    assert [page.text for page in read] == ["next"]
    assert read.complaints == [f"{tmp_path}/a.txt:1: longer than 100 bytes"]


def test_a_file_is_never_in_memory(tmp_path):
    """15 MB of lines: less than 4 MB at any time."""
    with open(tmp_path / "a.jsonl", "wb") as file:
        for _ in range(15):
            file.write((b'{"text": "' + b"x" * 9987 + b'"}\n') * 100)
    tracemalloc.start()
    assert sum(1 for _ in Corpus([tmp_path / "a.jsonl"])) == 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_what_is_written_is_read_again(tmp_path):
    written = [Page("a\nb \u2028 두 \ud800 \x00", "c.org", 1, {"topic": "x"}), Page("b")]
    lines = b"".join(line_of(page, score=0.5) for page in written)
    assert lines.count(b"\n") == 2 and "두".encode() in lines
    read = list(corpus(tmp_path, lines))
    assert read == [Page(p.text, p.url, p.label, {**p.fields, "score": 0.5}) for p in written]
    assert "label" not in json.loads(lines.splitlines()[1])


@pytest.mark.parametrize("url, site", [
    ("https://mathoverflow.net/questions/12/why", ("mathoverflow.net", "/questions")),
    ("http://a.org", ("a.org", "/")), ("a.org/", ("a.org", "/")), ("a.org/x", ("a.org", "/")),
    ("HTTPS://WWW.A.org/X/y", ("a.org", "/X")), ("a.org/?q=/b/c", ("a.org", "/")),
    ("a.org/b/?q=1#c/d", ("a.org", "/b")), ("", ("", "/")), ("https://", ("", "/"))])
def test_site(url, site):
    assert site_of(url) == site


def test_chunks_have_all_pages_in_order(monkeypatch):
    monkeypatch.setattr(pages, "TOGETHER", 3)
    monkeypatch.setattr(pages, "LETTERS", 10)
    texts = ["a", "b", "c", "d", "x" * 11, "e"]
    found = list(chunks(map(Page, texts)))
    assert [(start, [p.text for p in chunk]) for start, chunk in found] == [
        (0, ["a", "b", "c"]), (3, ["d", "x" * 11]), (5, ["e"])]
    assert list(chunks([])) == []


def test_a_sample_takes_each_item_as_often():
    """3 of 10 items, 4000 times: 1200 of each, give or take 29 (one standard deviation)."""
    drawn = Counter()
    for seed in range(4000):
        sample = Sample(3, seed)
        for item in range(10):
            sample.offer(item)
        assert len(set(sample.items)) == 3
        drawn.update(sample.items)
    assert all(abs(n - 1200) < 130 for n in drawn.values()) and len(drawn) == 10
    few = Sample(3, 0)
    few.offer("a")
    assert few.items == ["a"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        Corpus([tmp_path / "nowhere.jsonl"])
