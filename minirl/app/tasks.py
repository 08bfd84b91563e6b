"""The one table of tasks: what a name on the command line, or in a config.json, stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.calls import Tool
from minirl.tasks.environment import with_tools
from minirl.tasks.instructions import Instructions
from minirl.tasks.problem import Task
from minirl.tasks.products import Products
from minirl.tasks.tools import calculate


def bilingual(digits: int | Sequence[int] = 3, reason_in: str | None = None) -> Bilingual:
    lengths = (digits,) if isinstance(digits, int) else tuple(digits)
    return Bilingual(lengths, reason_in=reason_in)


def instructions() -> Instructions:
    return Instructions()


# name -> function that makes the task; its parameters are the task's fields
TASKS: dict[str, Callable[..., Task]] = {
    **{operation: partial(Arithmetic, operation) for operation in SYMBOLS},
    "bilingual": bilingual, "instructions": instructions, "products": Products}
TOOLS: dict[str, Tool] = {"calculator": calculate}
DEFAULT = {"name": "addition", "digits": 3}


def make_task(fields: Mapping[str, Any]) -> Task:
    """Return the task that a name and its fields describe.

    The field `tools`, which every task may have, names a tool that completions may call.

    Raises ValueError for an unknown name or field, and for a value that the task refuses.

    >>> make_task({"name": "addition", "digits": 2}).name
    '2-digit addition'
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"a task is {fields!r}: an object with a name and fields is expected")
    name = fields.get("name")
    allowed = fields_of(name)
    values = {field: value for field, value in fields.items() if field not in ("name", "tools")}
    for field in values:
        if field not in allowed:
            raise ValueError(f"the task {name} has no {field}: "
                             f"it has {', '.join(allowed) or 'no fields'}")
    try:
        task = TASKS[str(name)](**values)
    except TypeError as error:
        raise ValueError(f"the task {name} cannot be made from {values}: {error}") from error
    tools = fields.get("tools")
    if tools is not None and tools not in TOOLS:
        raise ValueError(f"there is no tool {tools!r}: {', '.join(TOOLS)} is expected")
    return task if tools is None else with_tools(task, [TOOLS[tools]])


def fields_of(name: object) -> list[str]:
    """Return the names of a task's fields. Raises ValueError for a task that does not exist."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"there is no task {name!r}: one of {', '.join(TASKS)} is expected")
    return list(inspect.signature(TASKS[name]).parameters)


def with_changes(fields: Mapping[str, Any], name: str | None = None,
                 digits: int | None = None) -> dict[str, Any]:
    """Return the fields of another task, or of the same one with other digits.

    Fields that both tasks have keep their values.
    """
    if name is not None:
        shared = {field: fields[field] for field in fields_of(name) if field in fields}
        fields = {"name": name, **shared}
    return {**fields, **({} if digits is None else {"digits": digits})}
