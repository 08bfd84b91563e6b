"""Tools and calls of them: how a model writes a call, and how it is read and done.

A tool is a function with typed arguments and a Google docstring (`Args:`), as TRL and transformers
want it. A call is text, in one of two spellings; the answer is given in the same one:

    BARE   <tool>6*7</tool>
           <result>42</result>
    JSON   <tool_call>{"name": "calculate", "arguments": {"expression": "6*7"}}</tool_call>
           <tool_response>42</tool_response>

JSON is what the chat templates of Qwen and Hermes teach. With such a template the answer is a turn
of its own: inference/tool_use.py.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from minirl.tasks.schemas import JSON_TYPES, Tool, ToolSpec, json_schema, read_tool

LONGEST_CALL = 10_000    # characters
DEEPEST = 20             # lists and objects inside one another
WRITTEN_AS: dict[Any, Any] = {float: (int, float), tuple: list}   # types in Python, and in JSON


# tools

class Tools:
    """Tools by name.

    Raises ValueError for arguments that have no type or are not explained, and for two tools of one
    name.

    >>> def add(a: int, b: int = 1) -> int:
    ...     '''Add two numbers.
    ...
    ...     Args:
    ...         a: The first.
    ...         b: The second.
    ...     '''
    ...     return a + b
    >>> tools = Tools([add])
    >>> tools.call("add", {"a": 6}), tools.specs["add"].meanings["b"]
    (7, 'The second.')
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.specs: dict[str, ToolSpec] = {}
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            spec = read_tool(tool)
            if spec.name in self.specs:
                raise ValueError(f"two tools are called {spec.name}: a model could call only one")
            self.specs[spec.name], self._tools[spec.name] = spec, tool

    def schemas(self) -> list[dict[str, Any]]:
        """Return a JSON schema of each tool, as chat templates take them."""
        return [json_schema(tool) for tool in self._tools.values()]

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call a tool -> what it returns. What it raises goes through.

        Raises CallError for an unknown tool, and for arguments that it does not have, that it needs
        and are missing, and that are of another type.
        """
        if name not in self.specs:
            raise CallError(f"there is no tool {name:.40}, only {', '.join(self.specs)}")
        spec = self.specs[name]
        for argument in arguments:
            if argument not in spec.types:
                raise CallError(f"{name} has no argument {argument:.40}")
        for argument, kind in spec.types.items():
            if argument in arguments:
                if not _is_a(arguments[argument], kind):
                    raise CallError(f"{argument} must be of type {JSON_TYPES[_plain(kind)]}")
            elif argument not in spec.optional:
                raise CallError(f"{name} needs the argument {argument}")
        return self._tools[name](**arguments)


def _plain(kind: Any) -> Any:
    """list for list[int]."""
    return typing.get_origin(kind) or kind


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that JSON has. Of another type every value may be."""
    plain = _plain(kind)
    if plain not in JSON_TYPES:
        return True
    if isinstance(value, bool):
        return plain is bool
    return isinstance(value, WRITTEN_AS.get(plain, plain))


# calls

class CallError(ValueError):
    """What was written is no call, or no tool takes it."""


class Spelling(NamedTuple):
    """How calls and answers are written: their tags, and read(text between the tags, tools) -> the
    tool's name and its arguments. It raises CallError for what is no call."""

    begin: str
    end: str
    answer_begin: str
    answer_end: str
    read: Callable[[str, Tools], tuple[str, dict[str, Any]]]


def read_bare(text: str, tools: Tools) -> tuple[str, dict[str, Any]]:
    """Read a call that is the arguments alone, with white space between them; the last one takes
    the rest. Where there are several tools, the name stands in front.

    >>> from minirl.tasks.tools import calculate
    >>> read_bare("6 * 7", Tools([calculate]))
    ('calculate', {'expression': '6 * 7'})
    """
    name = next(iter(tools.specs))
    if len(tools.specs) > 1:
        name, _, text = text.strip().partition(" ")
    types = tools.specs[name].types if name in tools.specs else {}
    words = [text] if len(types) == 1 else text.split(None, max(0, len(types) - 1))
    return name, {argument: word if kind is str else _value(word)
                  for (argument, kind), word in zip(types.items(), words, strict=False)}


def _value(word: str) -> Any:
    """Return the number, list, ... that a word stands for; else the word: of a wrong type."""
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


def read_json(text: str, tools: Tools) -> tuple[str, dict[str, Any]]:
    """Read a call in JSON, as Qwen and Hermes write it.

    >>> read_json('{"name": "add", "arguments": {"a": 1}}', Tools([]))
    ('add', {'a': 1})
    """
    if len(text) > LONGEST_CALL:
        raise CallError(f"a call of {len(text):,} characters is too long: at most {LONGEST_CALL:,}")
    try:
        content = json.loads(text, parse_constant=_no_number)
        name, arguments = content["name"], content.get("arguments") or {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CallError("a call is a JSON object with a name and arguments") from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise CallError("the name of a tool is text, and its arguments are an object")
    if _depth(arguments) > DEEPEST:
        raise CallError(f"its arguments are too deep: at most {DEEPEST} lists and objects")
    return name, arguments


def _no_number(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inside), default=0)


BARE = Spelling("<tool>", "</tool>", "<result>", "</result>", read_bare)
JSON = Spelling("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", read_json)
