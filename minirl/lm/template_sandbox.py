"""Jinja as chat templates expect it: the environment of transformers, in a sandbox with bounds.

A template comes with a checkpoint and is a program, so it is not trusted. It sees plain data, it
reaches no attribute of Python's own, and its loops, its calls and the text that it writes are
bounded. What a single filter takes is not: one that compares two long lists may take minutes.

Only chat.py imports this module, and only to render: jinja2 is optional.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS = 200_000    # rounds of loops, and calls, in one rendering: seconds
LONGEST = 2 ** 22       # characters of the text; items or bits of what * and ** give


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """Return what a template writes. Raises what Jinja raises, and TemplateError at a bound."""
    compiled, sandbox = _compiled(template)
    sandbox.steps = 0
    parts, length = [], 0
    for part in compiled.generate(variables):
        length += len(part)
        if length > LONGEST:
            raise TemplateError(f"it writes more than {LONGEST:,} characters")
        parts.append(part)
    return "".join(parts)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> tuple[Template, Sandbox]:
    sandbox = Sandbox()
    return sandbox.from_string(_CountedLoops().visit(sandbox.parse(template))), sandbox


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the functions that chat templates call; it counts steps."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True,
                         extensions=[GenerationTag, loopcontrols])
        self.steps = 0
        self.filters |= {"tojson": to_json, "counted": self.counted}
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now,
                         "dict": Dictionary(), "namespace": PlainNamespace}

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TemplateError(f"it takes more than {MOST_STEPS:,} steps")

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The filter that stands behind the values of every loop."""
        for value in values:
            self.step()
            yield value

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.step()
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            size = _bits(left) * right
        elif hasattr(left, "__len__"):
            size = len(left) * right
        elif hasattr(right, "__len__"):
            size = left * len(right)
        else:
            size = _bits(left) + _bits(right)
        if size > LONGEST:
            raise SecurityError(f"what {operator} gives is too large")
        return super().call_binop(context, operator, left, right)


class _CountedLoops(NodeTransformer):
    """{% for x in values %} becomes {% for x in values | counted %}."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node


class GenerationTag(Extension):
    """{% generation %} … {% endgeneration %} around what an assistant wrote: the text stays."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


class PlainNamespace(Namespace):
    """Jinja's namespace(...) without names that Python keeps for itself."""

    def __init__(self, /, *args: Any, **more: Any) -> None:
        values = dict(*args, **more)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Dictionary:
    """dict(...) and dict.fromkeys(...), and no other attribute of dict."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """JSON as a model reads it. Jinja's own filter writes < as \\u003c."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}: names begin with a letter")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0
