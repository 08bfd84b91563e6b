"""What a command's flags are: the fields of configuration dataclasses, read from their source.

The classes stand at the top of the pages that use them, and a page imports torch, which takes
seconds. `minirl --help` and a mistyped flag need only names, types, defaults and comments, so they
are read from the source text, without importing it. `tests/app/test_flags.py` compares them with
the classes.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LESS_MEMORY = ("take a smaller --token-budget, --gradient-checkpointing true, a smaller "
               "--group-size, --prompts-per-step, --max-new-tokens or --eval-problems, or --dtype "
               "bfloat16")
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

    def __init__(self, name: str) -> None:
        self.name = name
        source = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        self.lines = source.splitlines()
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: dict[str, ast.expr] = {}
        self.imports: dict[str, str] = {}                  # name -> the module it comes from
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self.values[ast.unparse(node.target)] = node.value
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {alias.name: str(node.module) for alias in node.names}

    def value(self, node: ast.expr | None) -> Any:
        """Return the value of an expression of numbers, texts and named constants."""
        if node is None:
            return None
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        constants = {name: self.constant(name) for name in names}
        code = compile(ast.Expression(node), self.name, "eval")
        return eval(code, {"__builtins__": {}}, constants)

    def constant(self, name: str) -> Any:
        if name in self.values:
            return self.value(self.values[name])
        return module(self.imports[name]).constant(name)

    def fields(self, name: str) -> dict[str, Field]:
        """Return a dataclass's fields by name, those of its bases first, as dataclasses do: of
        several bases the last comes first."""
        if name not in self.classes:
            return module(self.imports[name]).fields(name)
        fields: dict[str, Field] = {}
        for base in reversed(self.classes[name].bases):
            fields |= self.fields(ast.unparse(base))
        for node in self.classes[name].body:
            if isinstance(node, ast.AnnAssign):
                field = ast.unparse(node.target)
                comment = COMMENT.search(self.lines[node.lineno - 1])
                kind = ast.unparse(node.annotation).removesuffix(" | None")
                fields[field] = Field(field, kind, self.value(node.value),
                                      comment[1] if comment else "")
        return fields


@functools.cache
def module(name: str) -> Module:
    return Module(name)


def fields_of(path: str) -> list[Field]:
    """Return the fields of a dataclass, such as "minirl.train.grpo.GRPOConfig"."""
    name, cls = path.rsplit(".", 1)
    return list(module(name).fields(cls).values())


def keys_of(path: str) -> list[str]:
    """Return the keys of a dictionary that a module spells out, such as presets.SFT_PRESETS."""
    name, variable = path.rsplit(".", 1)
    table = module(name).values[variable]
    assert isinstance(table, ast.Dict), f"{path} is not spelt out"
    return [module(name).value(key) for key in table.keys]


def json_object(name: str, text: str | None, example: str) -> dict[str, Any]:
    """Return the JSON object that the text of a flag is; {} where it was not given.

    Raises ValueError for anything else.
    """
    try:
        content = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {text!r:.80}, no JSON ({error}): an object such as "
                         f"'{example}' is wanted") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} is a {type(content).__name__}: an object such as '{example}' is "
                         "wanted")
    return content
