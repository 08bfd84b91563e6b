"""minirl/lm/text.py"""

import subprocess
import sys
import unicodedata

import pytest

from minirl.lm.text import code_span, columns_of, shortened, table, visible


@pytest.mark.parametrize("text, printed", [
    ("plain 3+4=7", "plain 3+4=7"),
    ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("a\nb\r\tc", r"a\nb\r\tc"),
    ("\x00\x7f", r"\x00\x7f"),
    ("\x9b31m", r"\x9b31m"),
    ("\u202eevil\u202c \u2066x\u2069", r"\u202eevil\u202c \u2066x\u2069"),
    ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    ("\ud800", r"\ud800"),
    ("\ufeff\u200b", r"\ufeff\u200b"),
    ("안녕, 日本 é ½", "안녕, 日本 é ½"),
    ("👩\u200d🔬 🏽", "👩\u200d🔬 🏽"),
    ("\U000e0041", r"\U000e0041"),
])
def test_a_text_is_one_line_that_steers_nothing(text, printed):
    """A model trained to emit ESC [31m wrote in red into the terminal of whoever looked."""
    assert visible(text) == printed


def test_no_character_of_unicode_steers_and_what_is_seen_stays():
    for i in range(0x30000):
        c = chr(i)
        text = visible(c)
        categories = {unicodedata.category(x) for x in text}
        assert len(text.splitlines()) == 1 and not categories & {"Cc", "Cs", "Zl", "Zp"}
        assert text == c or not c.isprintable()
        text.encode()


@pytest.mark.parametrize("text, span", [
    ("3+4=", "`3+4=`"), ("a`b", "``a`b``"), ("```", "```` ``` ````"), ("`a", "`` `a ``"),
    (" a ", "`  a  `"), ("", "` `"), ("a\n## step 99", r"`a\n## step 99`"), ("   ", "`   `"),
    ("x```y``", "```` x```y`` ````")])
def test_inline_code_that_its_text_cannot_end(text, span):
    assert code_span(text) == span


@pytest.mark.parametrize("text", ["`", "``` a", "a ````` b ``", " `` ", "`\n\n# heading",
                                  "<script>", "\\`", "a` [b](c) `d"])
def test_a_reader_of_markdown_finds_the_text_again(text):
    """CommonMark: code ends at the next run of as many backticks; a space at both ends goes."""
    span = code_span(text)
    fence = len(span) - len(span.lstrip("`"))
    runs, i = [], 0
    while i < len(span):
        run = len(span[i:]) - len(span[i:].lstrip("`"))
        runs += [(i, run)] * (run > 0)
        i += max(1, run)
    assert [run for run in runs if run[1] == fence] == [(0, fence), (len(span) - fence, fence)]
    inside = span[fence:-fence]
    stripped = inside[1:-1] if inside[0] == inside[-1] == " " and inside.strip(" ") else inside
    assert stripped == visible(text)


def test_wide_characters_take_two_columns():
    texts = "abc", "한글", "한글 a", unicodedata.normalize("NFD", "한글"), "e\u0301"
    assert [columns_of(text) for text in texts] == [3, 4, 6, 4, 1]


def test_table_lines_up():
    assert table([("name", "x"), ("a", "1.25")]) == "name     x\na     1.25"


def test_a_table_lines_up_under_hangul_and_is_never_wider_than_a_terminal():
    rows = [("한글 이름", "x", "y"), ("b" * 200, "1.25", "2"), ("가" * 99, "1", "3"),
            ("\x1b[2J\n", "\n", "4")]
    lines = table(rows).splitlines()
    assert {columns_of(line) for line in lines} == {80}
    assert "..." in lines[1] and lines[1].startswith("bbbb")
    assert len(lines) == 4 and lines[3].startswith(r"\x1b[2J\n ") and "\x1b" not in "".join(lines)
    assert {columns_of(line) for line in table(rows, width=40).splitlines()} == {40}
    figures = table([("a" * 50, "b" * 90)]).split()
    assert figures == ["aaaa...a", "b" * 90], "the figures are not cut"


@pytest.mark.parametrize("text, width, short", [
    ("grpo", 9, "grpo"), ("abcdefghij", 9, "abcd...ij"), ("가나다라마바", 9, "가나...바"),
    ("abcdef", 3, "..."), ("abcdef", 1, ".")])
def test_names_are_shortened_in_the_middle(text, width, short):
    assert shortened(text, width) == short and columns_of(short) <= width


def test_text_and_progress_load_no_torch():
    code = "import sys, minirl.lm.text, minirl.lm.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
