"""The index of equations: which function computes which equation of which paper, and what tests it.

It is read from the docstrings in the source, without importing it, so that it needs no torch.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import doctest
import functools
import importlib
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]                     # the checkout, where tests and tutorials stand
FIELD = re.compile(r"^    (Equation|Paper|Erratum|Shapes|Gradient|Raises|See) +", re.MULTILINE)
HEADER = ("paper", "equation", "function", "file", "test", "tutorial")


@dataclass(frozen=True)
class Entry:
    """One public function of minirl.equations: its name, docstring and source, from `line` on."""

    module: str
    function: str
    doc: str
    line: int
    source: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function}"

    @property
    def fields(self) -> dict[str, str]:
        """The docstring's fields, each on one line."""
        parts = FIELD.split(self.doc.split("\n\n    >>>")[0])
        return {key: " ".join(text.split("\n\n")[0].split()) for key, text in zip(parts[1::2], parts[2::2])}

    @property
    def reference(self) -> str:
        """The first paper of the field, with number, section and equation.

        Others come behind a semicolon, or in another sentence.
        """
        return re.split(r"; |\. (?=[A-Z])", self.fields["Paper"])[0].rstrip(".")

    @property
    def paper(self) -> str:
        number = re.search(r"arXiv:\d{4}\.\d{5}", self.reference)
        return re.split(r"[,:(]", self.reference)[0].strip() + (f", {number[0]}" if number else "")

    @property
    def equation(self) -> str:
        """Where in that paper: its equation, else its section."""
        patterns = r"eqs?\. [0-9]+(?:(?:, | and | to )[0-9]+)*", r"(?:section|appendix) (?:[A-Z]\.?)?[0-9.]*[0-9A-Z]"
        return next((found[0] for pattern in patterns if (found := re.search(pattern, self.reference))), "-")

    @property
    def where(self) -> str:
        """Its equation, and the tutorials that use it, in short: "sec. 4.1.2, tut. 10"."""
        numbers = re.findall(r"tutorials/([0-9]+)_", self.row[-1])
        place = self.equation.replace("section", "sec.").replace("appendix", "app.")
        return place + (f", tut. {', '.join(numbers)}" if numbers else "")

    @property
    def file(self) -> str:
        return f"minirl/equations/{self.module}.py"

    def mentions(self, pattern: str) -> list[str]:
        """Files below the checkout that match a glob and name the function."""
        return [file for file, words in words_below(pattern).items() if self.function in words]

    @property
    def row(self) -> tuple[str, ...]:
        tests = self.mentions(f"tests/equations/test_{self.module}.py")
        tutorials = self.mentions("tutorials/[0-9]*.py")
        return (self.paper, self.equation, self.name, self.file,
                *(", ".join(files) or "-" for files in (tests, tutorials)))


@functools.cache
def words_below(pattern: str) -> dict[str, set[str]]:
    """The words of each file below the checkout that matches a glob, by its path from there."""
    return {file.relative_to(ROOT).as_posix(): set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
            for file in sorted(ROOT.glob(pattern))}


def entries() -> list[Entry]:
    """Every function and class of minirl.equations that names a paper, by file, in source order."""
    found = []
    for file in sorted((ROOT / "minirl" / "equations").glob("*.py")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                doc = ast.get_docstring(node, clean=False) or ""
                if "\n    Paper " in doc:
                    source = "\n".join(lines[node.lineno - 1:node.end_lineno])
                    found.append(Entry(file.stem, node.name, doc, node.lineno, source))
    return found


def show_index() -> str:
    """By file: its test, then its functions, each with paper, equation and tutorials."""
    known = entries()
    lines = [f"{len(known)} equations. One with its source and its example: minirl equations NAME"]
    for file, group in itertools.groupby(known, key=lambda entry: entry.file):
        entries_of_file = list(group)
        tests = entries_of_file[0].row[4]
        lines += ["", file + ("  (no test)" if tests == "-" else f"  ({tests})")]
        rows = [(e.function, e.paper.replace(", arXiv:", " "), e.where) for e in entries_of_file]
        names, papers = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines += [f"  {name:{names}}  {paper:{papers}}  {where}" for name, paper, where in rows]
    return "\n".join(lines)


def markdown_index() -> str:
    """The same, as tutorials/EQUATIONS.md holds it."""
    lines = ["# Equations", "", "Which function computes which equation. Made from the docstrings: `minirl equations --markdown > tutorials/EQUATIONS.md`.", "",
             "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for entry in entries():
        paper, equation, name, file, *rest = entry.row
        lines.append("| " + " | ".join([paper, equation, f"`{name}`", f"[{file}](../{file})", *(", ".join(f"[{f}](../{f})" if f != "-" else "-" for f in r.split(", ")) for r in rest)]) + " |")
    return "\n".join(lines) + "\n"


def show_equation(name: str) -> str:
    """One function: where it is, its docstring and source, and its example, run now. Raises ValueError for a name that is not in the index."""
    known = entries()
    chosen = [entry for entry in known if name in (entry.name, entry.function)]
    if len(chosen) != 1:
        near = difflib.get_close_matches(name, [entry.name for entry in known] + [entry.function for entry in known], n=3, cutoff=0.5)
        raise ValueError(f"there is no equation {name!r}" + (f" (near it: {', '.join(near)})" if near else "") + ": minirl equations lists them")
    entry, = chosen
    return f"{entry.file}:{entry.line}\n\n{entry.source}\n\nits example, run now:\n\n{run_example(entry)}"


def run_example(entry: Entry) -> str:
    """The docstring's example with what it gives here and now."""
    import torch                                                     # only where an equation is run

    lines = []
    names = {**vars(importlib.import_module(f"minirl.equations.{entry.module}")), "torch": torch}
    for example in doctest.DocTestParser().get_examples(entry.doc):
        lines.append(">>> " + example.source.rstrip().replace("\n", "\n... "))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example.source, "<example>", "single"), names)     # our own docstring, not a user's text
        lines += [out.getvalue().rstrip()] if out.getvalue() else []
    return "\n".join(lines)


def command_equations(args: argparse.Namespace) -> None:
    """minirl equations: the index, or one equation."""
    if args.name is not None:
        print(show_equation(args.name))
    elif args.markdown:
        print(markdown_index(), end="")
    else:
        print(show_index())
