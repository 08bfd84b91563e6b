"""Text for people: what a model wrote made safe to show, aligned tables, and names of flags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

STEERING = "Cc", "Cf", "Cs", "Zl", "Zp"           # Unicode's categories
JOINERS = "\u200c\u200d"                          # invisible, but part of words and of emoji
SHORTEST = 8                                      # columns that a table's first column keeps
WIDTH = 80


def visible(text: str) -> str:
    r"""The text in one line, with an escape for each character that steers instead of being seen.

    These are control characters (newlines and ESC too), marks that turn the direction of writing,
    line and paragraph separators, lone surrogates, and other format characters of Unicode. A model
    may write any of them, and a terminal obeys. What is printable stays: also a backslash.

    >>> print(visible("a\nb \x1b[31m \u202e 안녕"))
    a\nb \x1b[31m \u202e 안녕
    """
    return "".join(escaped(c) if steers(c) else c for c in text)


def steers(character: str) -> bool:
    return unicodedata.category(character) in STEERING and character not in JOINERS


def escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def code_span(text: str) -> str:
    """The visible text as inline code of Markdown, which nothing in the text can end.

    >>> print(code_span("3+4"), code_span("a `` b"), code_span("`"))
    `3+4` ```a `` b``` `` ` ``
    """
    text = visible(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # Markdown takes one space off either end, where there is one at both and something between
    pad = " " if text.strip(" ") and (text[0] in " `" or text[-1] in " `") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def columns_of(text: str) -> int:
    """Columns of a terminal that the text takes: Hangul takes two a syllable, an accent none.

    >>> columns_of("abc"), columns_of("안녕"), columns_of("e\u0301")
    (3, 4, 1)
    """
    return sum(map(columns_of_character, text))


def columns_of_character(c: str) -> int:
    joins = "\u1160" <= c <= "\u11ff"             # the later letters of a syllable in parts
    if joins or unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def shortened(text: str, width: int) -> str:
    """The text in at most `width` columns: what does not fit goes from its middle.

    >>> shortened("a-long-name-of-a-run-2", 12)
    'a-long...n-2'
    """
    if columns_of(text) <= width:
        return text
    room = max(0, width - 3)
    head, tail = text, ""
    while columns_of(head) > room - room // 3:
        head = head[:-1]
    for c in reversed(text[len(head):]):
        if columns_of(c + tail) > room - columns_of(head):
            break
        tail = c + tail
    return f"{head}...{tail}"[:max(width, 0)]


def padded(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - columns_of(text))
    return space + text if right else text + space


def hanging(head: str, text: str, *, width: int = WIDTH, most: int = 4) -> list[str]:
    """The visible text behind `head`, indented as far: about `most` lines, its middle left out.

    >>> hanging("  before  ", "abcdefghij", width=15)
    ['  before  abcde', '          fghij']
    """
    head, indent = visible(head), columns_of(head)
    room = max(2, width - indent)
    lines, used = [head], 0
    for c in shortened(visible(text), most * room):
        if used + columns_of(c) > room:
            lines.append(" " * indent)
            used = 0
        lines[-1] += c
        used += columns_of(c)
    return [line.rstrip() for line in lines]


def table(rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Rows of text as aligned columns, the first to the left and the others to the right.

    A row is a line. Where lines would be wider than `width`, the first column is shortened.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(columns_of(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = width - sum(2 + w for w in widths[1:])
    widths[0] = min(widths[0], max(SHORTEST, room))
    lines = []
    for first, *others in rows:
        cells = [padded(shortened(first, widths[0]), widths[0])]
        cells += [padded(cell, w, right=True) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def flag(name: str) -> str:
    """How a field of a configuration is written on the command line.

    >>> flag("group_size")
    '--group-size'
    """
    return "--" + name.replace("_", "-")
