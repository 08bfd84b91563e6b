"""The index of equations: which function computes which equation of which paper, and what tests it. Read from the docstrings, never written by hand."""

from __future__ import annotations

import contextlib
import difflib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import minirl.equations

ROOT = Path(minirl.equations.__file__).parents[2]                          # the checkout, where tests and tutorials stand beside the package
FIELD = re.compile(r"^    (Equation|Paper|Erratum|Shapes|Gradient|Raises|See) +", re.MULTILINE)
HEADER = ("paper", "equation", "function", "file", "test", "tutorial")


@dataclass(frozen=True)
class Entry:
    """One public function of minirl.equations."""

    module: str
    function: Callable

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function.__name__}"

    @property
    def fields(self) -> dict[str, str]:
        """The docstring's fields, each on one line."""
        parts = FIELD.split(self.function.__doc__.split("\n\n    >>>")[0])
        return {key: " ".join(text.split("\n\n")[0].split()) for key, text in zip(parts[1::2], parts[2::2])}

    @property
    def reference(self) -> str:
        """The first paper of the field, with number, section and equation; others come behind a semicolon, or in another sentence."""
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
    def file(self) -> str:
        return f"minirl/equations/{self.module}.py"

    def mentions(self, pattern: str) -> list[str]:
        """Files below the checkout that match a glob and name the function."""
        word = re.compile(rf"\b{self.function.__name__}\b")
        return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern)) if word.search(path.read_text(encoding="utf-8"))]

    @property
    def row(self) -> tuple[str, ...]:
        tests = self.mentions(f"tests/equations/test_{self.module}.py")
        return (self.paper, self.equation, self.name, self.file, *(", ".join(files) or "-" for files in (tests, self.mentions("tutorials/[0-9]*.py"))))


def entries() -> list[Entry]:
    """Every function of minirl.equations that names a paper, by file, in the order in which they stand there."""
    found = []
    for info in pkgutil.iter_modules(minirl.equations.__path__):
        module = importlib.import_module(f"minirl.equations.{info.name}")
        public = [x for name, x in vars(module).items() if not name.startswith("_") and callable(x) and getattr(x, "__module__", "") == module.__name__ and "\n    Paper " in x.__doc__]
        found += [Entry(info.name, x) for x in sorted(public, key=lambda x: inspect.getsourcelines(x)[1])]
    return found


def show_index() -> str:
    """By file: its test and tutorials, then its functions, each with paper and equation."""
    known = entries()
    widths = [max(len(text) for text in column) for column in zip(*((entry.name, entry.paper) for entry in known))]
    lines, file = [], None
    for entry in known:
        if entry.file != file:
            file = entry.file
            lines += ["" if lines else f"{len(known)} equations; minirl equations NAME shows one with its source and its example\n", file]
        *_, test, tutorial = entry.row
        where = "  ".join(filter(lambda text: text != "-", ("no test" if test == "-" else test, tutorial)))
        lines.append(f"  {entry.name:{widths[0]}}  {entry.paper:{widths[1]}}  {entry.equation:18}  {where}".rstrip())
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
    chosen = [entry for entry in known if name in (entry.name, entry.function.__name__)]
    if len(chosen) != 1:
        near = difflib.get_close_matches(name, [entry.name for entry in known] + [entry.function.__name__ for entry in known], n=3, cutoff=0.5)
        raise ValueError(f"there is no equation {name!r}" + (f" (near it: {', '.join(near)})" if near else "") + ": minirl equations lists them")
    entry, = chosen
    source, line = inspect.getsourcelines(entry.function)
    return f"{entry.file}:{line}\n\n{''.join(source).rstrip()}\n\nits example, run now:\n\n{run_example(entry)}"


def run_example(entry: Entry) -> str:
    """The docstring's example with what it gives here and now."""
    lines, names = [], {**vars(importlib.import_module(f"minirl.equations.{entry.module}")), "torch": torch}
    for example in doctest.DocTestParser().get_examples(entry.function.__doc__):
        lines.append(">>> " + example.source.rstrip().replace("\n", "\n... "))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example.source, "<example>", "single"), names)     # our own docstring, not anything that a user hands over
        lines += [out.getvalue().rstrip()] if out.getvalue() else []
    return "\n".join(lines)
