"""Files of records: JSONL, JSON, CSV, TSV and Parquet, each record with the place where it stands.

    .jsonl .json   an object per line; a .json file may be one list of objects, too
    .csv .tsv      a header of column names, then a record per row; an empty cell is None
    .parquet       read with pyarrow, which is optional

Any other ending is read as JSONL. Text is in UTF-8, with or without a byte order mark. Whatever is
wrong is a ValueError of one line that names the file, the place in it, and what was wanted.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minirl.tasks.rewards import content_text

Record = dict[str, Any]
PROMPTS = "prompt", "question", "problem"              # the first that a file has is read
ANSWERS = "answer", "solution", "ground_truth"
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LONGEST_LINE = 2 ** 26     # bytes
LARGEST_LIST = 2 ** 30     # bytes of a list of objects, which is read at once


def read_records(path: str | Path, wanted: str) -> Iterator[tuple[str, Record]]:
    """Yield (where it stands, the record) for each record of a file, one at a time.

    `wanted` says which fields a record should have, for messages. Raises ValueError for a file that
    is missing or empty, and for what is no record.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: a file with {wanted} in each record is wanted "
                         f"({', '.join(ENDINGS)})")
    read = READERS.get(path.suffix.lower(), _json_lines)
    empty = True
    for source, record in read(path, wanted):
        empty = False
        yield source, record
    if empty:
        raise ValueError(f"{path} has no {'rows' if read in TABLES else 'lines'}: "
                         f"{wanted} in each record are wanted")


# JSON

def _json_lines(path: Path, wanted: str) -> Iterator[tuple[str, Record]]:
    for number, line in _lines(path):
        if line.strip():
            yield f"{path}, line {number}", _object(_parsed(line, path, number, wanted),
                                                    f"{path}, line {number}", wanted)


def _json(path: Path, wanted: str) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as file:
        if not file.read(256).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from _json_lines(path, wanted)
            return
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"{path} is a list of {path.stat().st_size:,} bytes, and would be read at "
                         "once: write it as JSONL, an object per line")
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, entry in enumerate(_parsed(content, path, 1, wanted), start=1):
        yield f"{path}, entry {number}", _object(entry, f"{path}, entry {number}", wanted)


def _parsed(content: bytes, path: Path, line: int, wanted: str) -> Any:
    """The JSON in some bytes, which begin at this line."""
    text = _decoded(content, path, line)
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # 5,000 digits, lists 100,000 deep
        raise ValueError(f"{path}, line {line} is no JSON that can be read ({error}): an object "
                         f"with {wanted} is wanted") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {_repeated(names)!r} stands in one object twice")
    return record


def _object(entry: Any, source: str, wanted: str) -> Record:
    if not isinstance(entry, dict):
        raise ValueError(f"{source} is a {type(entry).__name__}: an object with {wanted} is wanted")
    return entry


# tables

def _csv(path: Path, wanted: str) -> Iterator[tuple[str, Record]]:
    """A comma, or in .tsv a tab, parts the cells; quotation marks are doubled inside of others."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((_decoded(line, path, number) for number, line in _lines(path)),
                        delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: this row cannot be read ({error}): cells "
                             f"between {delimiter!r}, those with line breaks or quotation marks "
                             'in "...", are wanted') from error
        if not row:
            continue
        if not names:
            names = row
            _check_names(names, f"{path}, line {line}")
            continue
        if len(row) != len(names):
            raise ValueError(f"{path}, line {line} has {len(row)} cells, and the header "
                             f"{len(names)}: a cell for each of {', '.join(names)} is wanted")
        yield f"{path}, line {line}", {name: cell or None
                                       for name, cell in zip(names, row, strict=True) if name}


def _parquet(path: Path, wanted: str) -> Iterator[tuple[str, Record]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path} is read with pyarrow, which is not installed: python -m pip "
                         "install pyarrow, or write the file as JSONL") from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, str(path))
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}): it may be cut short, or of "
                         "another format") from error


def _check_names(names: Sequence[str], source: str) -> None:
    if (name := _repeated(names)) is not None:
        raise ValueError(f"{source}: two columns are called {name!r}: give one another name")


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Record]]]] = {
    ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
TABLES = (_csv, _parquet)


# bytes

def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, read one at a time."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}, line {number} has more than {LONGEST_LINE:,} bytes: "
                                 "a record per line is wanted")
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _decoded(content: bytes, path: Path, line: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content[:error.start].count(b"\n")
        raise ValueError(f"{path} is not UTF-8 (line {line}: {error}): convert it first"
                         ) from error


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that comes a second time."""
    before: set[str] = set()
    for name in names:
        if name in before:
            return name
        before.add(name)
    return None


# fields

def first_of(names: Iterable[str], record: Record) -> str | None:
    """Return the first of these names that a record has a field of."""
    return next((name for name in names if name in record), None)


def text_field(value: Any, name: str, source: str, *, at: str = "") -> str:
    """Return the text of the field `name`: a string, or the content of a single message, as TRL's
    conversational format has it: text, or parts that are text. Only a prompt may be empty.

    `at` says where in the field the value stands (" at index 2"), for messages.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = message_content(value[0].get("content"), name, source)
    if isinstance(value, list):
        raise ValueError(f"{source}: {name!r} is a conversation of {len(value)} messages{at}: "
                         "text, or a single message, is wanted; apply the model's chat template "
                         "first")
    if not isinstance(value, str):
        nothing = "null" if at else "missing"
        what = nothing if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{source}: {name!r} is {what}{at}: text is wanted")
    if not value and name != "prompt":
        raise ValueError(f"{source}: {name!r} is empty{at}: leave "
                         f"{'the completion' if at else 'the line'} out")
    check_unicode(value, name, source, at=at)
    return value


def check_unicode(text: str, name: str, source: str, *, at: str = "") -> None:
    """Raise ValueError for half of a surrogate pair."""
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{source}: {name!r} holds half of a surrogate pair{at}, which no text "
                         "can hold: write the character itself")


def message_content(content: Any, name: str, source: str) -> Any:
    """Return a message's content; of a list of parts, their text. An image would be lost silently.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"{source}: {name!r} has a part of type {kind}: text alone is wanted")
    return content_text(content)
