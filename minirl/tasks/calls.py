"""Tools and calls of them: what a model must know of a tool, and how it writes a call.

A tool is a function with typed arguments and a Google docstring (`Args:`), as TRL and transformers
want it. A call is text, in one of two spellings; the answer is given in the same one:

    BARE   <tool>6*7</tool>
           <result>42</result>
    JSON   <tool_call>{"name": "calculate", "arguments": {"expression": "6*7"}}</tool_call>
           <tool_response>42</tool_response>
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Tool = Callable[..., Any]

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
              dict: "object"}


# tools

class ToolSpec(NamedTuple):
    """What a tool's signature and docstring say of it, by argument."""

    summary: str
    types: dict[str, Any]
    meanings: dict[str, str]
    optional: frozenset[str]      # those that have a default


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
            name = getattr(tool, "__name__", "")
            if not callable(tool) or not name:
                raise ValueError(f"{tool!r} is no tool: a function with a name is wanted")
            if name in self.specs:
                raise ValueError(f"two tools are called {name}: a model could call only one")
            self.specs[name], self._tools[name] = _spec(name, tool), tool

    def schemas(self) -> list[dict[str, Any]]:
        """Return a JSON schema of each tool, as chat templates take them."""
        return [_schema(name, spec) for name, spec in self.specs.items()]

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


def _spec(name: str, tool: Tool) -> ToolSpec:
    types, document = typing.get_type_hints(tool), inspect.getdoc(tool) or ""
    meanings = _meanings(document)
    parameters = inspect.signature(tool).parameters
    for argument, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"the tool {name} takes *{argument}: a model must know its arguments")
        if argument not in types:
            raise ValueError(f"the tool {name} has no type for {argument}: write {argument}: str")
        if argument not in meanings:
            raise ValueError(f"the tool {name} does not explain {argument}: its docstring needs a "
                             f"section Args: with a line {argument}: ...")
    return ToolSpec(
        summary=document.split("\n\n")[0].replace("\n", " "),
        types={argument: types[argument] for argument in parameters},
        meanings=meanings,
        optional=frozenset(argument for argument, parameter in parameters.items()
                           if parameter.default is not parameter.empty))


def _meanings(document: str) -> dict[str, str]:
    """Return the arguments of a Google docstring's section Args:, and what it says of each."""
    section = re.search(r"^Args?:\n((?:[ \t]+.*\n?|\n)*)", document, re.MULTILINE)
    meanings: dict[str, str] = {}
    lines = section[1].splitlines() if section else []
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in filter(str.strip, lines):
        entry = re.match(r"(\w+)(?: *\([^)]*\))?: *(.*)", line[indent:])
        if entry:
            meanings[entry[1]] = entry[2]
        elif meanings:
            last = next(reversed(meanings))
            meanings[last] = f"{meanings[last]} {line.strip()}"
    return meanings


def _schema(name: str, spec: ToolSpec) -> dict[str, Any]:
    properties = {}
    for argument, kind in spec.types.items():
        kinds = {"type": JSON_TYPES[_plain(kind)]} if _plain(kind) in JSON_TYPES else {}
        properties[argument] = {**kinds, "description": spec.meanings[argument]}
    required = [argument for argument in spec.types if argument not in spec.optional]
    return {"type": "function", "function": {
        "name": name, "description": spec.summary,
        "parameters": {"type": "object", "properties": properties,
                       **({"required": required} if required else {})}}}


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
    return isinstance(value, (int, float) if plain is float else plain)


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
    try:
        content = json.loads(text)
        name, arguments = content["name"], content.get("arguments") or {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CallError("a call is a JSON object with a name and arguments") from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise CallError("the name of a tool is text, and its arguments are an object")
    return name, arguments


BARE = Spelling("<tool>", "</tool>", "<result>", "</result>", read_bare)
JSON = Spelling("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", read_json)
