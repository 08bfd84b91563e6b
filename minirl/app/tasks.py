"""The one table of tasks: what a name on the command line, or in a config.json, stands for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.calls import Tool
from minirl.tasks.dataset import load_dataset
from minirl.tasks.environment import with_tools
from minirl.tasks.gsm8k import load_gsm8k
from minirl.tasks.instructions import Instructions
from minirl.tasks.problem import Task
from minirl.tasks.products import Products
from minirl.tasks.reasoning_gym import ReasoningGym
from minirl.tasks.tools import calculate


def bilingual(digits: int | Sequence[int] = 3, reason_in: str | None = None) -> Bilingual:
    lengths = (digits,) if isinstance(digits, int) else tuple(digits)
    return Bilingual(lengths, reason_in=reason_in)


def instructions() -> Instructions:
    return Instructions()


def gsm8k(data: str | None = None, eval_data: str | None = None, split: str | None = None) -> Task:
    return _read(load_gsm8k, "gsm8k", data, eval_path=eval_data, split=split)


def dataset(data: str | None = None, eval_data: str | None = None, split: str | None = None,
            math_verify: bool | None = None) -> Task:
    return _read(load_dataset, "dataset", data, eval_path=eval_data, split=split,
                 math_verify=math_verify)


def _read(load: Callable[..., Task], name: str, data: str | None, **options: Any) -> Task:
    if data is None:
        raise ValueError(f"the task {name} reads a file: name it with --data")
    files = [Path(path) for path in (data, options["eval_path"]) if path is not None]
    stamps = tuple(file.stat().st_mtime_ns for file in files if file.exists())
    return _read_once(load, data, stamps, **options)


@functools.lru_cache(4)
def _read_once(load: Callable[..., Task], data: str, stamps: tuple[int, ...],
               **options: Any) -> Task:
    """A run asks for its task several times. A file that has changed is read again."""
    return load(data, **options)


def reasoning_gym(dataset: str | None = None, config: Mapping[str, Any] | None = None
                  ) -> ReasoningGym:
    if not dataset:
        raise ValueError("reasoning_gym has many tasks: name one, such as reasoning_gym:chain_sum")
    return ReasoningGym(dataset, config or {})


# name -> function that makes the task; its parameters are the task's fields
TASKS: dict[str, Callable[..., Task]] = {
    **{operation: partial(Arithmetic, operation) for operation in SYMBOLS},
    "bilingual": bilingual, "instructions": instructions, "products": Products, "gsm8k": gsm8k,
    "dataset": dataset, "reasoning_gym": reasoning_gym}
OF_A_FILE = "gsm8k", "dataset"                         # what --data names
OF_ALL = "name", "tools", "max_tool_calls"             # fields that every task may have
TOOLS: dict[str, Tool] = {"calculator": calculate}
DEFAULT = {"name": "addition", "digits": 3}


def make_task(fields: Mapping[str, Any]) -> Task:
    """Return the task that a name and its fields describe.

    The field `tools`, which every task may have, names a tool that completions may call, as often
    as `max_tool_calls` says. A name may have a part behind a colon: reasoning_gym:chain_sum.

    Raises ValueError for an unknown name or field, and for a value that the task refuses.

    >>> make_task({"name": "addition", "digits": 2}).name
    '2-digit addition'
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"a task is {fields!r}: an object with a name and fields is expected")
    name = fields.get("name")
    allowed = fields_of(name)
    kind, _, part = str(name).partition(":")
    values = {field: value for field, value in fields.items() if field not in OF_ALL}
    values |= {"dataset": part} if part else {}
    for field in values:
        if field not in allowed:
            raise ValueError(f"the task {name} has no {field}: "
                             f"it has {', '.join(allowed) or 'no fields'}")
    try:
        task = TASKS[kind](**values)
    except TypeError as error:
        raise ValueError(f"the task {name} cannot be made from {values}: {error}") from error
    tools = fields.get("tools")
    if tools is not None and tools not in TOOLS:
        raise ValueError(f"there is no tool {tools!r}: {', '.join(TOOLS)} is expected")
    calls = {"max_calls": fields["max_tool_calls"]} if "max_tool_calls" in fields else {}
    if tools is None and calls:
        raise ValueError(f"max_tool_calls is {fields['max_tool_calls']}, and the task {name} has "
                         "no tools: leave it out")
    return task if tools is None else with_tools(task, [TOOLS[tools]], **calls)


def fields_of(name: object) -> list[str]:
    """Return the names of a task's fields. Raises ValueError for a task that does not exist."""
    kind, colon, _ = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in TASKS or colon and kind != "reasoning_gym":
        raise ValueError(f"there is no task {name!r}: one of {', '.join(TASKS)} is expected")
    return list(inspect.signature(TASKS[kind]).parameters)


def with_changes(fields: Mapping[str, Any], name: str | None = None,
                 digits: int | None = None, **changes: Any) -> dict[str, Any]:
    """Return the fields of another task, or of the same one with other digits, and other changes.

    Fields that both tasks have keep their values. A change to None is none.
    """
    if name is not None and name != fields.get("name"):
        shared = {field: fields[field] for field in fields_of(name) if field in fields}
        fields = {"name": name, **shared}
    changes = {"digits": digits, **changes}
    return {**fields, **{field: value for field, value in changes.items() if value is not None}}


def title_of(fields: Mapping[str, Any]) -> str:
    """Return what a title calls a task. The file of one that has a file need not be there."""
    return Path(fields["data"]).name if fields.get("data") else make_task(fields).name
