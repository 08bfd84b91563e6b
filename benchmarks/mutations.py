"""Mutants: a source file with one small change each, and how it takes the place of the file.

    comparison   < for <=, > for >=, == for !=, and back
    arithmetic   + for -, * for /, ** for *, and back
    logic        and for or, & for |, without a not, an ~ or a minus
    number       n + 1, 0 for 1, 1 for 0; True for False
    name         minimum for maximum, amin for amax, mean for sum, any for all, and back
    call         without a clamp, a detach, a square

Left alone: texts, annotations, and the strict=True of a zip, which changes no result.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.util
import inspect
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent

COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
           ast.NotEq: ast.Eq}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
              ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
LOGIC = {ast.And: ast.Or, ast.Or: ast.And}
NAMES = {"minimum": "maximum", "amin": "amax", "min": "max", "mean": "sum", "any": "all",
         "triu_indices": "tril_indices", "expm1": "exp", "logsigmoid": "tanh"}
NAMES |= {new: old for old, new in NAMES.items()}
DROPPED = {"clamp", "detach", "square", "flip", "abs", "sqrt"}


class Mutant(NamedTuple):
    """A changed file. `change` counts: "0 -> 1 (2)" is the second such change in the function."""

    file: str
    line: int
    function: str                      # "<module>" outside of functions and classes
    change: str
    source: str
    raises: bool                       # the change is in code that only raises an error
    where: str                         # "body", "defaults" (of a function or class) or "module"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.change}"

    @property
    def name(self) -> str:
        """What stays the same when lines are added to the file."""
        return f"{self.file} {self.function}: {self.change}"


def mutants(file: str) -> Iterator[Mutant]:
    """Yield every mutant of a file below minirl/."""
    tree = ast.parse((ROOT / "minirl" / file).read_text(encoding="utf-8"))
    times: Counter[tuple[str, str]] = Counter()
    for index, place in enumerate(places(tree)):
        for number in range(len(list(changes(place.node)))):
            mutated = copy.deepcopy(tree)
            node = list(places(mutated))[index].node
            before = ast.unparse(node)
            replacement = list(changes(node))[number](node)
            swap(mutated, node, replacement)
            source = ast.unparse(ast.fix_missing_locations(mutated))
            change = f"{before} -> {ast.unparse(replacement)}"
            times[place.function, change] += 1
            if times[place.function, change] > 1:
                change += f" ({times[place.function, change]})"
            yield Mutant(file, node.lineno, place.function, change, source, place.raises,
                         place.where)


def unchanged(file: str) -> Mutant:
    source = (ROOT / "minirl" / file).read_text(encoding="utf-8")
    return Mutant(file, 0, "<module>", "", source, False, "module")


class Place(NamedTuple):
    """An expression, and what Mutant says of it."""

    node: Any
    function: str
    raises: bool
    where: str


def places(node: ast.AST, function: str = "<module>", raises: bool = False,
           where: str = "module") -> Iterator[Place]:
    """Yield all expressions but texts and annotations."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        function = node.name if function == "<module>" else function
    only_raises = isinstance(node, ast.If) and all(
        isinstance(line, ast.Raise) for line in node.body) and not node.orelse
    raises = raises or only_raises or isinstance(node, ast.Raise)
    if isinstance(node, ast.expr):
        yield Place(node, function, raises, where)
    for child in ast.iter_child_nodes(node):
        strict = isinstance(child, ast.keyword) and child.arg == "strict"
        if not strict and not (isinstance(child, ast.expr) and is_text(node, child)):
            yield from places(child, function, raises, part_of(node, child) or where)


def part_of(parent: ast.AST, child: ast.AST) -> str:
    """Return "body" or "defaults" where a function or a class has the child there."""
    if child in getattr(parent, "decorator_list", []):
        return ""
    if isinstance(parent, ast.FunctionDef):
        return "defaults" if child is parent.args else "body"
    return "defaults" if isinstance(parent, ast.ClassDef) else ""


