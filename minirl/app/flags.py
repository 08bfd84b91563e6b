"""What a command's flags are: the fields of configuration dataclasses, read from their source.

The classes stand at the top of the pages that use them, and a page imports torch, which takes seconds.
`minirl --help` and a mistyped flag need only names, types, defaults and comments, so they are read from
the source text, without importing it. `tests/app/test_flags.py` compares them with the classes.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMENT = re.compile(r"#\s*(.*)")


@dataclass(frozen=True)
class Field:
    """One field of a dataclass: `kind` is the name of its type ("int"), without "| None"."""

    name: str
    kind: str
    default: Any
    help: str


class Module:
    """The source of one of our modules, parsed and not run."""

    def __init__(self, name: str):
        self.name = name
        source = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        self.lines, self.classes, self.values, self.imports = source.splitlines(), {}, {}, {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {alias.name: node.module for alias in node.names}

    def value(self, node: ast.expr) -> Any:
        """What an expression of numbers, texts and named constants comes to."""
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        known = {name: self.constant(name) for name in names}
        return eval(compile(ast.Expression(node), self.name, "eval"), {"__builtins__": {}}, known)

    def constant(self, name: str) -> Any:
        if name in self.values:
            return self.value(self.values[name])
        return module(self.imports[name]).constant(name)

    def fields(self, name: str) -> dict[str, Field]:
        """A dataclass's fields by name, those of its bases first, as dataclasses have them."""
        if name not in self.classes:
            return module(self.imports[name]).fields(name)
        found: dict[str, Field] = {}
        for base in self.classes[name].bases:
            found |= self.fields(base.id)
        for node in self.classes[name].body:
            if isinstance(node, ast.AnnAssign):
                comment = COMMENT.search(self.lines[node.lineno - 1])
                kind = ast.unparse(node.annotation).removesuffix(" | None")
                found[node.target.id] = Field(node.target.id, kind, self.value(node.value),
                                              comment[1] if comment else "")
        return found


@functools.cache
def module(name: str) -> Module:
    return Module(name)


def fields_of(path: str) -> list[Field]:
    """The fields of a dataclass: fields_of("minirl.train.grpo.GRPOConfig")."""
    name, cls = path.rsplit(".", 1)
    return list(module(name).fields(cls).values())


def keys_of(path: str) -> list[str]:
    """The keys of a dictionary that a module spells out: keys_of("minirl.train.sft.SFT_PRESETS")."""
    name, variable = path.rsplit(".", 1)
    return [key.value for key in module(name).values[variable].keys]


def flag(name: str) -> str:
    """How a field is written on the command line: "--group-size" for "group_size"."""
    return "--" + name.replace("_", "-")
