"""minirl/tasks/schemas.py: what is read of a tool's signature and docstring, and its JSON schema.

tests/parity/test_chat_templates.py compares the schemas with transformers'.
"""

import enum
from typing import Any, Literal

import pytest

from minirl.tasks.schemas import json_schema, read_docstring, read_tool, type_schema
from minirl.tasks.tools import calculate


class Direction(enum.Enum):
    NORTH = "north"
    SOUTH = "south"


def move(direction: str, steps: int = 1) -> str:
    """Go somewhere.

    As far as nothing is in the way.

    Args:
        direction: Where to: north, east,
            south or west.

        steps (int): How far.

    Returns:
        What is there,
          or nothing.

    >>> move("north")
    """
    return f"{steps} {direction}"


def look():
    """Look around."""


def order(drink: str, size: int) -> object:
    """Order.

    Args:
        drink: What (choices: ["tea ", "coffee"])
        size: How much (Choices: [1, 2])
    """


def test_the_docstring_is_read():
    spec = read_tool(move)
    assert spec.description == "Go somewhere.\n\nAs far as nothing is in the way."
    assert spec.types == {"direction": str, "steps": int}
    assert spec.meanings == {"direction": "Where to: north, east, south or west.",
                             "steps": "How far."}
    assert spec.optional == {"steps"}
    assert spec.returns == (str, "What is there,\n      or nothing.")


def test_a_docstring_without_sections():
    assert read_docstring(look) == ("Look around.", {}, "")
    assert read_docstring(lambda: None) == ("", {}, "")


def test_schema_by_hand():
    assert json_schema(move) == {"type": "function", "function": {
        "name": "move", "description": "Go somewhere.\n\nAs far as nothing is in the way.",
        "parameters": {"type": "object", "properties": {
            "direction": {"type": "string", "description": "Where to: north, east, south or west."},
            "steps": {"type": "integer", "description": "How far."}}, "required": ["direction"]},
        "return": {"type": "string", "description": "What is there,\n      or nothing."}}}
    assert json_schema(look)["function"] == {
        "name": "look", "description": "Look around.",
        "parameters": {"type": "object", "properties": {}}}


def test_choices_of_a_docstring():
    function = json_schema(order)["function"]
    assert function["parameters"]["properties"] == {
        "drink": {"type": "string", "enum": ["tea", "coffee"], "description": "What"},
        "size": {"type": "integer", "enum": [1, 2], "description": "How much"}}
    assert "return" not in function, "JSON has no objects of any class"


@pytest.mark.parametrize(("hint", "schema"), [
    (int, {"type": "integer"}), (float, {"type": "number"}), (bool, {"type": "boolean"}),
    (type(None), {"type": "null"}), (Any, {}), (list, {"type": "array"}),
    (tuple, {"type": "array"}), (dict, {"type": "object"}),
    (list[float], {"type": "array", "items": {"type": "number"}}),
    (dict[str, list[int]], {"type": "object", "additionalProperties": {
        "type": "array", "items": {"type": "integer"}}}),
    (tuple[int, str], {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
    (int | None, {"type": "integer", "nullable": True}),
    (str | int, {"type": ["integer", "string"]}),
    (list | tuple, {"type": "array"}),
    (int | list[str] | None, {"anyOf": [{"type": "integer"}, {
        "type": "array", "items": {"type": "string"}}], "nullable": True}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal[1, "b", None], {"type": ["integer", "string", "null"], "enum": [1, "b", None]}),
    (Direction, {"type": "string", "enum": ["north", "south"]}),
])
def test_types(hint, schema):
    assert type_schema(hint) == schema


def untyped(a):
    """Args:
        a: Anything."""


def unexplained(a: int):
    """Nothing is said of a."""


def anything(*a: int):
    """Args:
        a: Many."""


def strange(a: range):
    """Count.

    Args:
        a: Numbers.
    """


def endless(a: tuple[int, ...]):
    """Count.

    Args:
        a: Numbers.
    """


class Nothing(enum.Enum):
    pass


def empty(a: Nothing):
    """Count.

    Args:
        a: One of none.
    """


@pytest.mark.parametrize(("tool", "message"), [
    (untyped, "the tool untyped has no type for a: write a: str"),
    (unexplained, "the tool unexplained does not explain a"),
    (anything, r"the tool anything takes \*a"),
    ("move", "'move' is no tool"),
    (3, "3 is no tool"),
    (strange, "the tool strange has an argument that no JSON can hold: .*range.* is none of str"),
    (endless, "a tuple of one or of any length: write list"),
    (empty, r"the values \[\] are not all"),
])
def test_tools_that_a_model_could_not_call(tool, message):
    with pytest.raises(ValueError, match=message):
        json_schema(tool)


def test_methods_are_tools():
    class Counter:
        def add(self, n: int) -> int:
            """Add.

            Args:
                n: How many.
            """

    assert list(json_schema(Counter().add)["function"]["parameters"]["properties"]) == ["n"]


def test_our_own_tool():
    function = json_schema(calculate)["function"]
    assert function["name"] == "calculate" and "expression" in function["parameters"]["properties"]
    assert function["return"]["description"] == 'The value, such as "35617593" or "5".'