def is_text(parent: ast.AST, child: ast.expr) -> bool:
    """Whether an expression is a docstring, an annotation or a text."""
    annotations = getattr(parent, "annotation", None), getattr(parent, "returns", None)
    return child in annotations or isinstance(child, ast.JoinedStr) or (
        isinstance(child, ast.Constant) and isinstance(child.value, str))


def changes(node: ast.expr) -> Iterator[Callable[[Any], ast.expr]]:
    """Yield what can be done to an expression: functions that return the new one."""
    def with_op(kinds: dict[Any, Any]) -> Callable[[Any], ast.expr]:
        def change(node: Any) -> ast.expr:
            new = copy.copy(node)
            if isinstance(node, ast.Compare):
                new.ops = [kinds[type(node.ops[0])](), *node.ops[1:]]
            else:
                new.op = kinds[type(node.op)]()
            return new

        return change

    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield with_op(COMPARE)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield with_op(ARITHMETIC)
    elif isinstance(node, ast.BoolOp):
        yield with_op(LOGIC)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        yield lambda node: node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = node.value
        new: Any = not value if isinstance(value, bool) else {0: 1, 1: 0}.get(value, value + 1)
        yield lambda node: ast.Constant(new)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in DROPPED and not module(node.func.value):
            yield lambda node: node.func.value
        if name in NAMES:
            def renamed(node: Any) -> ast.expr:
                new = copy.copy(node)
                new.func = copy.copy(node.func)
                new.func.attr = NAMES[name]
                return new

            yield renamed
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        def other(node: Any) -> ast.expr:
            new = copy.copy(node)
            new.func = ast.Name(NAMES[node.func.id], ast.Load())
            return new

        yield other


def module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "F", "math", "itertools")


def swap(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list) and any(item is old for item in value):
                setattr(parent, name, [new if item is old else item for item in value])
                return


def function_lines(file: str) -> dict[int, str]:
    """Return the function or class at the outermost level that has each line of a file."""
    tree = ast.parse((ROOT / "minirl" / file).read_text(encoding="utf-8"))
    names = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
            names |= dict.fromkeys(range(first, (node.end_lineno or first) + 1), node.name)
    return names


# a mutant in the place of a module

def dotted(file: str) -> str:
    return "minirl." + file.removesuffix(".py").replace("/", ".")


def changed_module(mutant: Mutant, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    path = module.__dict__["__file__"] = str(ROOT / "minirl" / mutant.file)
    exec(compile(mutant.source, path, "exec"), module.__dict__)
    return module


def plant(mutant: Mutant) -> None:
    """Give the functions of the imported module the code and the numbers of the mutant's."""
    name = dotted(mutant.file)
    original = importlib.import_module(name)
    replace_code(original, changed_module(mutant, name))


def replace_code(original: Any, changed: Any) -> None:
    """Of a module or one of its classes: the code of its functions and methods."""
    for name, new in vars(changed).items():
        old = vars(original).get(name)
        if isinstance(new, type) and isinstance(original, types.ModuleType) and new is not old:
            replace_code(old, new)
        old, new = plain(old), plain(new)
        if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
            old.__code__ = new.__code__
            numbers = [y if isinstance(y, (int, float)) else x for x, y in zip(
                old.__defaults__ or (), new.__defaults__ or (), strict=True)]
            old.__defaults__ = tuple(numbers) or None
            for key, value in (new.__kwdefaults__ or {}).items():
                if isinstance(value, (int, float)):
                    old.__kwdefaults__[key] = value


def plain(x: Any) -> Any:
    """Return the function under a decorator, or in a property or a static method."""
    x = getattr(x, "fget", None) or getattr(x, "__func__", None) or x
    return inspect.unwrap(x) if callable(x) else x


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.source = dotted(mutant.file), mutant.source
        self.path = str(ROOT / "minirl" / mutant.file)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        spec = importlib.util.spec_from_loader(name, self, origin=self.path)
        assert spec is not None
        spec.has_location = True
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self.source, self.path, "exec"), module.__dict__)
