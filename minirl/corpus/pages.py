"""Pages in and out, one at a time: a corpus may be larger than the memory.

    .jsonl, .jsonl.gz   an object a line: "text" (or "content", "question", "problem", "prompt"),
                        and where there are any "url" and "label" (1 for a page that is wanted, 0
                        for another: what recall is measured with)
    any other name      plain text, in UTF-8: pages stand between blank lines

A malformed line is counted and skipped. The first of them are kept, each with file, line and why.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

TEXT = "text", "content", "question", "problem", "prompt"
LONGEST = 1 << 22            # bytes of a page: a longer line is no page, and is never in memory
TOGETHER = 1024              # pages that are worked on at a time,
LETTERS = 1 << 20            # or fewer, where they are long
SHOWN = 10                   # malformed lines that are described
OFTEN = 1000                 # pages between two reports of progress


class Page(NamedTuple):
    """A page, and the further fields of its line."""

    text: str
    url: str = ""
    label: int | None = None
    fields: Mapping[str, Any] = {}

    @property
    def site(self) -> tuple[str, str]:
        return site_of(self.url)


def site_of(url: str) -> tuple[str, str]:
    """Return the domain of a URL and the first part of its path, where a slash is behind it.

    >>> site_of("https://www.Forum.org/questions/17?page=2"), site_of("forum.org/17")
    (('forum.org', '/questions'), ('forum.org', '/'))
    """
    rest = url.partition("://")[2] if "://" in url else url
    domain, _, path = rest.partition("/")
    first, slash, _ = path.partition("?")[0].partition("#")[0].partition("/")
    return domain.lower().removeprefix("www."), f"/{first}" if slash else "/"


class Corpus:
    """The pages of some files. Each iteration reads the files again, from the start.

    malformed   how many lines the newest iteration has skipped
    complaints  what was wrong with the first of them
    progress    is called with a number of pages every now and then
    """

    def __init__(self, files: Sequence[Path], progress: Callable[[int], None] | None = None):
        self.files, self.progress = [Path(file) for file in files], progress
        self.malformed, self.complaints = 0, list[str]()
        for file in self.files:
            if not file.is_file():
                raise ValueError(f"there is no file {file}: name files of pages, JSONL or text")

    def __iter__(self) -> Iterator[Page]:
        self.malformed, self.complaints = 0, []
        count = 0
        for file in self.files:
            names = file.name.split(".")
            with gzip.open(file) if names[-1] == "gz" else open(file, "rb") as stream:
                read = read_jsonl if "jsonl" in names[-2:] else read_text
                for number, page in read(stream):         # type: ignore[arg-type]
                    if isinstance(page, str):
                        self._complain(f"{file}:{number}: {page}")
                        continue
                    yield page
                    count += 1
                    if self.progress is not None and count % OFTEN == 0:
                        self.progress(OFTEN)

    def _complain(self, complaint: str) -> None:
        self.malformed += 1
        if len(self.complaints) < SHOWN:
            self.complaints.append(complaint)


def read_jsonl(stream: BinaryIO) -> Iterator[tuple[int, Page | str]]:
    """Yield the number of each line with its page, or with what is wrong with it."""
    for number, line in lines_of(stream):
        if line is None:
            yield number, f"longer than {LONGEST:,} bytes"
        elif line.strip():
            yield number, parsed(line)


def parsed(line: bytes) -> Page | str:
    """Return the page of a line of JSONL, or what is wrong with the line.

    >>> parsed(b'{"text": "a"}').text, parsed(b'{"text": 3}')
    ('a', '"text" is missing, or no text')
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError) as error:      # of the decoder, of int()
        return f"not JSON ({str(error).splitlines()[0][:80]})"
    if not isinstance(record, dict):
        return "not an object"
    name = next((name for name in TEXT if name in record), "text")
    text, url, label = record.pop(name, None), record.pop("url", ""), record.pop("label", None)
    if not isinstance(text, str):
        return f'"{name}" is missing, or no text'
    if not isinstance(url, str):
        return '"url" is no text'
    if not (label is None or type(label) in (bool, int, float) and label in (0, 1)):
        return '"label" is neither 0 nor 1'
    return Page(text, url, None if label is None else int(label), record)


def read_text(stream: BinaryIO) -> Iterator[tuple[int, Page | str]]:
    """Yield the number of each page's first line with the page, or with what is wrong."""
    page, first, size = list[bytes](), 0, 0
    for number, line in chain(lines_of(stream), [(0, b"")]):
        if line is None or line.strip():
            first, size = first or number, size + (LONGEST + 1 if line is None else len(line))
            if line is None or size > LONGEST:
                page.clear()
            else:
                page.append(line)
        elif first:
            yield first, joined(page) if size <= LONGEST else f"longer than {LONGEST:,} bytes"
            page, first, size = [], 0, 0


def joined(lines: Sequence[bytes]) -> Page | str:
    try:
        return Page(b"".join(lines).decode().strip())
    except UnicodeDecodeError:
        return "not UTF-8"


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines, numbered from 1, without a byte order mark; None for one that is too long.
    """
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        whole = len(line) <= LONGEST
        while not line.endswith(b"\n") and (more := stream.readline(LONGEST)):
            line, whole = more, False
        yield number, line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"") if whole else None


def line_of(page: Page, **fields: Any) -> bytes:
    """Return a page as a line of JSONL, with further fields."""
    record = {"url": page.url, "text": page.text, "label": page.label, **page.fields, **fields}
    if page.label is None:
        del record["label"]
    # what is no character (half of a surrogate pair) gets JSON's own escape
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


# streams

class Sample:
    """At most `most` of the items that it is offered, each as likely: reservoir sampling."""

    def __init__(self, most: int, seed: int) -> None:
        self.items: list = []
        self.most, self.offered, self.rng = most, 0, random.Random(seed)

    def offer(self, item: object) -> None:
        self.offered += 1
        if len(self.items) < self.most:
            self.items.append(item)
        elif (at := self.rng.randrange(self.offered)) < self.most:
            self.items[at] = item


def chunks(pages: Iterable[Page]) -> Iterator[tuple[int, list[Page]]]:
    """Yield lists of pages, each with the number of its first: what is worked on at a time."""
    start, chunk, letters = 0, list[Page](), 0
    for page in pages:
        chunk.append(page)
        letters += len(page.text)
        if len(chunk) == TOGETHER or letters > LETTERS:
            yield start, chunk
            start, chunk, letters = start + len(chunk), [], 0
    if chunk:
        yield start, chunk
