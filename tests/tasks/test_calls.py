"""minirl/tasks/calls.py: how calls are written, read and done."""

import json

import pytest

from minirl.tasks.calls import BARE, JSON, CallError, Tools, read_bare, read_json
from minirl.tasks.schemas import json_schema
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


def pair(both: tuple[int, str]) -> str:
    """Join. JSON has no tuples: a list is one.

    Args:
        both: What.
    """
    return f"{both[0]} {both[1]}"


def look() -> str:
    """Look around."""
    return "a wall"


def test_two_tools_of_one_name():
    with pytest.raises(ValueError, match="two tools are called move"):
        Tools([move, move])


def test_each_tool_has_a_schema():
    assert Tools([move, look]).schemas() == [json_schema(move), json_schema(look)]


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
    ('{"name": "a", "arguments": {"b": ' + "[" * 19 + "]" * 19 + "}}",
     ("a", {"b": json.loads("[" * 19 + "]" * 19)})),
])
def test_json_calls(text, call):
    assert read_json(text, Tools([])) == call


@pytest.mark.parametrize("text", ["", "look", "[]", "3", "null", '{"arguments": {}}', '{"name": 3}',
                                  '{"name": "look", "arguments": [1]}', '{"name": "lo',
                                  '{"name": "a", "arguments": "b"}', "[" * 100_000,
                                  '{"name": "a", "arguments": {"b": NaN}}',
                                  '{"name": "a", "arguments": {"b": -Infinity}}',
                                  '{"name": "a", "arguments": {"b": ' + "9" * 5000 + "}}",
                                  '{"name": "a", "arguments": {"b": "' + "c" * 10_000 + '"}}',
                                  '{"name": "a", "arguments": {"b": ' + "[" * 20 + "]" * 20 + "}}",
                                  '{"name": "a", "arguments": {}} {"name": "b"}',
                                  "{'name': 'a', 'arguments': {}}"])
def test_what_is_no_json_call(text):
    with pytest.raises(CallError):
        read_json(text, Tools([]))


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("jump", {}, "there is no tool jump, only move, scale, look, pair"),
    ("move", {}, "move needs the argument direction"),
    ("move", {"direction": "north", "speed": 3}, "move has no argument speed"),
    ("move", {"direction": 3}, "direction must be of type string"),
    ("move", {"direction": "north", "steps": "three"}, "steps must be of type integer"),
    ("move", {"direction": "north", "steps": 1.5}, "steps must be of type integer"),
    ("move", {"direction": "north", "steps": True}, "steps must be of type integer"),
    ("scale", {"factor": 2, "values": 3}, "values must be of type array"),
    ("pair", {"both": 3}, "both must be of type array"),
])
def test_arguments_are_checked(name, arguments, message):
    with pytest.raises(CallError, match=message):
        Tools([move, scale, look, pair]).call(name, arguments)


def test_a_call():
    tools = Tools([move, scale])
    assert tools.call("move", {"direction": "north"}) == "1 north"
    assert tools.call("scale", {"factor": 2, "values": [1, 2]}) == [2, 4]
    assert Tools([pair]).call("pair", {"both": [1, "a"]}) == "1 a"


def test_spellings_differ_in_every_tag():
    tags = [*BARE[:4], *JSON[:4]]
    assert len(set(tags)) == 8
