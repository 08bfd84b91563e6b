"""What a model must know of a tool: its signature and docstring, and both as a JSON schema.

The schema is the one of transformers' get_json_schema. Chat templates show it to a model.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

Tool = Callable[..., Any]

JSON_TYPES: dict[Any, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null",
    list: "array", tuple: "array", dict: "object"}
SCALARS = (str, int, float, bool, type(None))
CHOICES = re.compile(r"\(choices: *(.*?)\)\s*$", re.IGNORECASE)


class ToolSpec(NamedTuple):
    """What a tool's signature and docstring say of it, by argument."""

    name: str
    description: str
    types: dict[str, Any]
    meanings: dict[str, str]
    optional: frozenset[str]      # those that have a default
    returns: tuple[Any, str]      # the type, and what the docstring says of it


def read_tool(tool: Tool) -> ToolSpec:
    """Read a function with typed arguments and a Google docstring.

    Raises ValueError for arguments that have no type or are not explained.
    """
    name = getattr(tool, "__name__", "")
    if not callable(tool) or not name:
        raise ValueError(f"{tool!r} is no tool: a function with a name is wanted")
    hints, (description, meanings, returns) = typing.get_type_hints(tool), read_docstring(tool)
    parameters = inspect.signature(tool).parameters
    for argument, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"the tool {name} takes *{argument}: a model must know its arguments")
        if argument not in hints:
            raise ValueError(f"the tool {name} has no type for {argument}: write {argument}: str")
        if argument not in meanings:
            raise ValueError(f"the tool {name} does not explain {argument}: its docstring needs a "
                             f"section Args: with a line {argument}: ...")
    return ToolSpec(
        name, description,
        types={argument: hints[argument] for argument in parameters},
        meanings=meanings,
        optional=frozenset(argument for argument, parameter in parameters.items()
                           if parameter.default is not parameter.empty),
        returns=(hints.get("return", inspect.Parameter.empty), returns))


def read_docstring(tool: Tool) -> tuple[str, dict[str, str], str]:
    """Return a Google docstring's description, its arguments and what it returns."""
    description, *rest = re.split(r"^(Args|Returns|Raises):", inspect.getdoc(tool) or "",
                                  flags=re.MULTILINE)
    sections = dict(zip(rest[::2], map(_indented, rest[1::2]), strict=True))
    meanings: dict[str, str] = {}
    lines = sections.get("Args", "").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in filter(str.strip, lines):
        entry = re.match(r"(\w+)(?: *\([^)]*\))?: *(.*)", line[indent:])
        if entry:
            meanings[entry[1]] = entry[2]
        elif meanings:
            last = next(reversed(meanings))
            meanings[last] = f"{meanings[last]} {line.strip()}"
    return description.strip(), meanings, sections.get("Returns", "").strip()


def _indented(text: str) -> str:
    """The part of a section up to the first line that is not indented."""
    return re.match(r"(?:[ \t]+.*\n?|\n)*", text)[0]    # type: ignore[index]


# schemas

def json_schema(tool: Tool) -> dict[str, Any]:
    """Return a tool's JSON schema, as chat templates take it.

    Raises ValueError as read_tool does, and for an argument whose type JSON does not have.

    >>> def add(a: int, b: int = 1) -> int:
    ...     '''Add two numbers.
    ...
    ...     Args:
    ...         a: The first.
    ...         b: The second.
    ...     '''
    >>> schema = json_schema(add)["function"]
    >>> schema["description"], schema["parameters"]["properties"]["b"]
    ('Add two numbers.', {'type': 'integer', 'description': 'The second.'})
    >>> schema["parameters"]["required"], schema["return"]
    (['a'], {'type': 'integer'})
    """
    spec = read_tool(tool)
    try:
        properties = {argument: _argument_schema(hint, spec.meanings[argument])
                      for argument, hint in spec.types.items()}
    except ValueError as error:
        raise ValueError(f"the tool {spec.name} has an argument that no JSON can hold: {error}"
                         ) from error
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [argument for argument in spec.types if argument not in spec.optional]:
        parameters["required"] = required
    return {"type": "function", "function": {
        "name": spec.name, "description": spec.description, "parameters": parameters,
        **_return_schema(*spec.returns)}}


def _argument_schema(hint: Any, meaning: str) -> dict[str, Any]:
    """The schema of an argument. A meaning that ends in (choices: ["a", "b"]) says which values it
    may have."""
    schema = type_schema(hint)
    if choices := CHOICES.search(meaning):
        schema["enum"] = [x.strip() if isinstance(x, str) else x for x in json.loads(choices[1])]
        meaning = meaning[:choices.start()].strip()
    return {**schema, "description": meaning}


def _return_schema(hint: Any, meaning: str) -> dict[str, Any]:
    """The entry "return"; none where the type is missing or JSON does not have it."""
    try:
        schema = type_schema(hint)
    except ValueError:
        return {}
    return {"return": {**schema, **({"description": meaning} if meaning else {})}}


def type_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type. Raises ValueError for a type that JSON does not have.

    >>> type_schema(list[int] | None)
    {'type': 'array', 'items': {'type': 'integer'}, 'nullable': True}
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_schema(member.value for member in hint)
    if origin is Literal:
        return _enum_schema(arguments)
    if origin in (typing.Union, types.UnionType):
        return _union_schema(arguments)
    if hint is Any:
        return {}
    if (origin or hint) not in JSON_TYPES:
        raise ValueError(f"{hint!r} is none of {', '.join(x.__name__ for x in JSON_TYPES)}, "
                         "Literal, Enum, and unions, lists and dictionaries of them")
    schema: dict[str, Any] = {"type": JSON_TYPES[origin or hint]}
    if origin is list and arguments:
        schema["items"] = type_schema(arguments[0])
    if origin is dict and arguments:
        schema["additionalProperties"] = type_schema(arguments[1])
    if origin is tuple and arguments:
        if len(arguments) == 1 or ... in arguments:
            raise ValueError(f"{hint!r} is a tuple of one or of any length: write list[...]")
        schema["prefixItems"] = [type_schema(argument) for argument in arguments]
    return schema


def _enum_schema(values: Iterable[Any]) -> dict[str, Any]:
    values = list(values)
    if not values or any(type(value) not in SCALARS for value in values):
        raise ValueError(f"the values {values} are not all text, numbers, bools or None")
    names = list(dict.fromkeys(JSON_TYPES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union_schema(arguments: Iterable[Any]) -> dict[str, Any]:
    arguments = list(arguments)
    schemas = [type_schema(argument) for argument in arguments if argument is not type(None)]
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(x.keys() == {"type"} and isinstance(x["type"], str) for x in schemas):
        names = sorted({x["type"] for x in schemas})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": schemas}
    return {**schema, **({"nullable": True} if type(None) in arguments else {})}
