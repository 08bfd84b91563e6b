"""The index of equations: which function computes which equation, and what tests it.

It reads the docstrings from the source with ast, without importing it, so it needs no torch.
"""

from __future__ import annotations

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

ROOT = Path(__file__).parents[2]  # the checkout, which holds tests and tutorials
FIELD = re.compile(r"^    (Equation|Paper|Erratum|Shapes|Gradient|Raises|See) +", re.MULTILINE)
EQUATION = r"eqs?\. [0-9]+(?:(?:, | and | to )[0-9]+)*"
SECTION = r"(?:section|appendix) (?:[A-Z]\.?)?[0-9.]*[0-9A-Z]"
# what a reader may look for in vain: name, paper, what it does, and the nearest that is here
NOT_IMPLEMENTED = [
    ("ASPO", "2510.06062", "inverts the ratio where A > 0, with a soft dual clip",
     "dual_clipped_surrogate"),
    ("BAPO", "2510.18927", "moves the clip's bounds to balance gains and losses",
     "clipped_surrogate"),
    ("FIPO", "2603.19835", "weighs a token by how the tokens behind it move", "prefix_weights"),
    ("GFPO", "2508.09726", "samples more, trains the short answers alone", "dynamic_sampling"),
    ("GPG", "2504.02546", "no ratio; rescales groups without spread", "policy_gradient"),
    ("RL2ML", "2605.30154", "a family from RL to maximum likelihood and beyond",
     "maxrl_advantages"),
    ("SPO", "2509.13232", "a tracked value of each prompt for the group's mean",
     "batch_mean_advantages"),
    ("TOPR", "2503.14286", "bad samples by a capped ratio, good ones as they are",
     "truncated_weights"),
    ("VAPO", "2504.05118", "PPO whose λ grows with the length of the answer", "gae"),
]
MANY = 5                                # tutorials of an equation that a line of the index names
MARKDOWN = "minirl equations --markdown > tutorials/EQUATIONS.md"


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
    def file(self) -> str:
        return f"minirl/equations/{self.module}.py"

    @property
    def fields(self) -> dict[str, str]:
        """The docstring's fields, each on one line."""
        parts = FIELD.split(self.doc.split("\n\n    >>>")[0])
        pairs = zip(parts[1::2], parts[2::2], strict=True)
        return {key: " ".join(text.split("\n\n")[0].split()) for key, text in pairs}

    @property
    def reference(self) -> str:
        """The first paper of the field, with number, section and equation.

        Others come after a semicolon, or in another sentence.
        """
        return re.split(r"; |\. (?=[A-Z])", self.fields["Paper"])[0].rstrip(".")

    @property
    def paper(self) -> str:
        number = re.search(r"arXiv:\d{4}\.\d{5}", self.reference)
        title = re.split(r"[,:(]", self.reference)[0].strip()
        return f"{title}, {number[0]}" if number else title

    @property
    def equation(self) -> str:
        """Where in that paper: its equation, else its section, else "-"."""
        place = re.search(EQUATION, self.reference) or re.search(SECTION, self.reference)
        return place[0] if place else "-"

    @property
    def tests(self) -> list[str]:
        return self.mentions(f"tests/equations/test_{self.module}.py")

    @property
    def tutorials(self) -> list[str]:
        return self.mentions("tutorials/[0-9]*.py")

    def mentions(self, pattern: str) -> list[str]:
        """Return the files below the checkout that match a glob and import or use the function."""
        return [file for file, names in names_below(pattern).items() if self.function in names]


@functools.cache
def names_below(pattern: str) -> dict[str, set[str]]:
    """Return the names in the code of each file that matches a glob, by its path from ROOT."""
    names: dict[str, set[str]] = {}
    for file in sorted(ROOT.glob(pattern)):
        in_file = names[file.relative_to(ROOT).as_posix()] = set()
        source = file.read_text(encoding="utf-8").split("\n# ## ")[0]    # a tutorial's imports
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.alias):
                in_file.add(node.name)
            elif isinstance(node, ast.Attribute):
                in_file.add(node.attr)
    return names


