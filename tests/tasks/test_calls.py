"""minirl/tasks/calls.py: what a model must know of a tool, and how calls are written."""

import pytest

from minirl.tasks.calls import BARE, JSON, CallError, Tools, read_bare, read_json
from minirl.tasks.tools import calculate


def move(direction: str, steps: int = 1) -> str:
    """Go somewhere.

    As far as nothing is in the way.

    Args:
        direction: Where to: north, east,
            south or west.
        steps (int): How far.

    Returns:
        What is there.
    """
    return f"{steps} {direction}"


def scale(factor: float, values: list[int]) -> list[float]:
    """Multiply.

    Args:
        factor: By what.
        values: What.
    """
    return [factor * value for value in values]


def look() -> str:
    """Look around."""
    return "a wall"


def test_the_docstring_is_read():
    spec = Tools([move]).specs["move"]
    assert spec.summary == "Go somewhere."
    assert spec.types == {"direction": str, "steps": int}
    assert spec.meanings == {"direction": "Where to: north, east, south or west.",
                             "steps": "How far."}
    assert spec.optional == {"steps"}


def test_schema_by_hand():
    assert Tools([scale]).schemas() == [{"type": "function", "function": {
        "name": "scale", "description": "Multiply.",
        "parameters": {"type": "object", "required": ["factor", "values"], "properties": {
            "factor": {"type": "number", "description": "By what."},
            "values": {"type": "array", "description": "What."}}}}}]


def untyped(a):
    """Args:
        a: Anything."""


def unexplained(a: int):
    """Nothing is said of a."""


def anything(*a: int):
    """Args:
        a: Many."""


@pytest.mark.parametrize(("tools", "message"), [
    ([untyped], "the tool untyped has no type for a: write a: str"),
    ([unexplained], "the tool unexplained does not explain a"),
    ([anything], r"the tool anything takes \*a"),
    ([move, move], "two tools are called move"),
    (["move"], "'move' is no tool"),
    ([3], "3 is no tool"),
])
def test_tools_that_a_model_could_not_call(tools, message):
    with pytest.raises(ValueError, match=message):
        Tools(tools)


@pytest.mark.parametrize(("tools", "text", "call"), [
    ([calculate], "6*7", ("calculate", {"expression": "6*7"})),
    ([calculate], " 6 * 7", ("calculate", {"expression": " 6 * 7"})),
    ([calculate], "", ("calculate", {"expression": ""})),
    ([move], "north 3", ("move", {"direction": "north", "steps": 3})),
    ([move], "north", ("move", {"direction": "north"})),
    ([move], "", ("move", {})),
    ([move], "north three", ("move", {"direction": "north", "steps": "three"})),
    ([scale], "2.5 [1, 2]", ("scale", {"factor": 2.5, "values": [1, 2]})),
    ([look], "around", ("look", {})),
    ([move, look, calculate], "calculate 6 * 7", ("calculate", {"expression": "6 * 7"})),
    ([move, look], "look", ("look", {})),
    ([move, look], "jump high", ("jump", {})),
    ([move, look], "", ("", {})),
])
def test_bare_calls(tools, text, call):
    assert read_bare(text, Tools(tools)) == call


@pytest.mark.parametrize(("text", "call"), [
    ('{"name": "move", "arguments": {"direction": "north", "steps": 3}}',
     ("move", {"direction": "north", "steps": 3})),
    ('\n{"name": "look"}\n', ("look", {})),
    ('{"name": "look", "arguments": null}', ("look", {})),
])
def test_json_calls(text, call):
    assert read_json(text, Tools([])) == call


@pytest.mark.parametrize("text", ["", "look", "[]", "3", "null", '{"arguments": {}}', '{"name": 3}',
                                  '{"name": "look", "arguments": [1]}', '{"name": "lo',
                                  '{"name": "a", "arguments": "b"}', "[" * 100_000])
def test_what_is_no_json_call(text):
    with pytest.raises(CallError):
        read_json(text, Tools([]))


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("jump", {}, "there is no tool jump, only move, scale, look"),
    ("move", {}, "move needs the argument direction"),
    ("move", {"direction": "north", "speed": 3}, "move has no argument speed"),
    ("move", {"direction": 3}, "direction must be of type string"),
    ("move", {"direction": "north", "steps": "three"}, "steps must be of type integer"),
    ("move", {"direction": "north", "steps": 1.5}, "steps must be of type integer"),
    ("move", {"direction": "north", "steps": True}, "steps must be of type integer"),
    ("scale", {"factor": 2, "values": 3}, "values must be of type array"),
])
def test_arguments_are_checked(name, arguments, message):
    with pytest.raises(CallError, match=message):
        Tools([move, scale, look]).call(name, arguments)


def test_a_call():
    tools = Tools([move, scale])
    assert tools.call("move", {"direction": "north"}) == "1 north"
    assert tools.call("scale", {"factor": 2, "values": [1, 2]}) == [2, 4]


def test_spellings_differ_in_every_tag():
    tags = [*BARE[:4], *JSON[:4]]
    assert len(set(tags)) == 8