def entries() -> list[Entry]:
    """Return every function and class that names a paper, by file, in source order."""
    index = []
    for file in sorted((ROOT / "minirl" / "equations").glob("*.py")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                doc = ast.get_docstring(node, clean=False) or ""
                if "\n    Paper " in doc:
                    source = "\n".join(lines[node.lineno - 1:node.end_lineno])
                    index.append(Entry(file.stem, node.name, doc, node.lineno, source))
    return index


def by_file() -> list[tuple[str, list[Entry]]]:
    """Return each file of equations with its entries."""
    groups = itertools.groupby(entries(), key=lambda entry: entry.file)
    return [(file, list(group)) for file, group in groups]


def show_index() -> str:
    """Return the index as text: each file with its test, then its functions with their papers."""
    groups = by_file()
    count = sum(len(group) for _, group in groups)
    lines = [f"{count} equations. One with its source and its example: minirl equations NAME"]
    for file, group in groups:
        lines += ["", f"{file}  ({', '.join(group[0].tests) or 'no test'})"]
        rows = []
        for entry in group:
            place = entry.equation.replace("section", "sec.").replace("appendix", "app.")
            numbers = [re.findall(r"[0-9]+", file)[0] for file in entry.tutorials]
            place += f", tut. {', '.join(numbers[:MANY])}" if numbers else ""
            place += ", ..." if len(numbers) > MANY else ""
            rows.append((entry.function, entry.paper.replace(", arXiv:", " "), place))
        names, papers = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines += [f"  {name:{names}}  {paper:{papers}}  {place}" for name, paper, place in rows]
    lines += ["", "Not implemented, and the nearest that is:"]
    lines += [f"  {name:5}  {paper}  {what} ({near})" for name, paper, what, near in
              NOT_IMPLEMENTED]
    return "\n".join(lines)


def markdown_index() -> str:
    """Return the index as tutorials/EQUATIONS.md holds it: a table for each file."""
    lines = ["# Equations", "", "Which function computes which equation, by file.",
             f"Generated from the docstrings: `{MARKDOWN}`."]
    for file, group in by_file():
        tests = ", ".join(f"[{test}](../{test})" for test in group[0].tests) or "none"
        lines += ["", f"## [{file}](../{file})", "", f"Tests: {tests}", "",
                  "| function | paper | equation | tutorial |", "|---|---|---|---|"]
        for entry in group:
            names = [Path(tutorial).name for tutorial in entry.tutorials]
            tutorials = ", ".join(f"[{name}]({name})" for name in names) or "-"
            cells = (f"`{entry.function}`", entry.paper, entry.equation, tutorials)
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Not implemented", "", "| method | paper | what it does | the nearest here |",
              "|---|---|---|---|"]
    lines += [f"| {name} | arXiv:{paper} | {what} | {near} |" for name, paper, what, near in
              NOT_IMPLEMENTED]
    return "\n".join(lines) + "\n"


def show_equation(name: str) -> str:
    """Return one function as text: its place, tests and tutorials, docstring and source, and its
    example, run now.

    Raise ValueError for a name that is not in the index.
    """
    index = entries()
    matches = [entry for entry in index if name in (entry.name, entry.function)]
    if len(matches) != 1:
        names = [entry.name for entry in index] + [entry.function for entry in index]
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.5))
        hint = f" (near it: {near})" if near else ""
        raise ValueError(f"there is no equation {name!r}{hint}: minirl equations lists them")
    entry = matches[0]
    return "\n".join([f"{entry.file}:{entry.line}",
                      f"tests: {', '.join(entry.tests) or 'none'}",
                      f"tutorials: {', '.join(entry.tutorials) or 'none'}",
                      "", entry.source, "", "The example, run now:", "", run_example(entry)])


def run_example(entry: Entry) -> str:
    """Return the docstring's example with the results that it has here and now."""
    import torch  # only where an equation is run

    module = importlib.import_module(f"minirl.equations.{entry.module}")
    names = {**vars(module), "torch": torch}
    lines = []
    for example in doctest.DocTestParser().get_examples(entry.doc):
        lines.append(">>> " + example.source.rstrip().replace("\n", "\n... "))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            # the text of our own docstring, not a user's
            exec(compile(example.source, "<example>", "single"), names)
        if out.getvalue():
            lines.append(out.getvalue().rstrip())
    return "\n".join(lines)
